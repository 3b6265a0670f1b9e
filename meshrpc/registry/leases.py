"""The lease table: which instances are registered, and until when.

A record lives as long as its lease; a renewal extends the lease and never brings back one that
ran out, so a process that was frozen past it has to register again as a new incarnation. A
permanent record has no lease.

A table may begin with a recovery window: no lease ends before it is over, and its snapshots say
that who is missing may only not have come back yet.

Pure: `now` is an argument, and the caller publishes what changed. It does not notify, store or
wait: `version` says what watchers have to be told, `next_expiry` when to come back.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from meshrpc.errors import StaleIncarnation
from meshrpc.registry.departures import Departures
from meshrpc.registry.finding import Finding, Problem
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.lease_queue import Lease, LeaseQueue
from meshrpc.registry.registry import LEASE, Snapshot

REMEMBERED = 10_000
"""Instances that are gone whose incarnations are still known: as many as one table should hold
alive, so that a whole fleet may restart without one of its old incarnations slipping back in."""
NEAR_EXPIRY = 1 / 3
"""Of a lease that is left when it counts as about to run out: two renewals did not come."""

_Service = tuple[str, str]
_Key = tuple[str, str, str]


@dataclass(slots=True)
class _Members:
    """The instances of one service."""

    leases: dict[str, Lease] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    """Their records in the order of `ids`, which is sorted: kept so, for a snapshot of ten thousand
    is made with each change."""

    def add(self, lease: Lease) -> None:
        at = bisect_left(self.ids, lease.instance.id)
        self.leases[lease.instance.id] = lease
        self.ids.insert(at, lease.instance.id)
        self.instances.insert(at, lease.instance)

    def replace(self, lease: Lease, instance: Instance) -> None:
        lease.instance = self.instances[bisect_left(self.ids, instance.id)] = instance

    def remove(self, id_: str) -> None:
        at = bisect_left(self.ids, id_)
        del self.leases[id_], self.ids[at], self.instances[at]


class LeaseTable:
    """Live instance records by (namespace, service, id).

    `recovers_until` is when its recovery window ends; by default there is none.
    """

    def __init__(self, recovers_until: float = -math.inf) -> None:
        self._recovers_until = recovers_until
        self._is_recovering = recovers_until > -math.inf
        self._services: dict[_Service, _Members] = {}
        self._permanent: dict[_Key, Instance] = {}
        self._queue = LeaseQueue()
        self._gone: dict[_Key, int] = {}
        self._departures = Departures()
        self._eras = 0  # added to every version
        self._versions: dict[_Service, int] = {}
        self._snapshots: dict[_Service, Snapshot] = {}

    def __repr__(self) -> str:
        recovering = " recovering" if self._is_recovering else ""
        services = len(self._services)
        return f"<LeaseTable services={services} instances={self._queue.leases}{recovering}>"

    def register(self, instance: Instance, now: float, lease: float = LEASE) -> bool:
        """Create or replace a record and start its lease of `lease` seconds; a permanent has none.

        Returns whether watchers see a change: the same record again only renews. What it becomes
        is told by `as_registered`.

        Raises:
            StaleIncarnation: a newer incarnation is registered, or was among those last gone.
            ValueError: `lease` is not a positive number of seconds.
        """
        if not 0 < lease < math.inf:
            raise ValueError(f"a lease is a positive number of seconds, not {lease!r}")
        instance = self.as_registered(instance)
        held = self._find(instance.namespace, instance.service, instance.id)
        length = math.inf if instance.permanent else lease
        if held is None:
            self._add(instance, now, length)
            return True
        held.length = length
        self._extend(held, now)
        if held.instance == instance:
            return False
        self._replace(held, instance)
        return True

    def as_registered(self, instance: Instance) -> Instance:
        """Return the record that `register` would leave.

        Of the same incarnation, one that is marked as draining stays so until `undrain`, and what
        was found out of the health of a permanent one holds for as long as its address.

        Raises:
            StaleIncarnation: as `register` would.
        """
        held = self.get(instance.namespace, instance.service, instance.id)
        newest = self._gone.get(_key(instance), 0) if held is None else held.incarnation
        if instance.incarnation < newest:
            raise StaleIncarnation(
                f"instance {instance.id!r} of {instance.service!r}: incarnation "
                f"{instance.incarnation} comes after {newest}"
            )
        if held is None or held.incarnation != instance.incarnation:
            return instance
        if held.state is State.DRAINING:
            instance = replace(instance, state=State.DRAINING)
        if held.permanent and instance.permanent and held.address == instance.address:
            instance = replace(instance, health=held.health)
        return instance

    def get(self, namespace: str, service: str, id: str) -> Instance | None:  # noqa: A002
        """Return a record, if there is one."""
        held = self._find(namespace, service, id)
        return None if held is None else held.instance

    def permanent(self) -> tuple[Instance, ...]:
        """Return the records that have no lease, in the order in which they came."""
        return tuple(self._permanent.values())

    def renew(self, namespace: str, service: str, id: str, incarnation: int, now: float) -> bool:  # noqa: A002
        """Extend a lease; False when that incarnation holds no live one."""
        held = self._find(namespace, service, id)
        if held is None or held.instance.incarnation != incarnation or held.expires <= now:
            return False
        self._extend(held, now)
        return True

    def renew_all(self, now: float) -> None:
        """Start every lease anew, each with its own length, and a recovery window that lasts."""
        if self._is_recovering:
            self._recovers_until = max(self._recovers_until, now + LEASE)
        for members in self._services.values():
            for held in members.leases.values():
                self._extend(held, now)

    def drain(self, namespace: str, service: str, id: str) -> bool:  # noqa: A002
        """Mark a record as draining; False when it is already, or unknown."""
        return self._set_state(namespace, service, id, State.DRAINING)

    def undrain(self, namespace: str, service: str, id: str) -> bool:  # noqa: A002
        """Take the mark back; False when there is none, or the record is unknown."""
        return self._set_state(namespace, service, id, State.ACTIVE)

    def set_health(self, namespace: str, service: str, id: str, health: Health) -> bool:  # noqa: A002
        """Note what was found out of a record; False when it says so already, or is unknown."""
        held = self._find(namespace, service, id)
        if held is None or held.instance.health is health:
            return False
        self._replace(held, replace(held.instance, health=health))
        return True

    def deregister(self, namespace: str, service: str, id: str) -> bool:  # noqa: A002
        """Remove a record, and note that its absence is certain; False: nothing is new in that.

        It is noted of an unknown one too: a table that forgot it, or let its lease run out, has
        watchers who may still count on it.
        """
        held = self._find(namespace, service, id)
        is_new = self._departures.add((namespace, service, id))
        if held is not None:
            self._remove(held)
        elif is_new:
            self._changed(namespace, service)
        return held is not None or is_new

    def expire(self, now: float) -> tuple[Instance, ...]:
        """Drop the records whose leases ran out, and return them in the order in which they did."""
        gone = []
        while not self._is_recovering and (first := self._queue.first()) is not None:
            if first.expires > now:
                break
            gone.append(self._remove(first))
        return tuple(gone)

    @property
    def is_recovering(self) -> bool:
        """Whether the recovery window lasts."""
        return self._is_recovering

    def recover(self, now: float) -> bool:
        """End the recovery window if it is over; True once, and then every version is a new one."""
        if not self._is_recovering or now < self._recovers_until:
            return False
        self._is_recovering = False
        self._eras += 1
        self._snapshots.clear()
        return True

    def next_expiry(self) -> float | None:
        """Return when the next lease runs out unless renewed; None when there is none.

        While the table recovers, that is the end of the window.
        """
        if self._is_recovering:
            return self._recovers_until
        first = self._queue.first()
        return None if first is None else first.expires

    def findings(self, namespace: str, service: str, now: float) -> tuple[Finding, ...]:
        """Return which of the service's leases are about to run out, ordered by id."""
        members = self._services.get((namespace, service))
        if members is None:
            return ()
        found = []
        for id_ in members.ids:
            held = members.leases[id_]
            left = held.expires - now
            if left < held.length * NEAR_EXPIRY:
                detail = f"{max(left, 0.0):.1f} s of its lease of {held.length:g} s are left; "
                detail += "its process does not renew: is it stuck, or cut off?"
                found.append(Finding(Problem.LEASE_NEAR_EXPIRY, service, id_, detail))
        return tuple(found)

    def snapshot(self, namespace: str, service: str) -> Snapshot:
        """Return the service's records, ordered by id."""
        key = (namespace, service)
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            members = self._services.get(key)
            instances = () if members is None else tuple(members.instances)
            departed = self._departures.of(namespace, service)
            snapshot = Snapshot(service, instances, departed, self._is_recovering)
            if instances:  # of what does not exist nothing is kept
                self._snapshots[key] = snapshot
        return snapshot

    def version(self, namespace: str, service: str) -> int:
        """Return a number that grows with each change watchers can see; 0 before the first."""
        return self._versions.get((namespace, service), 0) + self._eras

    def services(self, namespace: str) -> tuple[str, ...]:
        """Return the names of the namespace's services that have instances, sorted."""
        return tuple(sorted(service for space, service in self._services if space == namespace))

    def all(self) -> tuple[Instance, ...]:
        """Return every record, ordered by namespace, service and id."""
        return tuple(
            instance
            for service in sorted(self._services)
            for instance in self._services[service].instances
        )

    def restore(self, instances: Iterable[Instance], now: float) -> None:
        """Take back the records known before a restart, each with one whole fresh lease.

        A record that is here already is the newer one, and stays.
        """
        for instance in instances:
            if self._find(instance.namespace, instance.service, instance.id) is None:
                self._add(instance, now, math.inf if instance.permanent else LEASE)

    def _find(self, namespace: str, service: str, id_: str) -> Lease | None:
        members = self._services.get((namespace, service))
        return None if members is None else members.leases.get(id_)

    def _set_state(self, namespace: str, service: str, id_: str, state: State) -> bool:
        held = self._find(namespace, service, id_)
        if held is None or held.instance.state is state:
            return False
        self._replace(held, replace(held.instance, state=state))
        return True

    def _add(self, instance: Instance, now: float, length: float) -> None:
        key = _key(instance)
        held = Lease(instance, length)
        self._services.setdefault(key[:2], _Members()).add(held)
        self._queue.add(held, self._end(held, now))
        self._gone.pop(key, None)
        self._departures.discard(key)
        self._changed_to(instance)

    def _replace(self, held: Lease, instance: Instance) -> None:
        self._services[instance.namespace, instance.service].replace(held, instance)
        self._changed_to(instance)

    def _extend(self, held: Lease, now: float) -> None:
        self._queue.extend(held, self._end(held, now))

    def _end(self, held: Lease, now: float) -> float:
        """Return when a lease that starts now ends."""
        end = now + held.length
        return max(end, self._recovers_until) if self._is_recovering else end

    def _remove(self, held: Lease) -> Instance:
        instance = held.instance
        key = _key(instance)
        members = self._services[key[:2]]
        members.remove(instance.id)
        if not members.ids:
            del self._services[key[:2]]
        self._queue.remove(held)
        self._permanent.pop(key, None)
        self._gone[key] = instance.incarnation
        if len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]
        self._changed(instance.namespace, instance.service)
        return instance

    def _changed_to(self, instance: Instance) -> None:
        if instance.permanent:
            self._permanent[_key(instance)] = instance
        else:
            self._permanent.pop(_key(instance), None)
        self._changed(instance.namespace, instance.service)

    def _changed(self, namespace: str, service: str) -> None:
        key = (namespace, service)
        self._versions[key] = self._versions.get(key, 0) + 1
        self._snapshots.pop(key, None)


def _key(instance: Instance) -> _Key:
    return instance.namespace, instance.service, instance.id

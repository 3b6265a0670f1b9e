"""The lease table: which instances are registered, and until when.

A record lives as long as its lease; a renewal extends the lease and never brings back one that
ran out, so a process that was frozen past it has to register again as a new incarnation. Expiry
times wait in a heap that renewals leave alone: an entry that comes up too early is put back
at the lease's real end. That makes a renewal O(1) and expiry O(log n) per entry.

Pure: `now` is an argument, and the caller publishes what changed. It does not notify, store or
wait: `version` says what watchers have to be told, `next_expiry` when to come back.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from meshrpc.errors import StaleIncarnation
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import LEASE, Snapshot

REMEMBERED = 10_000
"""Instances that are gone whose incarnations are still known: as many as one table should hold
alive, so that a whole fleet may restart without one of its old incarnations slipping back in."""

_Service = tuple[str, str]
_Key = tuple[str, str, str]


@dataclass(slots=True)
class _Lease:
    instance: Instance
    length: float
    expires: float
    queued: float
    """The time of the one heap entry that counts for this lease; never after `expires`."""


class LeaseTable:
    """Live instance records by (namespace, service, id)."""

    def __init__(self) -> None:
        self._services: dict[_Service, dict[str, _Lease]] = {}
        self._queue: list[tuple[float, _Key]] = []
        self._gone: dict[_Key, int] = {}
        self._versions: dict[_Service, int] = {}
        self._snapshots: dict[_Service, Snapshot] = {}

    def __repr__(self) -> str:
        instances = sum(map(len, self._services.values()))
        return f"<LeaseTable services={len(self._services)} instances={instances}>"

    def register(self, instance: Instance, now: float, lease: float = LEASE) -> bool:
        """Create or replace a record and start its lease of `lease` seconds.

        Returns whether watchers see a change: the same record again only renews.

        Raises:
            StaleIncarnation: a newer incarnation is registered, or was among those last gone.
            ValueError: `lease` is not a positive number of seconds.
        """
        if not 0 < lease < math.inf:
            raise ValueError(f"a lease is a positive number of seconds, not {lease!r}")
        held = self._admit(instance)
        if held is None:
            self._add(instance, now, lease)
            return True
        held.length = lease
        self._extend(held, now)
        if held.instance == instance:
            return False
        held.instance = instance
        self._changed(instance.namespace, instance.service)
        return True

    def holds(self, instance: Instance) -> bool:
        """Whether exactly this record is registered.

        Raises:
            StaleIncarnation: as `register` would.
        """
        held = self._admit(instance)
        return held is not None and held.instance == instance

    def renew(self, namespace: str, service: str, id: str, incarnation: int, now: float) -> bool:  # noqa: A002
        """Extend a lease; False when that incarnation holds no live one."""
        held = self._find(namespace, service, id)
        if held is None or held.instance.incarnation != incarnation or held.expires <= now:
            return False
        self._extend(held, now)
        return True

    def renew_all(self, now: float) -> None:
        """Start every lease anew, each with its own length."""
        for leases in self._services.values():
            for held in leases.values():
                self._extend(held, now)

    def drain(self, namespace: str, service: str, id: str) -> bool:  # noqa: A002
        """Mark a record as draining; False when it is already, or unknown."""
        held = self._find(namespace, service, id)
        if held is None or held.instance.state is State.DRAINING:
            return False
        held.instance = replace(held.instance, state=State.DRAINING)
        self._changed(namespace, service)
        return True

    def deregister(self, namespace: str, service: str, id: str) -> bool:  # noqa: A002
        """Remove a record; False when it is unknown."""
        held = self._find(namespace, service, id)
        if held is None:
            return False
        self._remove(held.instance)
        return True

    def expire(self, now: float) -> frozenset[tuple[str, str]]:
        """Drop the leases that ran out; return each (namespace, service) that changed."""
        changed = set()
        while (due := self.next_expiry()) is not None and due <= now:
            namespace, service, id_ = self._queue[0][1]
            self._remove(self._services[namespace, service][id_].instance)
            changed.add((namespace, service))
        return frozenset(changed)

    def next_expiry(self) -> float | None:
        """Return when the next lease runs out unless renewed; None when there is none."""
        while self._queue:
            time, key = self._queue[0]
            held = self._find(*key)
            if held is None or held.queued != time:
                heapq.heappop(self._queue)
            elif held.expires > time:
                held.queued = held.expires
                heapq.heapreplace(self._queue, (held.expires, key))
            else:
                return time
        return None

    def snapshot(self, namespace: str, service: str) -> Snapshot:
        """Return the service's records, ordered by id."""
        key = (namespace, service)
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            leases = self._services.get(key, {})
            instances = tuple(leases[id_].instance for id_ in sorted(leases))
            snapshot = Snapshot(service, instances)
            if instances:  # of what does not exist nothing is kept
                self._snapshots[key] = snapshot
        return snapshot

    def version(self, namespace: str, service: str) -> int:
        """Return a number that grows with each change watchers can see; 0 before the first."""
        return self._versions.get((namespace, service), 0)

    def services(self, namespace: str) -> tuple[str, ...]:
        """Return the names of the namespace's services that have instances, sorted."""
        return tuple(sorted(service for space, service in self._services if space == namespace))

    def all(self) -> tuple[Instance, ...]:
        """Return every record, ordered by namespace, service and id."""
        return tuple(
            instance
            for namespace, service in sorted(self._services)
            for instance in self.snapshot(namespace, service).instances
        )

    def restore(self, instances: Iterable[Instance], now: float) -> None:
        """Take back the records known before a restart, each with one whole fresh lease.

        A record that is here already is the newer one, and stays.
        """
        for instance in instances:
            if self._find(instance.namespace, instance.service, instance.id) is None:
                self._add(instance, now, LEASE)

    def _find(self, namespace: str, service: str, id_: str) -> _Lease | None:
        leases = self._services.get((namespace, service))
        return None if leases is None else leases.get(id_)

    def _admit(self, instance: Instance) -> _Lease | None:
        """Return what is held under the instance's id; raise when that is too new for it."""
        held = self._find(instance.namespace, instance.service, instance.id)
        newest = self._gone.get(_key(instance), 0) if held is None else held.instance.incarnation
        if instance.incarnation < newest:
            raise StaleIncarnation(
                f"instance {instance.id!r} of {instance.service!r}: incarnation "
                f"{instance.incarnation} comes after {newest}"
            )
        return held

    def _add(self, instance: Instance, now: float, length: float) -> None:
        key = _key(instance)
        expires = now + length
        leases = self._services.setdefault((instance.namespace, instance.service), {})
        leases[instance.id] = _Lease(instance, length, expires, expires)
        heapq.heappush(self._queue, (expires, key))
        self._gone.pop(key, None)
        self._changed(instance.namespace, instance.service)

    def _extend(self, held: _Lease, now: float) -> None:
        held.expires = now + held.length
        if held.expires < held.queued:  # registered again with a shorter lease
            held.queued = held.expires
            heapq.heappush(self._queue, (held.expires, _key(held.instance)))

    def _remove(self, instance: Instance) -> None:
        service = (instance.namespace, instance.service)
        del self._services[service][instance.id]
        if not self._services[service]:
            del self._services[service]
        self._gone[_key(instance)] = instance.incarnation
        if len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]
        self._changed(*service)

    def _changed(self, namespace: str, service: str) -> None:
        key = (namespace, service)
        self._versions[key] = self._versions.get(key, 0) + 1
        self._snapshots.pop(key, None)


def _key(instance: Instance) -> _Key:
    return instance.namespace, instance.service, instance.id

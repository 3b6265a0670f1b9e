"""Instance sets as they are pushed: all of a service's instances, or what a subscriber lacks.

Of each service that is watched, a journal knows when each instance last changed; the difference
from any version it reaches back to is the newest record of each that changed since, and the ids
that are gone. The journal has no more entries than the whole set has: a difference from further
back would be no smaller. It outlasts its last watcher by `KEPT`, so that one whose connection
breaks finds it again.

Sets are made serialised, each record once for all sets it is in. Pure. It does not know who has
what: `pushes` says from which version a difference is wanted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from operator import attrgetter, is_

from meshrpc.control.parts import key
from meshrpc.registry.instance import Instance
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.registry import Snapshot
from meshrpc.v1 import control_pb2

KEPT = 60.0
"""Seconds that is remembered what changed of a service that nobody watches any more: longer than
processes take to come back from a broken connection."""

_INSTANCES = control_pb2.InstanceSet.DESCRIPTOR.fields_by_name["instances"].number

_id = attrgetter("id")


class InstanceSets:
    """What the watchers of each service are sent.

    Args:
        leases: where the instances are read.
    """

    def __init__(self, leases: LeaseTable) -> None:
        self._leases = leases
        self._journals: dict[tuple[str, str], _Journal] = {}
        self._unwatched: dict[tuple[str, str], float] = {}  # until when, oldest first

    def __repr__(self) -> str:
        return f"<InstanceSets services={len(self._journals)} unwatched={len(self._unwatched)}>"

    def newest(self, namespace: str, service: str, base: int = 0) -> bytes:
        """Return the `InstanceSet` that brings a subscriber from version `base` to the newest one.

        It has all instances when there is no base (0), when the difference is not known any more,
        or when that is not smaller.
        """
        name = (namespace, service)
        version = self._leases.version(namespace, service)
        snapshot = self._leases.snapshot(namespace, service)
        self._unwatched.pop(name, None)
        journal = self._journals.get(name)
        if journal is None:
            journal = self._journals[name] = _Journal(version, snapshot)
        elif journal.version != version:
            journal.advance(version, snapshot)
        return journal.since(base)

    def release(self, namespace: str, service: str, now: float) -> None:
        """Note that nobody watches the service."""
        name = (namespace, service)
        if (journal := self._journals.get(name)) is not None:
            journal.forget_sets()
            self._unwatched.pop(name, None)  # to the end
            self._unwatched[name] = now + KEPT

    def forget(self, now: float) -> None:
        """Keep nothing of what nobody has watched for long."""
        while (due := self.next_due()) is not None and due <= now:
            name = next(iter(self._unwatched))
            del self._unwatched[name], self._journals[name]

    def next_due(self) -> float | None:
        """Return when `forget` will next have something; None: nothing waits."""
        return next(iter(self._unwatched.values()), None)


class _Journal:
    """The instances of one service, and at which version each last changed."""

    def __init__(self, version: int, snapshot: Snapshot) -> None:
        self.version = version
        self._snapshot = snapshot
        self._reaches = version
        """The oldest version from which the difference is known."""
        self._changed: dict[str, int] = {}
        """The version at which each id last changed, or departed, oldest first."""
        self._records: dict[str, bytes] = {}
        """The records, each as the field of a set."""
        self._made: dict[int, bytes] = {}
        """Sets of this version by their base: one is made for all who need the same."""

    def advance(self, version: int, snapshot: Snapshot) -> None:
        before = self._snapshot
        for id_ in _differing(before.instances, snapshot.instances):
            self._changed.pop(id_, None)  # to the end
            self._changed[id_] = version
            self._records.pop(id_, None)
        # One may have come and departed in between.
        for id_ in snapshot.departed - before.departed:
            self._changed.pop(id_, None)
            self._changed[id_] = version
        too_many = max(0, len(self._changed) - _size(snapshot))
        for id_ in list(islice(self._changed, too_many)):
            self._reaches = self._changed.pop(id_)
        self.version = version
        self._snapshot = snapshot
        self._made.clear()

    def forget_sets(self) -> None:
        self._made.clear()

    def since(self, base: int) -> bytes:
        if base not in self._made:
            made = self._whole() if base == 0 else self._difference(base) or self.since(0)
            self._made[base] = made
        return self._made[base]

    def _whole(self) -> bytes:
        return self._joined(
            control_pb2.InstanceSet(departed=sorted(self._snapshot.departed)),
            self._snapshot.instances,
        )

    def _difference(self, base: int) -> bytes | None:
        """Return what changed after `base`; None: not known, or no smaller than the whole set."""
        if base < self._reaches:
            return None
        changes = reversed(self._changed.items())
        ids = [id_ for id_, _ in takewhile(lambda change: change[1] > base, changes)]
        if len(ids) >= _size(self._snapshot):
            return None
        made = control_pb2.InstanceSet(base=base)
        instances = self._snapshot.instances
        changed = []
        for id_ in ids:
            at = bisect_left(instances, id_, key=_id)
            if at < len(instances) and instances[at].id == id_:
                changed.append(instances[at])
                continue
            made.removed.append(id_)
            if id_ in self._snapshot.departed:
                made.departed.append(id_)
        return self._joined(made, changed)

    def _joined(self, head: control_pb2.InstanceSet, instances: Sequence[Instance]) -> bytes:
        head.service = self._snapshot.service
        head.version = self.version
        head.recovering = self._snapshot.is_recovering
        return b"".join((head.SerializeToString(), *map(self._record, instances)))

    def _record(self, instance: Instance) -> bytes:
        record = self._records.get(instance.id)
        if record is None:
            wire = instance.to_wire().SerializeToString()
            record = self._records[instance.id] = key(_INSTANCES, len(wire)) + wire
        return record


def _size(snapshot: Snapshot) -> int:
    """Return the entries of a whole set."""
    return len(snapshot.instances) + len(snapshot.departed)


def _differing(before: Sequence[Instance], after: Sequence[Instance]) -> Iterator[str]:
    """Yield the ids of what is new, gone or another record; both are ordered by id.

    Records are compared by identity: this is done for each version of large sets of which
    little changes, and the lease table keeps the object of a record that stays.
    """
    start = _alike(before, after)
    end = _alike(before[start:][::-1], after[start:][::-1])
    old = {one.id: one for one in before[start : len(before) - end]}
    for instance in after[start : len(after) - end]:
        if old.pop(instance.id, None) is not instance:
            yield instance.id
    yield from old


def _alike(one: Sequence[Instance], other: Sequence[Instance]) -> int:
    """Return with how many of the same objects both begin."""
    differs = (at for at, is_same in enumerate(map(is_, one, other)) if not is_same)
    return next(differs, min(len(one), len(other)))

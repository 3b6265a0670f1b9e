"""Instance sets as they are pushed: all of a service's instances, or what a subscriber lacks.

Of each service that is watched, a journal knows when each instance last changed; the difference
from any version it reaches back to is the newest record of each that changed since, and the ids
that are gone. The journal has as many entries as there are instances, no more: a difference
from further back would be no smaller than the whole set.

Pure. It does not know who has what: `pushes` says from which version a difference is wanted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from operator import attrgetter, is_

from meshrpc.registry.instance import Instance
from meshrpc.registry.leases import LeaseTable
from meshrpc.v1 import control_pb2

_id = attrgetter("id")


class InstanceSets:
    """What the watchers of each service are sent.

    Args:
        leases: where the instances are read.
    """

    def __init__(self, leases: LeaseTable) -> None:
        self._leases = leases
        self._journals: dict[tuple[str, str], _Journal] = {}

    def __repr__(self) -> str:
        return f"<InstanceSets services={len(self._journals)}>"

    def newest(self, namespace: str, service: str, base: int = 0) -> control_pb2.InstanceSet:
        """Return what brings a subscriber that has version `base` to the newest one.

        All instances when it has none (0), when the difference is not known any more, or when
        that is not smaller. One set goes to many: don't change it.
        """
        key = (namespace, service)
        version = self._leases.version(namespace, service)
        instances = self._leases.snapshot(namespace, service).instances
        journal = self._journals.get(key)
        if journal is None:
            journal = self._journals[key] = _Journal(service, version, instances)
        elif journal.version != version:
            journal.advance(version, instances)
        return journal.since(base)

    def forget(self, namespace: str, service: str) -> None:
        """Keep nothing of a service that nobody watches."""
        self._journals.pop((namespace, service), None)


class _Journal:
    """The instances of one service, and at which version each last changed."""

    def __init__(self, service: str, version: int, instances: tuple[Instance, ...]) -> None:
        self.version = version
        self._service = service
        self._instances = instances
        self._reaches = version
        """The oldest version from which the difference is known."""
        self._changed: dict[str, int] = {}
        """The version at which each id last changed, oldest first."""
        self._made: dict[int, control_pb2.InstanceSet] = {}
        """Sets of this version by their base: one is made for all who need the same."""

    def advance(self, version: int, instances: tuple[Instance, ...]) -> None:
        for id_ in _differing(self._instances, instances):
            self._changed.pop(id_, None)  # to the end
            self._changed[id_] = version
        too_many = max(0, len(self._changed) - len(instances))
        for id_ in list(islice(self._changed, too_many)):
            self._reaches = self._changed.pop(id_)
        self.version = version
        self._instances = instances
        self._made.clear()

    def since(self, base: int) -> control_pb2.InstanceSet:
        if base not in self._made:
            made = self._whole() if base == 0 else self._difference(base) or self.since(0)
            self._made[base] = made
        return self._made[base]

    def _whole(self) -> control_pb2.InstanceSet:
        return control_pb2.InstanceSet(
            service=self._service,
            version=self.version,
            instances=[instance.to_wire() for instance in self._instances],
        )

    def _difference(self, base: int) -> control_pb2.InstanceSet | None:
        """Return what changed after `base`; None: not known, or no smaller than the whole set."""
        if base < self._reaches:
            return None
        changes = reversed(self._changed.items())
        ids = [id_ for id_, _ in takewhile(lambda change: change[1] > base, changes)]
        if len(ids) >= len(self._instances):
            return None
        made = control_pb2.InstanceSet(service=self._service, version=self.version, base=base)
        for id_ in ids:
            at = bisect_left(self._instances, id_, key=_id)
            if at < len(self._instances) and self._instances[at].id == id_:
                made.instances.append(self._instances[at].to_wire())
            else:
                made.removed.append(id_)
        return made


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

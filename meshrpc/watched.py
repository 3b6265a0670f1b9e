"""One resource that this process watches: what is known of it, and who listens.

Several watches share a resource. All of them hold the same value at all times: one that refuses
a new value keeps it from the others too. A value that is no news is not told.

Instances may come as the difference from the set that is known. The cost of one is that of what
changed and a copy of the tuple; the records that stay are the same objects before and after. A
record that cannot be used is left out, and said to be; the others are taken.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import islice
from operator import attrgetter
from typing import Generic, TypeVar

from meshrpc.registry.departures import OF_ONE_SERVICE
from meshrpc.registry.instance import Instance
from meshrpc.registry.registry import Snapshot
from meshrpc.settings import dialable
from meshrpc.v1 import control_pb2, registry_pb2

T = TypeVar("T")

_id = attrgetter("id")


class DoesNotFit(ValueError):
    """A difference from a set that is not the one known here."""


class Resource(Generic[T]):
    """One policy or instance set: what is known of it, and who listens."""

    __slots__ = ("is_known", "listeners", "value")

    def __init__(self) -> None:
        self.listeners: list[ResourceWatch[T]] = []
        self.is_known = False
        self.value: T

    def catch_up(self, watch: ResourceWatch[T]) -> None:
        if self.is_known:
            watch.listener(self.value)

    def offer(self, value: T) -> None:
        """Tell all who listen, if it is news; when one refuses, all go back to what was known."""
        if not self.is_known or self.is_news(value):
            self._tell(value)
        self.value = value
        self.is_known = True

    def is_news(self, value: T) -> bool:
        """Whether a value says anything that the one known does not."""
        return value != self.value

    def _tell(self, value: T) -> None:
        told: list[ResourceWatch[T]] = []
        try:
            # Asked anew each time: a listener may open or close watches of this resource.
            while watch := next((one for one in self.listeners if one not in told), None):
                told.append(watch)
                watch.listener(value)
        except BaseException:
            if self.is_known:
                for watch in told[:-1]:
                    watch.listener(self.value)
            raise


class WatchedInstances(Resource[Snapshot]):
    """The instances of one service, ordered by id, as control sends them."""

    __slots__ = ("_departed", "_service", "_skipped", "version")

    def __init__(self, service: str) -> None:
        super().__init__()
        self.version = 0
        """What control calls the set that is known; 0: nothing of what it has said is known.

        Whoever finds another control service sets it back: each counts for itself.
        """
        self._service = service
        self._departed: dict[str, None] = {}
        """Ids of those that deregistered, who did last at the end."""
        self._skipped: dict[str, str] = {}
        """Why records were left out, by id."""

    def is_news(self, value: Snapshot) -> bool:
        """Whether another snapshot says more: also that one who had vanished has departed."""
        known = self.value
        return (
            value != known or value.skipped != known.skipped or not value.departed <= known.departed
        )

    def take(self, wire: control_pb2.InstanceSet) -> None:
        """Offer the set, or what it makes of the one that is known.

        Raises:
            DoesNotFit: it is a difference from another set.
        """
        is_difference = wire.base != 0
        if is_difference and wire.base != self.version:
            raise DoesNotFit(
                f"a difference from version {wire.base} does not fit version {self.version}"
            )
        usable, bad = _read(wire.instances)
        departed = dict.fromkeys(wire.departed)
        if is_difference:
            instances = self._changed(usable, (*wire.removed, *bad))
            good = {*wire.removed, *usable}
            bad = {id_: why for id_, why in self._skipped.items() if id_ not in good} | bad
            departed = self._departed | departed
        else:
            instances = self._whole(usable)
        for id_ in usable:
            departed.pop(id_, None)
        for id_ in list(islice(departed, max(0, len(departed) - OF_ONE_SERVICE))):
            del departed[id_]
        self.offer(
            Snapshot(
                self._service,
                instances,
                departed=frozenset(departed),
                is_recovering=wire.recovering,
                skipped=tuple(bad.values()),
            )
        )
        self.version, self._departed, self._skipped = wire.version, departed, bad

    def _changed(
        self, changed: dict[str, Instance], removed: Iterable[str]
    ) -> tuple[Instance, ...]:
        instances = list(self.value.instances)
        for id_ in removed:
            at = bisect_left(instances, id_, key=_id)
            if at < len(instances) and instances[at].id == id_:
                del instances[at]
        for instance in changed.values():
            at = bisect_left(instances, instance.id, key=_id)
            if at == len(instances) or instances[at].id != instance.id:
                instances.insert(at, instance)
            elif instances[at] != instance:
                instances[at] = instance
        return tuple(instances)

    def _whole(self, given: dict[str, Instance]) -> tuple[Instance, ...]:
        known = {one.id: one for one in self.value.instances} if self.is_known else {}
        instances = []
        for instance in sorted(given.values(), key=_id):
            old = known.get(instance.id, instance)
            instances.append(old if old == instance else instance)
        return tuple(instances)


def _read(
    records: Iterable[registry_pb2.Instance],
) -> tuple[dict[str, Instance], dict[str, str]]:
    """Return the records that can be used, and why the others cannot, both by id."""
    usable: dict[str, Instance] = {}
    bad: dict[str, str] = {}
    for wire in records:
        if not wire.id:
            # Each counts, and none of them can be named but by what it says.
            bad[f" {wire.address}"] = f"a record for {wire.address!r} has no id"
            continue
        try:
            dialable(wire.address)
        except ValueError as error:
            bad[wire.id] = f"instance {wire.id!r}: address {wire.address!r}: {error}"
            continue
        usable[wire.id] = Instance.from_wire(wire)
    return usable, bad


class ResourceWatch(Generic[T]):
    """One listener of a resource."""

    __slots__ = ("_on_close", "_resource", "is_closed", "listener", "why_silent")

    def __init__(
        self,
        resource: Resource[T],
        listener: Callable[[T], None],
        on_close: Callable[[], None],
        why_silent: Callable[[], str | None],
    ) -> None:
        self.listener = listener
        self.is_closed = False
        self.why_silent = why_silent
        """Returns why control does not answer just now; None while it does."""
        self._resource = resource
        self._on_close = on_close

    def close(self) -> None:
        """Stop listening."""
        if self.is_closed:
            return
        self.is_closed = True
        self._resource.listeners.remove(self)
        if not self._resource.listeners:
            self._on_close()

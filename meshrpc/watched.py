"""One resource that this process watches: what is known of it, and who listens.

Several watches share a resource. All of them hold the same value at all times: one that refuses
a new value keeps it from the others too. A value that is no news is not told.

Instances may come as the difference from the set that is known. The cost of one is that of what
changed and a copy of the tuple; the records that stay are the same objects before and after.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from operator import attrgetter
from typing import Generic, TypeVar

from meshrpc.registry.instance import Instance
from meshrpc.v1 import control_pb2

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
        if self.is_known and value == self.value:
            return
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
        self.value = value
        self.is_known = True


class WatchedInstances(Resource[tuple[Instance, ...]]):
    """The instances of one service, ordered by id, as control sends them."""

    __slots__ = ("version",)

    def __init__(self) -> None:
        super().__init__()
        self.version = 0
        """What the stream in use calls the set that is known; 0: nothing has come on it yet.

        Whoever opens another stream sets it back: each control service counts for itself.
        """

    def take(self, wire: control_pb2.InstanceSet) -> None:
        """Offer the set, or what it makes of the one that is known.

        Raises:
            DoesNotFit: it is a difference from another set.
        """
        if wire.base:
            if wire.base != self.version:
                raise DoesNotFit(
                    f"a difference from version {wire.base} does not fit version {self.version}"
                )
            instances = self._changed(wire)
        else:
            instances = self._whole(wire)
        self.offer(instances)
        self.version = wire.version

    def _changed(self, wire: control_pb2.InstanceSet) -> tuple[Instance, ...]:
        instances = list(self.value)
        for id_ in wire.removed:
            at = bisect_left(instances, id_, key=_id)
            if at < len(instances) and instances[at].id == id_:
                del instances[at]
        for instance in map(Instance.from_wire, wire.instances):
            at = bisect_left(instances, instance.id, key=_id)
            if at == len(instances) or instances[at].id != instance.id:
                instances.insert(at, instance)
            elif instances[at] != instance:
                instances[at] = instance
        return tuple(instances)

    def _whole(self, wire: control_pb2.InstanceSet) -> tuple[Instance, ...]:
        known = {one.id: one for one in self.value} if self.is_known else {}
        instances = []
        for instance in map(Instance.from_wire, wire.instances):
            old = known.get(instance.id, instance)
            instances.append(old if old == instance else instance)
        return tuple(instances)


class ResourceWatch(Generic[T]):
    """One listener of a resource."""

    __slots__ = ("_on_close", "_resource", "is_closed", "listener")

    def __init__(
        self,
        resource: Resource[T],
        listener: Callable[[T], None],
        on_close: Callable[[], None],
    ) -> None:
        self.listener = listener
        self.is_closed = False
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

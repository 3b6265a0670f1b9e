"""One resource that this process watches: what is known of it, and who listens.

Several watches share a resource. All of them hold the same value at all times: one that refuses
a new value keeps it from the others too. A value that is no news is not told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


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

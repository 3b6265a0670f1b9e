"""Discovery: what the registry says of a service, and of those that call it.

Two watches: one on the service's instances, and, as long as somebody asks where the other callers
are, one on the instances of the calling service. What follows from what they say is the
destination's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, runtime_checkable

from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import Registry, Snapshot, Watch


@runtime_checkable
class _Explaining(Protocol):
    """A watch that knows why its registry has not answered yet."""

    def why_silent(self) -> str | None: ...


class Discovery:
    """What is known of one service as one other calls it."""

    def __init__(self, service: str, caller: str) -> None:
        self.instances: tuple[Instance, ...] = ()
        """All that the registry has, in any state."""
        self.is_known = False
        """Whether the registry has answered."""
        self._service = service
        self._caller = caller
        self._zones: Mapping[str | None, int] = {}
        self._registry: Registry | None = None
        self._watch: Watch | None = None
        self._callers: Watch | None = None

    def __repr__(self) -> str:
        known = f"instances={len(self.instances)}" if self.is_known else "not answered yet"
        return f"<Discovery {self._service} {known}>"

    def open(self, registry: Registry, on_snapshot: Callable[[Snapshot], None]) -> None:
        """Begin to follow the service; `on_snapshot` hands to `take_in` what it is given."""
        self._registry = registry
        self._watch = registry.watch(self._service, on_snapshot)

    def take_in(self, snapshot: Snapshot) -> tuple[Instance, ...]:
        """Take note of a change; return the instances that were there before.

        The first ones have been there, for all that is known.
        """
        before = self.instances if self.is_known else snapshot.instances
        self.is_known = True
        self.instances = snapshot.instances
        return before

    def follow_callers(self, on_callers: Callable[[Mapping[str | None, int]], None] | None) -> None:
        """Call `on_callers` with the callers' count in each zone when it changes; None: no more."""
        wanted = on_callers is not None and self._registry is not None
        if not wanted and self._callers is not None:
            self._callers.close()
            self._callers = None
        elif wanted and self._callers is None:
            assert self._registry is not None and on_callers is not None  # noqa: S101, PT018
            told = partial(self._on_callers, on_callers)
            self._callers = self._registry.watch(self._caller, told)

    def close(self) -> None:
        """Follow nobody any more."""
        for watch in (self._watch, self._callers):
            if watch is not None:
                watch.close()
        # They know whom they tell, which knows this.
        self._watch = self._callers = self._registry = None

    def why_silent(self) -> str:
        """Return, for people, why nothing is known."""
        cause = self._watch.why_silent() if isinstance(self._watch, _Explaining) else None
        return cause or "the registry has not answered"

    def _on_callers(
        self, on_callers: Callable[[Mapping[str | None, int]], None], snapshot: Snapshot
    ) -> None:
        zones = Counter(each.zone for each in snapshot.instances if each.state is State.ACTIVE)
        if zones != self._zones:
            self._zones = zones
            on_callers(zones)

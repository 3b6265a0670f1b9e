"""Discovery: what is believed of a service's instances, and of those that call it.

The registry's word is doubted before it is believed (`registry.doubt`). While the registry says
nothing at the start, what this machine last knew takes its place. Two watches: one on the service's
instances, and, as long as somebody asks where the other callers are, one on the instances of the
calling service. What follows from what they say is the destination's business.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter
from collections.abc import Callable, Collection, Container, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

from meshrpc.clock import Clock
from meshrpc.last_known import LastKnown, Remembered
from meshrpc.registry.doubt import Doubt
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import LEASE, Registry, Snapshot, Watch

REMEMBER_AFTER = 0.3
"""Seconds until a registry that has not said anything yet is taken to be away: one that is there
answers within a few hundredths, and nobody should dial yesterday's addresses while it does."""

_log = logging.getLogger("meshrpc.client")


@runtime_checkable
class _Explaining(Protocol):
    """A watch that knows why its registry does not answer just now."""

    def why_silent(self) -> str | None: ...


class Discovery:
    """What is known of one service as one other calls it."""

    def __init__(
        self,
        service: str,
        caller: str,
        clock: Clock,
        alive: Callable[[], Container[str]],
        last_known: LastKnown | None = None,
    ) -> None:
        """`alive` tells the ids of instances that this process can see to be.

        `last_known` is what this machine knew when it last could ask; None: nothing is kept.
        """
        self.has_answered = False
        """Whether the registry has said something that can be believed."""
        self.skipped: tuple[str, ...] = ()
        """Why records are left out, a line each."""
        self.remembered_at: float | None = None
        """When, on this clock, that was so which is believed, if it is remembered; None: it is not."""
        self._why_unknown = "the registry has not answered"
        self._service = service
        self._caller = caller
        self._clock = clock
        self._alive = alive
        self._last_known = last_known
        self._doubt = Doubt()
        self._zones: Mapping[str | None, int] = {}
        self._registry: Registry | None = None
        self._on_change: Callable[[tuple[Instance, ...]], None] = _nothing
        self._watch: Watch | None = None
        self._callers: Watch | None = None
        self._memory: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        known = f"instances={len(self.instances)}" if self.is_known else "nothing is known yet"
        return f"<Discovery {self._service} {known}>"

    @property
    def instances(self) -> tuple[Instance, ...]:
        """All that are believed in, in any state, ordered by id."""
        return self._doubt.instances

    @property
    def is_known(self) -> bool:
        """Whether anything is known: the registry has answered, or it is remembered."""
        return self.has_answered or self.remembered_at is not None

    def age(self) -> float | None:
        """Return the seconds since that was so which is believed, if it is remembered."""
        at = self.remembered_at
        return None if at is None else self._clock.now() - at

    def open(self, registry: Registry, on_change: Callable[[tuple[Instance, ...]], None]) -> None:
        """Begin to follow the service. `on_change` is given the instances that were there before.

        The first ones have been there, for all that is known.
        """
        self._registry = registry
        self._on_change = on_change
        self._watch = registry.watch(self._service, self.take_in)
        if self._last_known is not None and not self.has_answered:
            self._memory = self._start(self._remember(self._last_known))

    def failed(self, ids: Collection[str]) -> None:
        """Take note that instances do not answer: those that were held are believed to be gone."""
        before = self.instances
        if ended := self._doubt.failed(ids):
            ids_ = ", ".join(ended)
            _log.info("held no longer, for they fail: %s of %s", ids_, self._service)
            self._tell(before)

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

    async def close(self) -> None:
        """Follow nobody any more."""
        for watch in (self._watch, self._callers):
            if watch is not None:
                watch.close()
        # They know whom they tell, which knows this.
        self._watch = self._callers = self._registry = None
        self._on_change, self._alive = _nothing, frozenset
        tasks = [task for task in (self._memory, self._timer) if task is not None]
        self._memory = self._timer = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def why_silent(self) -> str | None:
        """Return, for people, why the registry does not answer just now; None: it does."""
        cause = self._watch.why_silent() if isinstance(self._watch, _Explaining) else None
        return cause or (None if self.has_answered else self._why_unknown)

    def take_in(self, snapshot: Snapshot) -> None:
        """Believe what the registry says now, as far as that goes; this is what it calls."""
        if self._last_known is not None and not (self.is_known or snapshot.instances):
            self._recall(self._last_known.instances(self._service), "the registry lists none")
        before = self.instances if self.is_known else snapshot.instances
        held = self._count_held()
        self._doubt.take_in(snapshot, self._clock.now())
        # One that has just started and heard of nobody yet has not said that there is nobody.
        self.has_answered |= bool(self.instances) or not snapshot.is_recovering
        self._why_unknown = "the registry has just started, and lists none yet"
        self.remembered_at = None
        self.skipped = snapshot.skipped
        if (now_held := self._count_held()) > held:
            _log.warning(
                "%d instances of %s vanished from the registry without a word: they are held "
                "until they fail or register again",
                now_held,
                self._service,
            )
        self._tell(before)
        if self._last_known is not None:
            is_partial = snapshot.is_recovering
            self._last_known.keep_instances(self._service, self.instances, is_partial=is_partial)

    def _tell(self, before: tuple[Instance, ...]) -> None:
        self._on_change(before)
        is_open = self._registry is not None  # endpoints still close, and fail, when it is not
        if is_open and self._timer is None and self._doubt.next_change() is not None:
            self._timer = self._start(self._advance())

    async def _remember(self, last_known: LastKnown) -> None:
        await self._clock.sleep(REMEMBER_AFTER)
        if self.has_answered:
            return
        # Of thousands of instances that takes a while.
        remembered = await asyncio.to_thread(last_known.instances, self._service)
        if not self.has_answered and self._recall(remembered, self.why_silent()):
            self._tell(self.instances)

    def _recall(self, remembered: Remembered[tuple[Instance, ...]] | None, why: str | None) -> bool:
        """Believe in what was last known, if there is such a thing."""
        if remembered is None or not remembered.value:
            return False
        number, ago = len(remembered.value), remembered.ago
        _log.warning(
            "using %d instances of %s as they were %s: %s", number, self._service, ago, why
        )
        now = self._clock.now()
        self.remembered_at = now - remembered.age
        # As from a registry that may not have heard of everybody yet.
        self._doubt.take_in(Snapshot(self._service, remembered.value, is_recovering=True), now)
        return True

    async def _advance(self) -> None:
        """End the holds as they run out. While the registry is away they do not."""
        while (due := self._doubt.next_change()) is not None:
            await self._clock.sleep(max(0.0, due - self._clock.now()))
            now, before = self._clock.now(), self.instances
            if self.why_silent() is not None:
                self._doubt.postpone(now + LEASE)
            elif self._doubt.advance(now, self._alive()):
                _log.warning("instances of %s are held no longer: nobody came back", self._service)
                self._on_change(before)
        self._timer = None

    def _count_held(self) -> int:
        return sum(each.state is State.HELD for each in self.instances)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.create_task(work, context=contextvars.Context())

    def _on_callers(
        self, on_callers: Callable[[Mapping[str | None, int]], None], snapshot: Snapshot
    ) -> None:
        zones = Counter(each.zone for each in snapshot.instances if each.takes_calls)
        if zones != self._zones:
            self._zones = zones
            on_callers(zones)


def _nothing(before: tuple[Instance, ...]) -> None:
    pass

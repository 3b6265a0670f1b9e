"""A clock that stands still until a test moves it.

Everything that sleeps on it is a timer in a heap. Advancing goes from timer to timer, each at its
own time, and lets everything run in between that can: the event loop's own work by giving it
turns, and what goes over real sockets by watching whoever knows (`Traffic`) until nothing moves
any more. While no call is under way nothing is waited for, so that a virtual minute takes
milliseconds. It lives in one event loop at a time and is not thread-safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from meshrpc.testing.threads import another_runs

T = TypeVar("T")

LONGEST_RUN = 3600.0
"""Virtual seconds that `run` goes on for, unless told otherwise."""
LONGEST_WAIT = 5.0
"""Real seconds that one step waits for real I/O."""

_TURNS = 50
"""Turns of the event loop in which all that waits only for its turn is over."""
_LOOK_EVERY = 0.001
_STILL = 5
"""Real seconds between two looks at the traffic, and looks without a change that mean silence."""
_LONGEST_SILENT = 200
"""Looks during which threads may be at work before anything of it is seen. It bounds what a thread
costs that is always at work, and has nothing to do with the traffic. It is no time: while the
whole process stands still nothing is at work."""
_SAME = 1e-9
"""Ten steps of 0.1 s are to reach a timer of 1 s, whatever floats make of that."""


class Traffic(Protocol):
    """What a clock has to know of real I/O, so as not to outrun it."""

    def is_under_way(self) -> bool:
        """Return whether there is anything to wait for at all: a call that is not over."""
        ...

    def is_busy(self) -> bool:
        """Return whether something is at work that cannot be seen to move, such as a thread."""
        ...

    def progress(self) -> object:
        """Return something that is another thing whenever anything has moved."""
        ...


@dataclass(order=True, slots=True)
class _Timer:
    at: float
    order: int
    wake: Callable[[], object] = field(compare=False)
    in_background: bool = field(compare=False)
    """Whether the mesh's own upkeep set it, such as a renewal. What serves a call, or tests, runs
    in a context that has something in it; upkeep starts from an empty one."""
    is_cancelled: bool = field(default=False, compare=False)


class VirtualClock:
    """A `meshrpc.clock.Clock` for tests.

    Args:
        start: what `now()` is at first, in seconds.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self.traffic: Traffic | None = None
        """Who knows of real I/O to wait for; a `LocalMesh` sets it."""
        self._now = start
        self._order = itertools.count()
        self._timers: list[_Timer] = []

    def __repr__(self) -> str:
        waiting = sum(not timer.is_cancelled for timer in self._timers)
        return f"<VirtualClock {self._now:g} timers={waiting}>"

    def now(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Return once the clock was moved by `seconds`; at once, after a turn, for none."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self._set(seconds, wake)
        try:
            await woken
        finally:
            timer.is_cancelled = True

    @contextlib.asynccontextmanager
    async def timeout(self, seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
        """Raise TimeoutError out of the block once the clock was moved by `seconds`."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as timeout:
            if seconds is None:
                yield timeout
                return
            timer = self._set(seconds, lambda: timeout.reschedule(loop.time()))
            if seconds <= 0:
                timer.wake()
                timer.is_cancelled = True
            try:
                yield timeout
            finally:
                timer.is_cancelled = True

    def is_waited_for(self) -> bool:
        """Return whether anybody sleeps on this clock, the mesh's own upkeep aside."""
        return any(not (timer.is_cancelled or timer.in_background) for timer in self._timers)

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`, waking whoever comes due on the way, in order, at its own time.

        Raises:
            ValueError: `seconds` is below 0.
        """
        if seconds < 0:
            raise ValueError(f"a clock moves on, never back: {seconds!r}")
        until = self._now + seconds
        await self.settle()
        while await self._step(until):
            pass
        self._now = max(self._now, until)

    async def run(self, awaitable: Awaitable[T], *, limit: float = LONGEST_RUN) -> T:
        """Move on from timer to timer until `awaitable` is done, and return its result.

        Raises:
            TimeoutError: it is not done after `limit` virtual seconds, or waits for nothing that
                moving this clock brings about; it is cancelled then.
        """
        started = self._now
        task = asyncio.ensure_future(awaitable)
        try:
            await self.settle()
            while not task.done():
                if not self.is_waited_for():
                    # Nobody's time is waited for, so it may be something real.
                    await asyncio.wait([task], timeout=_STILL * _LOOK_EVERY)
                if task.done() or not await self._step(started + limit):
                    break
            if not task.done():
                # Timers come to nothing; perhaps something real does.
                await asyncio.wait([task], timeout=LONGEST_WAIT)
            if not task.done():
                raise TimeoutError(
                    f"not done after {self._now - started:g} virtual seconds, nor by "
                    f"{LONGEST_WAIT:g} real ones after them: {task!r}"
                )
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    async def settle(self) -> None:
        """Let everything run that waits for no timer, what goes over sockets included."""
        await self._give_turns()
        traffic = self.traffic
        if traffic is None or not _is_moving(traffic):
            return
        loop = asyncio.get_running_loop()
        give_up = loop.time() + LONGEST_WAIT
        seen, still, silent = traffic.progress(), 0, 0
        while still < _STILL and _is_moving(traffic) and loop.time() < give_up:
            await asyncio.sleep(_LOOK_EVERY)
            before, seen = seen, traffic.progress()
            if seen != before or traffic.is_busy():
                still = silent = 0
            elif silent < _LONGEST_SILENT and another_runs():
                still = 0
                silent += 1
            else:
                still += 1
        await self._give_turns()

    async def _step(self, until: float) -> bool:
        """Go to the next timer and wake it; False when there is none until then."""
        while self._timers and self._timers[0].is_cancelled:
            heapq.heappop(self._timers)
        if not self._timers or self._timers[0].at > until + _SAME:
            return False
        timer = heapq.heappop(self._timers)
        self._now = max(self._now, timer.at)
        traffic = self.traffic
        before = traffic.progress() if traffic is not None else None
        timer.wake()
        if timer.in_background and traffic is not None:
            await self._give_turns()
            if traffic.progress() == before and not traffic.is_busy():
                return True
        await self.settle()
        return True

    def _set(self, seconds: float, wake: Callable[[], object]) -> _Timer:
        in_background = not contextvars.copy_context()
        timer = _Timer(self._now + seconds, next(self._order), wake, in_background)
        heapq.heappush(self._timers, timer)
        return timer

    async def _give_turns(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)


def _is_moving(traffic: Traffic) -> bool:
    return traffic.is_under_way() or traffic.is_busy()

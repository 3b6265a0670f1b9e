"""How busy an event loop is, and how long what is due has to wait for it.

The busy share is the part of wall time in which the loop is not waiting in its selector: a
handler that blocks counts for as long as it does, one that awaits does not. A loop without a
selector of Python's (uvloop) is measured by the CPU time of its thread, which misses what blocks
without computing. The queue time is how late a heartbeat runs on average. Beats that a blocked
loop missed count as well, or the longest waits would be seen the least.

One measure per loop, shared by all who `join` it, begun by the first and ended with the last.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from meshrpc.telemetry.totals import Totals

BEAT: Final = 0.05
"""Seconds between heartbeats: forty in a `WINDOW`, and twenty wake-ups a second cost next to
nothing."""
WINDOW: Final = 2.0
"""Seconds a load is averaged over, where callers follow it. Callers work their weights out anew
every second: much shorter, and they would chase single calls; much longer, and they would go on
correcting what they have corrected already."""
LONG_WINDOW: Final = 10.0
"""Seconds that can be asked for at most; for what is published, so that chance changes little."""
AT_LEAST: Final = 0.5
"""Seconds of measuring before there is anything to tell."""

OnBeat = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Usage:
    """How a loop was used over some time."""

    busy: float
    """The part of the time in which it was not waiting, as a fraction of 1."""
    queue_time: float
    """How long what was due waited on average, in seconds."""
    cpu: float
    """The CPU time of the whole process, as a fraction of one core; above 1 with several."""


class LoopLoad:
    """The measure of one event loop. Use it in that loop; `join` makes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._users: list[OnBeat] = []
        self._totals = Totals(LONG_WINDOW)
        self._busy: _Busy
        self._late = 0.0
        self._beats = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        usage = self.over(WINDOW) if self._timer is not None else None
        state = "not known yet" if usage is None else f"busy={usage.busy:.2f}"
        return f"<LoopLoad {state} users={len(self._users)}>"

    def now(self) -> float:
        """Return the time by which it measures, in seconds."""
        return time.monotonic()

    def over(self, seconds: float) -> Usage | None:
        """Return the usage of the last `seconds`; None until there are `AT_LEAST` to tell of."""
        now = self.now()
        elapsed, grown = self._totals.growth(now, self._sample(now), min(seconds, LONG_WINDOW))
        if elapsed < AT_LEAST:
            return None
        busy, late, beats, cpu = grown
        return Usage(
            busy=min(1.0, max(0.0, busy / elapsed)),
            queue_time=late / beats if beats else 0.0,
            cpu=max(0.0, cpu / elapsed),
        )

    def leave(self, on_beat: OnBeat) -> None:
        """Take back what was given to `join`; the last one to leave ends the measure."""
        self._users.remove(on_beat)
        if not self._users:
            self._end()

    def _add(self, on_beat: OnBeat) -> None:
        self._users.append(on_beat)
        if self._timer is None:
            self._busy = _busy_of(self.loop)
            now = self.now()
            self._totals.note(now, self._sample(now))
            self._due = now + BEAT
            self._set_timer(now)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._busy.end()
        if _MEASURES.get(id(self.loop)) is self:
            del _MEASURES[id(self.loop)]

    def _set_timer(self, now: float) -> None:
        self._timer = self.loop.call_later(
            max(0.0, self._due - now), self._beat, context=contextvars.Context()
        )

    def _beat(self) -> None:
        now = self.now()
        late = max(0.0, now - self._due)
        # The beats missed meanwhile would have been late too, each by one interval less.
        missed = math.floor(late / BEAT)
        self._beats += missed + 1
        self._late += (missed + 1) * late - BEAT * missed * (missed + 1) / 2
        self._due += (missed + 1) * BEAT
        self._totals.note(now, self._sample(now))
        for on_beat in tuple(self._users):
            on_beat(now)
        if self._users:
            self._set_timer(now)

    def _sample(self, now: float) -> tuple[float, ...]:
        return self._busy.seconds(now), self._late, self._beats, time.process_time()


# By the loop's id, and without keeping either alive: the users do, and the loop's own timer.
_MEASURES: weakref.WeakValueDictionary[int, LoopLoad] = weakref.WeakValueDictionary()


def join(on_beat: OnBeat) -> LoopLoad:
    """Return the measure of the running loop, and have `on_beat` called with the time at each beat.

    To be given back with `leave`, in the same loop.
    """
    loop = asyncio.get_running_loop()
    found = _MEASURES.get(id(loop))
    if found is None or found.loop is not loop:
        found = _MEASURES[id(loop)] = LoopLoad(loop)
    found._add(on_beat)  # noqa: SLF001 - the one who makes it
    return found


class _Busy(Protocol):
    """How long a loop was busy, in seconds since some point."""

    def seconds(self, now: float) -> float: ...

    def end(self) -> None: ...


def _busy_of(loop: asyncio.AbstractEventLoop) -> _Busy:
    selector = getattr(loop, "_selector", None)
    return _ThreadTime() if selector is None else _SelectorWaits(selector)


class _SelectorWaits:
    """All the time that a loop spends outside of `select`."""

    def __init__(self, selector: Any) -> None:
        self._selector = selector
        self._waited = 0.0
        self._replaced = vars(selector).get("select")
        before = selector.select
        clock = time.monotonic

        def select(timeout: float | None = None) -> Any:
            if timeout is not None and timeout <= 0:
                return before(timeout)  # there is work to do: it only looks
            began = clock()
            try:
                return before(timeout)
            finally:
                self._waited += clock() - began

        self._select = selector.select = select

    def seconds(self, now: float) -> float:
        return now - self._waited

    def end(self) -> None:
        # Somebody may have put something of their own round it since; then it stays underneath.
        if vars(self._selector).get("select") is not self._select:
            return
        del self._selector.select
        if self._replaced is not None:
            self._selector.select = self._replaced


class _ThreadTime:
    """The CPU time of the loop's thread."""

    def seconds(self, now: float) -> float:  # noqa: ARG002 - as the other one
        return time.thread_time()

    def end(self) -> None:
        pass

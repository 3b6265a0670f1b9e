"""The timer of a stream that may be idle for so long and no longer.

A message that passes costs one look at the clock: the one timer of a stream is not moved by it,
but finds, when it is due, how much is left, and waits for that. It holds nobody. Whoever it is for
holds it, and when that goes, forgotten or not, so does the timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import weakref
from typing import TYPE_CHECKING, Protocol

from meshrpc.clock import Clock, SystemClock

if TYPE_CHECKING:
    from meshrpc.client.destination import Destination

_SLACK = 0.001
"""Seconds by which a timer may come early: event loops have clocks of their own."""
_LATE = 0.1
"""Seconds after which a timer comes late: the loop stood still, and has to see first what has come
meanwhile. It has as many seconds for that."""


class Idler(Protocol):
    """The stream that a timer is for."""

    def may_idle(self) -> bool:
        """Return whether time in which nothing passes counts just now."""
        ...

    def on_idle(self) -> None:
        """Take note that nothing has passed for too long."""
        ...


class IdleTimer:
    """Tells a stream when no message has passed for `seconds`.

    Time counts from `begin`, and anew from every `passed`. When it is up at a moment at which it
    does not count, the timer rests until the next `begin`.
    """

    __slots__ = ("__weakref__", "_clock", "_destination", "_last", "_seconds", "_timer", "_who")

    def __init__(self, seconds: float, destination: Destination, who: Idler) -> None:
        self._seconds = seconds
        self._destination = destination
        self._clock: Clock = destination.clock
        self._who = weakref.ref(who)
        self._last = 0.0
        self._timer: asyncio.TimerHandle | asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "resting" if self._timer is None else f"idle for {self._clock.now() - self._last:g}"
        return f"<IdleTimer {self._seconds:g} s, {state}>"

    def __del__(self) -> None:
        # With a stream that nobody holds any more, in any thread.
        if self._timer is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its timers with it
                self._destination.loop.call_soon_threadsafe(self._timer.cancel)

    def begin(self) -> None:
        """Count from now."""
        self._last = self._clock.now()
        if self._timer is None:
            self._wait(self._seconds)

    def passed(self) -> None:
        """Take note that a message has passed."""
        self._last = self._clock.now()

    def stop(self) -> None:
        """Count no more: the stream is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """See whether the time is up; called when it may be."""
        self._timer = None
        stream = self._who()
        if stream is None or not stream.may_idle():
            return
        now = self._clock.now()
        left = self._last + self._seconds - now
        if left < -_LATE:
            left, self._last = _LATE, now + _LATE - self._seconds
        if left > _SLACK:
            self._wait(left)
        else:
            stream.on_idle()

    def _wait(self, seconds: float) -> None:
        who, context = weakref.ref(self), contextvars.Context()
        if isinstance(self._clock, SystemClock):
            loop = self._destination.loop
            self._timer = loop.call_later(seconds, _look, who, context=context)
        else:
            waiting = _look_after(self._clock, seconds, who)
            self._timer = self._destination.wait(waiting, context)


def _look(who: weakref.ref[IdleTimer]) -> None:
    timer = who()
    if timer is not None:
        timer.look()


async def _look_after(clock: Clock, seconds: float, who: weakref.ref[IdleTimer]) -> None:
    await clock.sleep(seconds)
    _look(who)

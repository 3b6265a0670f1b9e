"""Gradient: how many handlers run at a time, found out by how much slower they have become.

Gradient2 of Netflix's concurrency-limits (tolerance 1.5, gradient between 0.5 and 1, headroom, no
growth while less than half of the limit is used). It differs in two ways. It starts at the top,
not at 20: a limit may do nothing before there is something to limit. And it comes down from what
is in flight, not from a limit far above that, so that one second says as much as ten. Slowness is
measured per method (`handler_times.py`), where Netflix compares the mean of all calls. Pure.
"""

from __future__ import annotations

import math
from typing import Final

AT_LEAST: Final = 20
"""The limit never goes below, unless told otherwise."""
TOLERANCE: Final = 1.5
"""So many times slower than usual is not slow yet."""
WINDOW: Final = 0.5
"""Seconds after which the limit is looked at again..."""
MIN_CALLS: Final = 10
"""...if as many calls ended in them; else up to `LONGEST_WINDOW` later."""
LONGEST_WINDOW: Final = 5.0
HEADROOM: Final = 4
GROWTH: Final = 1.25
"""A limit that is in use grows to so many times itself per window, by `HEADROOM` at least."""


class Gradient:
    """A limit between `at_least` and `most`."""

    __slots__ = ("_at_least", "_calls", "_ends_at", "_headroom", "_most", "_peak", "limit")

    def __init__(self, most: int, at_least: int = AT_LEAST, headroom: int = HEADROOM) -> None:
        self._at_least = at_least
        self._headroom = headroom
        self._most = max(1, most)
        self.limit = self._most
        self._peak = 0
        self._calls = 0
        self._ends_at = -math.inf

    def __repr__(self) -> str:
        return f"<Gradient limit={self.limit} of {self._most}>"

    def set_most(self, most: int) -> None:
        """Change the upper bound; a limit that was at the old one goes to the new one."""
        is_unlimited = self.limit == self._most
        self._most = max(1, most)
        self.limit = self._most if is_unlimited else min(self.limit, self._most)

    def note(self, now: float, in_flight: int) -> bool:
        """Count a call that ended while so many were in flight, itself too; True: a window is over."""
        self._calls += 1
        self._peak = max(self._peak, in_flight)
        if now < self._ends_at:
            return False
        if self._ends_at + LONGEST_WINDOW < now:  # the first one, or too little came for long
            self._start_window(now)
            return False
        return self._calls >= MIN_CALLS

    def end_window(self, now: float, slowness: float) -> None:
        """Follow what the window has shown: handlers took `slowness` times as long as usual."""
        gradient = max(0.5, min(1.0, TOLERANCE / slowness)) if slowness > 0 else 1.0
        if gradient < 1.0:
            limit = min(self.limit, self._peak) * gradient + self._headroom
            self.limit = min(self.limit, math.ceil(limit))
        elif 2 * self._peak >= self.limit:
            self.limit = math.ceil(max(self.limit + self._headroom, self.limit * GROWTH))
        self.limit = min(max(self.limit, self._at_least), self._most)
        self._start_window(now)

    def _start_window(self, now: float) -> None:
        self._ends_at = now + WINDOW
        self._calls = self._peak = 0

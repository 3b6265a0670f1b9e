"""Handler times: how long handlers of each method usually take, and how quick the quickest are.

What is usual changes slowly, over some minutes, so that a method is not compared with its own
overload. It is kept per method: of a mixture, the mean changes with what is asked for, and that
would look like a change of speed. The quickest is of the last 10 to 20 seconds, and says when a
call has too little time left to be worth beginning; at most a fifth of the calls ends that way
(Finagle's DeadlineFilter), because who refuses all that is short of time never learns that it has
become fast enough. Pure.
"""

from __future__ import annotations

import math
from typing import Final

WARM_UP: Final = 10
LONG: Final = 600
"""Windows: so many are plainly averaged at first; over so many what is usual follows afterwards."""
LATELY: Final = 10.0
"""Seconds; what is known of the quickest goes back once to twice as far."""
MOST_REFUSED: Final = 0.2
"""Of the calls with a deadline, the part that may be refused for it on arrival."""
MOMENT: Final = 0.005
"""Seconds: a wait that is shorter is nobody's overload, and no reason to refuse."""
HALFWAY: Final = 0.1
HANDLERS_LEFT: Final = 8.0
"""A call that has waited for more than half of its time is begun if it has as many seconds left, or as many
times what is usual."""
MOST_METHODS: Final = 4_096
LONGEST_NAME: Final = 256
"""Methods remembered; past that all are forgotten. Servers have few, and short names, but proxies
that answer to any name know no bounds."""

# Netflix: what is usual comes down by itself where it is more than twice what happens now.
_FAR_ABOVE = 2.0
_COME_DOWN = 0.95


class MethodTimes:
    """What is known of one method; seconds."""

    __slots__ = ("_before", "_count", "_fresh", "_seen", "_sum", "_turn_at", "_windows", "usual")

    def __init__(self) -> None:
        self.usual = 0.0
        """How long it takes on average, over some minutes; 0: nobody knows yet."""
        self._windows = 0
        self._sum = 0.0
        self._count = 0
        # The quickest of the current ten seconds, and of those before.
        self._fresh = math.inf
        self._before = math.inf
        self._seen = 0
        self._turn_at = -math.inf

    def __repr__(self) -> str:
        return f"<MethodTimes usual={self.usual * 1000:.1f} ms>"

    def note(self, now: float, seconds: float, *, answered: bool) -> None:
        """Learn how long one call took; `answered`: it did what was asked."""
        self._sum += seconds
        self._count += 1
        if not self._windows:
            self.usual = self._sum / self._count
        if not answered:
            return
        if now >= self._turn_at:
            is_recent = now < self._turn_at + LATELY and self._seen >= WARM_UP
            self._before = self._fresh if is_recent else math.inf
            self._fresh = math.inf
            self._seen = 0
            self._turn_at = now + LATELY
        self._seen += 1
        self._fresh = min(self._fresh, seconds)

    def quickest(self, now: float) -> float:
        """Return the shortest that answered lately; 0 when too little is known of that."""
        if now >= self._turn_at + LATELY:
            return 0.0
        known = self._fresh if self._seen >= WARM_UP else math.inf
        if self._before < math.inf or known < math.inf:
            return min(self._before, self._fresh)
        return 0.0

    def end_window(self) -> tuple[float, float]:
        """Return how long its calls took since the last time, and how long is usual for as many."""
        total, count = self._sum, self._count
        if not count:
            return 0.0, 0.0
        mean = total / count
        before = self.usual
        if self._windows < WARM_UP:
            self.usual = (self._windows * before + mean) / (self._windows + 1)
        else:
            self.usual += (mean - before) * 2 / (LONG + 1)
            if self.usual > _FAR_ABOVE * mean:
                self.usual *= _COME_DOWN
        self._windows += 1
        self._sum, self._count = 0.0, 0
        return total, before * count


class HandlerTimes:
    """What is known of each method that has been called."""

    __slots__ = (
        *("_refused", "_refused_before", "_seen", "_seen_before", "_turn_at"),
        *("methods", "typical"),
    )

    def __init__(self) -> None:
        self.methods: dict[str, MethodTimes] = {}
        self.typical = 0.0
        """How long calls usually take, whatever was called lately; seconds, 0 before the first."""
        # Calls with a deadline, of the current ten seconds and of those before.
        self._seen = self._seen_before = 0
        self._refused = self._refused_before = 0
        self._turn_at = -math.inf

    def __repr__(self) -> str:
        return f"<HandlerTimes {len(self.methods)} methods, {self.typical * 1000:.1f} ms>"

    def note(self, now: float, method: str, seconds: float, *, answered: bool) -> None:
        """Learn how long a handler took; `answered`: it did what was asked."""
        times = self.methods.get(method)
        if times is None:
            if len(method) > LONGEST_NAME:
                return
            if len(self.methods) >= MOST_METHODS:
                self.methods.clear()
            times = self.methods[method] = MethodTimes()
        times.note(now, seconds, answered=answered)
        usual = times.usual
        self.typical += (usual - self.typical) / 16 if self.typical else usual

    def end_window(self) -> float:
        """Return how much slower than usual handlers were since the last time; 1: as usual."""
        taken = usual = 0.0
        for times in self.methods.values():
            its_taken, its_usual = times.end_window()
            taken += its_taken
            usual += its_usual
        return taken / usual if usual else 1.0

    def is_too_late(self, now: float, method: str, remaining: float) -> bool:
        """Whether a call that has just come has too little time left to be begun; counts it."""
        if now >= self._turn_at:
            is_recent = now < self._turn_at + LATELY
            self._seen_before = self._seen if is_recent else 0
            self._refused_before = self._refused if is_recent else 0
            self._seen = self._refused = 0
            self._turn_at = now + LATELY
        self._seen += 1
        times = self.methods.get(method)
        if times is None or remaining >= times.quickest(now):
            return False
        refused = self._refused + self._refused_before + 1
        if refused > MOST_REFUSED * (self._seen + self._seen_before):
            return False
        self._refused += 1
        return True

    def is_hopeless(self, method: str, remaining: float, waited: float) -> bool:
        """Whether a call that has waited would hardly be answered in time any more.

        It has less time left than is usual, or has waited for more than half of it and has less than
        `HANDLERS_LEFT` times that: who serves those that only just make it is served by none in
        time when it goes a little slower. What came with less, and did not have to wait, is begun:
        it may be quicker than usual.
        """
        if waited < MOMENT:
            return False
        times = self.methods.get(method)
        usual = 0.0 if times is None else times.usual
        return remaining < max(usual, min(waited, HALFWAY, HANDLERS_LEFT * usual))

"""When a worker that died is started again: exponential backoff with jitter, and crash loops.

The first death costs next to nothing, a crash loop next to no CPU. A worker that was healthy for
a while has earned a fresh start: its next death is a new story. Many deaths in a short time are a
crash loop whatever the backoff: a state for people to see, which is left once none of them is
recent any more. Pure: time and chance are arguments; the supervisor does the waiting.
"""

from __future__ import annotations

import random
from collections import deque

FIRST_DELAY = 0.1
"""Seconds before the first restart; doubled for each further one."""
LONGEST_DELAY = 30.0
"""Seconds the doubling stops at, before jitter."""
JITTER = 0.2
"""The share by which a delay may be shorter or longer, so that workers that died together do not
come back together."""
HEALTHY_AFTER = 10.0
"""Seconds of readiness after which earlier deaths are forgotten."""
CRASH_LOOP_DEATHS = 5
"""Deaths within `CRASH_LOOP_WINDOW` that make a crash loop: the backoff reaches them within some
seconds if every start fails, and a worker that is killed once or twice never does."""
CRASH_LOOP_WINDOW = 60.0
"""Seconds; also how long a worker must serve to be out of it, so that none of the deaths counts
any more and it cannot be back in it with the next one."""


class Restarts:
    """One worker's deaths, and what they cost it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._delay = FIRST_DELAY
        self._ready_at: float | None = None
        self._deaths: deque[float] = deque(maxlen=CRASH_LOOP_DEATHS)
        self.is_crash_loop = False

    def __repr__(self) -> str:
        state = "crash loop" if self.is_crash_loop else "ok"
        return f"<Restarts {state} deaths={len(self._deaths)} next={self._delay:.1f}s>"

    def ready(self, now: float) -> None:
        """The worker began to serve."""
        self._ready_at = now

    def left(self) -> None:
        """The worker was told to end, which is no death; another one is to come."""
        self._ready_at = None

    def died(self, now: float) -> float:
        """Return how many seconds to wait before the worker is started again."""
        if self._ready_at is not None and now - self._ready_at >= HEALTHY_AFTER:
            self._delay = FIRST_DELAY
        self._ready_at = None
        self._deaths.append(now)
        if len(self._deaths) == CRASH_LOOP_DEATHS and now - self._deaths[0] <= CRASH_LOOP_WINDOW:
            self.is_crash_loop = True
        delay = self._delay
        self._delay = min(2 * delay, LONGEST_DELAY)
        return delay * self._rng.uniform(1 - JITTER, 1 + JITTER)

    @property
    def recovers_at(self) -> float | None:
        """When the crash loop is over unless the worker dies before; None: no such time."""
        if not self.is_crash_loop or self._ready_at is None:
            return None
        return self._ready_at + CRASH_LOOP_WINDOW

    def has_recovered(self, now: float) -> bool:
        """Whether a crash loop is over; true once for each."""
        if (at := self.recovers_at) is None or now < at:
            return False
        self.is_crash_loop = False
        self._deaths.clear()
        return True

"""When a worker that died is started again: exponential backoff with jitter.

The first death costs next to nothing, a crash loop next to no CPU. A worker that was healthy for
a while has earned a fresh start: its next death is a new story. Pure: time and chance are
arguments; the supervisor does the waiting.
"""

from __future__ import annotations

import random

FIRST_DELAY = 0.1
"""Seconds before the first restart; doubled for each further one."""
LONGEST_DELAY = 30.0
"""Seconds the doubling stops at, before jitter."""
JITTER = 0.2
"""The share by which a delay may be shorter or longer, so that workers that died together do not
come back together."""
HEALTHY_AFTER = 10.0
"""Seconds of readiness after which earlier deaths are forgotten."""


class Restarts:
    """One worker's deaths, and what they cost it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._delay = FIRST_DELAY
        self._ready_at: float | None = None

    def ready(self, now: float) -> None:
        """The worker began to serve."""
        self._ready_at = now

    def died(self, now: float) -> float:
        """Return how many seconds to wait before the worker is started again."""
        if self._ready_at is not None and now - self._ready_at >= HEALTHY_AFTER:
            self._delay = FIRST_DELAY
        self._ready_at = None
        delay = self._delay
        self._delay = min(2 * delay, LONGEST_DELAY)
        return delay * self._rng.uniform(1 - JITTER, 1 + JITTER)

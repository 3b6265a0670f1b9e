"""Percentile: a streaming percentile of latencies over the last 15 to 30 seconds.

A histogram whose bucket edges grow by 5 % each (as in DDSketch, HdrHistogram), in two halves of 15
seconds: the newer one counts, the older one still speaks, and is dropped when the newer is full.
To observe is one logarithm and one addition, however many there are; the value is worked out once
a second. It is the upper edge of its bucket: never below the true percentile, at most 5 % above.
It keeps no samples, and does not tell latencies below 0.1 ms, or above an hour, from each other.
"""

from __future__ import annotations

import math
from typing import Final

HALF: Final = 15.0
"""Seconds that each half counts for."""

MIN_SAMPLES: Final = 20
"""Below this there is no value: the 95th percentile of fewer would be that of the slowest alone."""

REFRESH: Final = 1.0
"""Seconds that a value is used before it is worked out anew."""

ERROR: Final = 0.05
"""How far the value may be above the true percentile, as a part of it."""

_LOWEST = 1e-4
_HIGHEST = 3600.0
_BUCKETS_PER_E = 1 / math.log1p(ERROR)
_LAST = math.ceil(math.log(_HIGHEST / _LOWEST) * _BUCKETS_PER_E)
_EDGES = tuple(_LOWEST * (1 + ERROR) ** bucket for bucket in range(_LAST + 1))


class Percentile:
    """The latencies of late."""

    __slots__ = ("_fraction", "_newer", "_older", "_stale_at", "_total", "_turns_at", "_value")

    def __init__(self, now: float) -> None:
        self._newer, self._older = [0] * len(_EDGES), [0] * len(_EDGES)
        self._total = 0
        """In both halves."""
        self._turns_at = now + HALF
        self._value: float | None = None
        self._fraction = 0.0
        self._stale_at = now

    def __repr__(self) -> str:
        return f"<Percentile of {self._total} latencies>"

    def observe(self, latency: float, now: float) -> None:
        """Count one; seconds."""
        if now >= self._turns_at:
            self._turn(now)
        bucket = 0
        if latency > _LOWEST:
            bucket = min(_LAST, math.ceil(math.log(latency / _LOWEST) * _BUCKETS_PER_E))
        self._newer[bucket] += 1
        self._total += 1

    def value(self, fraction: float, now: float) -> float | None:
        """Return what `fraction` (0 to 1) of the latencies do not exceed, as it was within the last second.

        None while there are fewer than 20.
        """
        if now < self._stale_at and fraction == self._fraction and self._value is not None:
            return self._value
        if now >= self._turns_at:
            self._turn(now)
        self._value = self._work_out(fraction)
        self._fraction, self._stale_at = fraction, now + REFRESH
        return self._value

    def _work_out(self, fraction: float) -> float | None:
        if self._total < MIN_SAMPLES:
            return None
        missing = math.ceil(fraction * self._total)
        for newer, older, edge in zip(self._newer, self._older, _EDGES, strict=True):
            missing -= newer + older
            if missing <= 0:
                return edge
        return _EDGES[-1]

    def _turn(self, now: float) -> None:
        """Drop what is older than two halves, and begin a new one."""
        # In whole halves, so that after a pause nothing stays that should have gone in it.
        halves = math.floor((now - self._turns_at) / HALF) + 1
        self._turns_at += halves * HALF
        self._older = self._newer if halves == 1 else [0] * len(_EDGES)
        self._newer = [0] * len(_EDGES)
        self._total = sum(self._older)

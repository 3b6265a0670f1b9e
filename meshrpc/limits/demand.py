"""How many calls a second are wanted of one bucket, and whether that has just changed a lot.

An exponentially weighted mean of what is counted each second. A count that chance does not
explain, more than three standard deviations of a Poisson process from the mean, stands for itself
at once: in both directions.
"""

from __future__ import annotations

import math

_MEMORY = 5.0
"""Seconds, as a time constant."""
_EVERY = 1.0
"""Seconds between two looks that change the mean."""
_SHORTEST = 0.2
"""Seconds in which a count says something."""
_DEVIATIONS = 3.0
_NEGLIGIBLE = 1e-3
"""Calls per second."""


class Demand:
    """The demand for one bucket, from `since` on."""

    __slots__ = ("_count", "_since", "rate")

    def __init__(self, since: float) -> None:
        self.rate = 0.0
        """Calls per second."""
        self._since = since
        self._count = 0

    def __repr__(self) -> str:
        return f"<Demand {self.rate:g}/s>"

    @property
    def is_negligible(self) -> bool:
        """Whether it may be forgotten."""
        return self.rate < _NEGLIGIBLE and not self._count

    def look(self, calls: int, now: float) -> bool:
        """Count so many more calls until `now`; return whether the demand has changed a lot."""
        self._count += calls
        elapsed = now - self._since
        if elapsed < _SHORTEST:
            return False
        measured = self._count / elapsed
        expected = self.rate * elapsed
        has_changed = abs(self._count - expected) > _DEVIATIONS * (1 + math.sqrt(expected))
        if has_changed:
            self.rate = measured
        elif elapsed >= _EVERY:
            self.rate += (measured - self.rate) * -math.expm1(-elapsed / _MEMORY)
        else:
            return False
        self._count, self._since = 0, now
        return has_changed

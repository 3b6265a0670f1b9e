"""When to say that something asked again and again does not answer, and when that it does.

With the first failure, once a minute as long as it lasts or comes back, and once at its end. What
is said is up to whoever asks. Pure.
"""

from __future__ import annotations

from typing import Final

from meshrpc.log_rate import LogRate

WARN_EVERY: Final = 60.0
"""Seconds between two warnings, of one outage or of several."""


class Outage:
    """Whether something does not answer just now."""

    __slots__ = ("_warnings", "failures")

    def __init__(self) -> None:
        self.failures = 0
        """Attempts in a row that failed; 0: there is no outage."""
        self._warnings = LogRate(WARN_EVERY)

    def __repr__(self) -> str:
        return f"<Outage failures={self.failures}>"

    def goes_on(self, now: float) -> bool:
        """Note that an attempt failed; True: it is time for a warning. `now` is monotonic."""
        self.failures += 1
        return self._warnings.allows("outage", now) is not None

    def end(self) -> bool:
        """Note that an attempt did not fail; True: one before it had."""
        was_there, self.failures = self.failures > 0, 0
        return was_there

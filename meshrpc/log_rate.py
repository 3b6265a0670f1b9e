"""How often the log tells of one cause: once in so many seconds, with how many lines were left out.

For what others bring about. Whoever sends a thousand bad requests a second must not fill a disk,
nor hide what else there is to read. Pure.
"""

from __future__ import annotations

import math
from typing import Final

INTERVAL: Final = 1.0
"""Seconds between two lines of one cause, by default."""
_MOST_CAUSES: Final = 256
"""Causes told apart; those beyond share one, since their names may come from outside."""
_REST: Final = ""


class LogRate:
    """Which lines of a log are written: of each cause, one in `interval` seconds."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._causes: dict[str, _Cause] = {}

    def __repr__(self) -> str:
        return f"<LogRate causes={len(self._causes)}>"

    def allows(self, cause: str, now: float) -> int | None:
        """Return how many lines of `cause` were left out since its last one; None: leave this out.

        `now` is in monotonic seconds.
        """
        causes = self._causes
        known = causes.get(cause)
        if known is None:
            if len(causes) >= _MOST_CAUSES:
                cause = _REST
            known = causes.setdefault(cause, _Cause())
        if now - known.written_at < self._interval:
            known.left_out += 1
            return None
        left_out, known.left_out, known.written_at = known.left_out, 0, now
        return left_out


class _Cause:
    __slots__ = ("left_out", "written_at")

    def __init__(self) -> None:
        self.written_at = -math.inf
        self.left_out = 0

"""Points in wall time as text: RFC 3339 in UTC, with milliseconds. For people, never for decisions."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

LATEST: Final = 253402300799.0
"""The last second of the year 9999, where four digits end."""


def timestamp(seconds: float) -> str:
    """Return seconds since 1970 as `2026-03-09T08:30:01.118Z`.

    Raises:
        ValueError: it is no moment of the years 1970 to 9999.
    """
    if not math.isfinite(seconds) or not 0 <= seconds <= LATEST:
        raise ValueError("a time lies in the years 1970 to 9999")
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


def seconds_of(text: str) -> float:
    """Return the seconds since 1970 of an RFC 3339 time, of any offset.

    Raises:
        ValueError: it is none, or one without an offset, or not of the years 1970 to 9999.
    """
    try:
        moment = datetime.fromisoformat(text)
        seconds = moment.timestamp() if moment.tzinfo is not None else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds <= LATEST:
        raise ValueError("a time is written as 2026-03-09T08:30:01.118Z")
    return seconds

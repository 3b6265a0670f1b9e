"""Wall time as text."""

from __future__ import annotations

import math

import pytest

from meshrpc.timestamps import LATEST, seconds_of, timestamp


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_790_000_000.25, "2026-09-21T14:13:20.250Z"),
        (LATEST, "9999-12-31T23:59:59.000Z"),
    ],
)
def test_a_time_is_written_in_utc_with_milliseconds_and_read_back(seconds, text):
    """Text always of one length, so that it sorts as the times do."""
    assert timestamp(seconds) == text
    assert seconds_of(text) == seconds


def test_a_time_of_any_offset_is_read():
    """Whoever reports may write its own time zone."""
    assert seconds_of("2026-09-21T16:13:20+02:00") == 1_790_000_000


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "2026-09-21T14:13:20", "2026-09-21", "1969-12-31T23:59:59Z"),
        *("0001-01-01T00:00:00+23:59", "2026-13-01T00:00:00Z", "1790000000"),
    ],
)
def test_what_is_no_time_is_refused(text):
    """Without an offset nobody knows which moment is meant; outside the years nothing sorts."""
    with pytest.raises(ValueError, match="a time is written as"):
        seconds_of(text)


@pytest.mark.parametrize("seconds", [-1.0, LATEST + 1, math.nan, math.inf])
def test_seconds_outside_the_years_cannot_be_written(seconds):
    """Four digits are all a year has."""
    with pytest.raises(ValueError, match="1970 to 9999"):
        timestamp(seconds)

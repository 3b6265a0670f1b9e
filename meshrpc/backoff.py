"""How long to wait before asking again somebody who did not answer: a registry, a control service.

Doubles from `FIRST` to `LONGEST` and draws from the upper half, so that a fleet that lost what all of
it needs neither gives up on it nor meets it all at once when it is back. Pure. (Calls have a backoff of
their own, which their policy says: `resilience/retry.py`.)
"""

from __future__ import annotations

import random

FIRST = 0.1
"""Seconds before the second attempt: who restarts is often back at once."""
LONGEST = 5.0
"""Seconds at most: no longer than one renewal takes to come round."""


def backoff(failures: int, rng: random.Random) -> float:
    """Return the seconds to wait after `failures` (1 or more) failed attempts in a row."""
    doublings = min(failures - 1, 16)  # beyond this only the limit counts
    return rng.uniform(0.5, 1.0) * min(LONGEST, FIRST * 2.0**doublings)

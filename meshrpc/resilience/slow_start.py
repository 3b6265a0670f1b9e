"""Slow start: an endpoint that is new, or back, comes to its full share of the calls in time.

Empty caches and cold connections make a process slow at first, and a balancer that goes by load
would send it most calls just then. Its share grows linearly with time, from `LEAST` to all of it
(Envoy's slow start with its defaults, aggression 1 and a least weight of 10 %).
"""

from __future__ import annotations

LEAST = 0.1
"""The share at the beginning."""


def share(warm_at: float, now: float, window: float) -> float:
    """Return the part of its full share that an endpoint has which is warm at `warm_at`."""
    return min(1.0, max(LEAST, 1.0 - (warm_at - now) / window))

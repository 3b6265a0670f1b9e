"""Slow start: an endpoint that is new, or back, comes to its full share of the calls in time.

Empty caches and cold connections make a process slow at first, and a balancer that goes by load
would send it most calls just then. Its share grows linearly with time, from `LEAST` to all of it
(Envoy's slow start with its defaults, aggression 1 and a least weight of 10 %).

What it does not get, the settled ones do. When those are few, as in a rolling restart, it must
grow faster: held back for the sake of a cold cache, it would leave them an overload.
"""

from __future__ import annotations

LEAST = 0.1
"""The share at the beginning."""


_MORE = 1 / 3
"""Of its share that a settled endpoint gets at most on top; or what the absence of one endpoint
would mean, if that is more: a service has to be prepared for that."""


def least_share(active: int, ready: int, settled: int) -> float:
    """Return the share that each endpoint in slow start gets at least, for the others' sake.

    `active` endpoints there are, `ready` of them get calls, and `settled` of those have their full
    share; each of the three is less than the one before it, or the same.
    """
    warming = ready - settled
    if not settled or not warming:
        return 1.0
    bearable = 1.0 + max(_MORE, 1.0 / (active - 1))
    spare = bearable * ready / active - 1.0
    return min(1.0, max(0.0, 1.0 - spare * settled / warming))


def share(warm_at: float, now: float, window: float) -> float:
    """Return the part of its full share that an endpoint has which is warm at `warm_at`."""
    return min(1.0, max(LEAST, 1.0 - (warm_at - now) / window))

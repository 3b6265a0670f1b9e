"""Ejections: how long one lasts, and how many endpoints may be away by one at a time.

Each ejection of an endpoint lasts a base longer than the one before (Envoy), less a little by
chance, so that its callers do not all probe it in the same moment.
"""

from __future__ import annotations

import math
import random

from meshrpc.policy import model

JITTER = 0.2
"""An ejection is shorter by up to this share of the base."""


def longest(policy: model.Outlier) -> float:
    """Return the seconds that no ejection exceeds."""
    return max(policy.base_ejection, policy.max_ejection)


def next_multiplier(policy: model.Outlier, multiplier: int) -> int:
    """Return how many bases the next ejection lasts when the one before lasted `multiplier`.

    At the longest it grows no further: there would only be more to take back later.
    """
    return multiplier + (policy.base_ejection * multiplier < longest(policy))


def duration(policy: model.Outlier, multiplier: int, rng: random.Random) -> float:
    """Return the seconds that an ejection of `multiplier` bases lasts."""
    whole = min(policy.base_ejection * multiplier, longest(policy))
    return whole - rng.uniform(0, JITTER) * policy.base_ejection


def most(policy: model.Outlier, members: int) -> int:
    """Return how many of `members` may be ejected at a time: a share, but always one."""
    # The small addend undoes that 0.29 * 100 is less than 29.
    return max(1, math.floor(policy.max_ejected * members + 1e-9))

"""Success rates compared: how low one may lie before it is far below those of the others.

gRFC A50 (and Envoy): below the mean by 1.9 standard deviations, among at least five endpoints
with at least a hundred outcomes each. By that alone one failure in a hundred would be too many
while nobody else has any, for then there is hardly a deviation; so the rate must also lie some
way below the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

FEWEST_ENDPOINTS = 5
"""That have enough outcomes; among fewer there is no telling who is the exception."""

FEWEST_COMPARED = 100
"""Outcomes that an endpoint must have to be compared."""

DEVIATIONS = 1.9

MARGIN = 0.05
"""Of the rate, below the mean; what is nearer is no reason to do without an endpoint."""

EVERY = 1.0
"""Seconds for which an answer is kept: there may be a thousand endpoints to ask."""


class Comparison:
    """What success rates have in common, asked again once a second at most."""

    __slots__ = ("_far_below", "_until")

    def __init__(self) -> None:
        self._far_below: float | None = None
        self._until = -math.inf

    def far_below(self, counts: Iterable[tuple[int, int]], now: float) -> float | None:
        """Return the rate below which one is far below the others; None if they are too few.

        `counts`, of each endpoint its outcomes and how many of them were successes, is read only
        when the last answer is too old.
        """
        if now >= self._until:
            self._until = now + EVERY
            self._far_below = _far_below(counts)
        return self._far_below


def _far_below(counts: Iterable[tuple[int, int]]) -> float | None:
    rates = [successes / requests for requests, successes in counts if requests >= FEWEST_COMPARED]
    if len(rates) < FEWEST_ENDPOINTS:
        return None
    mean = sum(rates) / len(rates)
    deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / len(rates))
    return mean - max(DEVIATIONS * deviation, MARGIN)

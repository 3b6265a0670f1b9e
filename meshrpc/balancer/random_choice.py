"""Random: any endpoint, each as likely as the others.

Choose it when callers are many and short-lived, so that no turn of their own would even out,
and as the baseline that other balancers are measured against.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Generic, TypeVar

E = TypeVar("E")


class RandomBalancer:
    """Makes pickers that draw from one source of randomness."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def picker(
        self,
        ready: Sequence[E],
        members: Sequence[E] | None = None,  # noqa: ARG002 - for keys
    ) -> RandomPicker[E]:
        """Return a picker over `ready`."""
        return RandomPicker(tuple(ready), self._rng)


class RandomPicker(Generic[E]):
    """Any of its endpoints."""

    __slots__ = ("_endpoints", "_rng")

    def __init__(self, endpoints: tuple[E, ...], rng: random.Random) -> None:
        self._endpoints = endpoints
        self._rng = rng

    def pick(self, now: float, key: str | None = None) -> E:  # noqa: ARG002 - chance has neither
        """Return an endpoint at random."""
        return self._rng.choice(self._endpoints)

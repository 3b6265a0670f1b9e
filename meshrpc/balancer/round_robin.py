"""Round robin: each endpoint in turn.

Choose it when instances and calls are alike: over any window without a change the counts of
two endpoints differ by at most one. It does not notice that an endpoint is slow. Each caller
starts at an endpoint of its own, so that many callers starting together do not all begin with
the same one, and the turn goes on where it was when the set of endpoints changes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

E = TypeVar("E")


class RoundRobinBalancer:
    """Makes pickers that share one turn counter."""

    def __init__(self, rng: random.Random) -> None:
        self._turns = itertools.count(rng.randrange(1 << 16))

    def picker(
        self,
        ready: Sequence[E],
        members: Sequence[E] | None = None,  # noqa: ARG002 - for keys
    ) -> RoundRobinPicker[E]:
        """Return a picker that continues the turn over `ready`."""
        return RoundRobinPicker(tuple(ready), self._turns)


class RoundRobinPicker(Generic[E]):
    """Each of its endpoints in turn."""

    __slots__ = ("_endpoints", "_turns")

    def __init__(self, endpoints: tuple[E, ...], turns: Iterator[int]) -> None:
        self._endpoints = endpoints
        self._turns = turns

    def pick(self, now: float, key: str | None = None) -> E:  # noqa: ARG002 - turns have neither
        """Return the next endpoint."""
        endpoints = self._endpoints
        return endpoints[next(self._turns) % len(endpoints)]

"""Ring hash: calls with the same key go to the same endpoint.

Consistent hashing (Karger et al., STOC 1997): every endpoint has points on a ring, and a key
belongs to the first point after its own hash. An endpoint's points depend on itself alone, so that
one that comes or goes moves no keys but those it gets or had, and all processes agree. Keys whose
owner is not ready go to the next that is, and come back to it.
Choose it for caches and sessions of few endpoints; `maglev` is more even and as fast. Shares of
keys deviate by 1/sqrt(points), 9 % at `POINTS`; calls without a key are spread at random (gRFC A42).
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from meshrpc.balancer.candidate import Candidate
from meshrpc.balancer.hashing import HASH_BITS, hash_of
from meshrpc.balancer.key_balancer import KeyBalancer
from meshrpc.balancer.key_picker import KeyPicker

POINTS = 128
"""Points on the ring for each unit of weight, as long as it holds so many."""

RING_SIZE = 4096
"""Points on the ring at most (gRFC A42's cap), since it is made anew at each change: more endpoints
than it holds have half as many points each, and so on down to one. Half of an endpoint's points are
points that it had before, so that even then most keys stay."""

E = TypeVar("E", bound=Candidate)


@dataclass(frozen=True, slots=True)
class Ring:
    """Points in their order, and the id of the endpoint that each belongs to."""

    hashes: list[int]
    ids: list[str]

    def picker(self, ready: Sequence[E], rng: random.Random) -> RingHashPicker[E]:
        """Return a picker over those that are ready."""
        return RingHashPicker(self, ready, rng)


def ring(weights: Mapping[str, int]) -> Ring:
    """Return the ring of the endpoints with these ids and weights."""
    points = _points(sum(weights.values()))
    placed = sorted(
        (hash_of(f"{name}#{number}"), name)
        for name, weight in weights.items()
        for number in range(max(1, int(points * weight)))
    )
    return Ring([place for place, _ in placed], [name for _, name in placed])


def _points(weight: int) -> float:
    """Return the points for a unit of weight, where there are `weight` of them."""
    points = float(POINTS)
    while points * weight > RING_SIZE:
        points /= 2
    return points


class RingHashBalancer(KeyBalancer):
    """Makes pickers that look keys up on a ring."""

    def __init__(self, rng: random.Random, max_load: float | None = None) -> None:
        super().__init__(ring, rng, max_load)


class RingHashPicker(KeyPicker[E]):
    """The owner of the first point after a key's hash."""

    __slots__ = ("_hashes",)

    def __init__(self, ring: Ring, ready: Sequence[E], rng: random.Random) -> None:
        super().__init__(ring.ids, ready, rng)
        self._hashes = ring.hashes

    def pick(self, now: float, key: str | None = None) -> E:  # noqa: ARG002 - keys do not age
        """Return the owner of `key`; without one, that of a random place on the ring."""
        place = self._rng.getrandbits(HASH_BITS) if key is None else hash_of(key)
        owner = self._owners[bisect(self._hashes, place) % len(self._owners)]
        return owner if owner is not None else next(self._from(place))

    def _from(self, place: int) -> Iterator[E]:
        # Once around the ring.
        start = bisect(self._hashes, place)
        for number in range(start, start + len(self._owners)):
            owner = self._owners[number % len(self._owners)]
            if owner is not None:
                yield owner

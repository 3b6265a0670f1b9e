"""Ring hash: calls with the same key go to the same endpoint.

Consistent hashing (Karger et al., STOC 1997): every endpoint has points on a ring, and a key
belongs to the first point after its own hash. An endpoint's points depend on itself alone, so that
one that comes or goes moves no keys but those it gets or had, and all processes agree.
Choose it for caches and sessions. Shares of keys deviate by 1/sqrt(points), 9 % at `POINTS`; calls
without a key are spread at random (gRFC A42).
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b
from typing import Generic, Protocol, TypeVar

POINTS = 128
"""Points on the ring for each unit of weight, as long as it holds so many."""

RING_SIZE = 4096
"""Points on the ring at most (gRFC A42's cap), since it is made anew at each change: more endpoints
than it holds have half as many points each, and so on down to one. Half of an endpoint's points are
points that it had before, so that even then most keys stay."""

_BITS = 64


class _Weighted(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def weight(self) -> int: ...


E = TypeVar("E", bound=_Weighted)


class RingHashBalancer:
    """Makes pickers that look keys up on a ring."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def picker(self, endpoints: Sequence[E]) -> RingHashPicker[E]:
        """Return a picker over `endpoints`."""
        return RingHashPicker(endpoints, self._rng)


class RingHashPicker(Generic[E]):
    """The endpoint to which a key belongs."""

    __slots__ = ("_hashes", "_owners", "_rng")

    def __init__(self, endpoints: Sequence[E], rng: random.Random) -> None:
        by_id = {endpoint.id: endpoint for endpoint in endpoints}
        points = _points(sum(endpoint.weight for endpoint in by_id.values()))
        ring = sorted(
            (_hash(f"{endpoint.id}#{number}"), endpoint.id, endpoint)
            for endpoint in by_id.values()
            for number in range(max(1, int(points * endpoint.weight)))
        )
        self._hashes = [point for point, _, _ in ring]
        self._owners = [endpoint for _, _, endpoint in ring]
        self._rng = rng

    def pick(self, now: float, key: str | None = None) -> E:  # noqa: ARG002 - keys do not age
        """Return the owner of `key`; without one, that of a random place on the ring."""
        place = self._rng.getrandbits(_BITS) if key is None else _hash(key)
        return self._owners[bisect(self._hashes, place) % len(self._owners)]


def _points(weight: int) -> float:
    """Return the points for a unit of weight, where there are `weight` of them."""
    points = float(POINTS)
    while points * weight > RING_SIZE:
        points /= 2
    return points


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=_BITS // 8).digest())

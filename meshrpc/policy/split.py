"""Splits: how a route's calls are shared out among subsets.

A call without a key is sent by chance, in proportion to the weights. One with a key sticks to its
subset by weighted rendezvous hashing (Thaler and Ravishankar 1998; weights by Schindelhauer and
Schomaker, SPAA 2005): every subset draws a number for the key and the highest wins. A number
depends on its own subset alone, so a change of weights moves only the keys it must, to the subset
whose share grew, and a subset that has nobody left moves only its own keys.
A Split chooses among subsets; which instances these have is the client's business.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from meshrpc.policy.model import Fallback
from meshrpc.policy.subset import Subset

_HASH_BITS = 52
"""A float holds a half more than a whole number of so many bits, which keeps draws inside (0, 1)."""


@dataclass(frozen=True, slots=True)
class Split:
    """The subsets that calls of one route go to, and the share of each."""

    route: str
    """The route's name: two routes place the same keys independently of one another."""
    targets: tuple[tuple[Subset, int], ...]
    """Subsets and weights; at least one weight is more than 0."""
    fallback: Fallback = Fallback.NONE

    def choose(
        self, key: str | None, has_instances: Callable[[Subset], bool], rng: random.Random
    ) -> Subset | None:
        """Return the subset that a call goes to; None: to any instance of the service.

        A subset without instances leaves its share to the others, in proportion to their weights.
        When none has any, the fallback decides: None, or the subset that it would have been.
        """
        first = self._draw(self.targets, key, rng)
        if has_instances(first):
            return first
        others = [
            (subset, weight)
            for subset, weight in self.targets
            if weight and subset is not first and has_instances(subset)
        ]
        if others:
            return self._draw(others, key, rng)
        return None if self.fallback is Fallback.ANY else first

    def _draw(
        self, targets: Sequence[tuple[Subset, int]], key: str | None, rng: random.Random
    ) -> Subset:
        if len(targets) == 1:
            return targets[0][0]
        if key is None:
            subsets = [subset for subset, _ in targets]
            return rng.choices(subsets, [weight for _, weight in targets])[0]
        return max(targets, key=lambda target: self._score(target, key))[0]

    def _score(self, target: tuple[Subset, int], key: str) -> float:
        """Return what the target bids for the key: its weight over an exponential draw."""
        subset, weight = target
        text = f"{self.route}/{subset.name}/{key}"  # neither name has a slash
        digest = blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
        place = (int.from_bytes(digest) >> (64 - _HASH_BITS)) + 0.5
        return -weight / math.log(place / 2**_HASH_BITS)

"""Subsetting: which of a service's many instances one caller connects to.

Rendezvous hashing (Thaler and Ravishankar 1998; gRFC A68, with BLAKE2b): each caller ranks all
instances by the hash of its own seed and their ids, and takes the first `size`. Callers need not
know of each other, and one instance that comes or goes changes one place at most. Choose it when
callers x instances are more connections than anybody wants. It spreads callers by chance: few
callers of many instances need a larger size (`first` has the numbers).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

_HASH_BYTES = 8
"""Long enough: that any two of 10,000 instances rank alike has a probability of 3e-12."""


class _Located(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def zone(self) -> str | None: ...


I = TypeVar("I", bound=_Located)  # noqa: E741 - an instance


def rank(instances: Sequence[I], seed: str) -> list[I]:
    """Return the instances in the order in which they rank for `seed`: 0.6 us for each."""
    # To copy the state after the seed takes two thirds of the time of hashing it again each time.
    seeded = blake2b(f"{seed}/".encode(), digest_size=_HASH_BYTES)
    ranks = []
    for instance in instances:
        state = seeded.copy()
        state.update(instance.id.encode())
        ranks.append(state.digest())
    return [instances[place] for place in sorted(range(len(ranks)), key=ranks.__getitem__)]


def first(ranked: Sequence[I], size: int, zone: str | None = None) -> list[I]:
    """Return the subset: the first `size` of instances that are ranked, or of some of them.

    With `zone`, that zone's instances have the first half of the places, as far as there are so
    many of them, and all compete for the rest: some to prefer, and others to spill to.

    Of C callers with seeds of their own, an instance among S has Binomial(C, size/S): on average
    m = C * size / S, give or take sqrt(m). At most some S * exp(-m) instances have none, less than
    one from m = ln(S) on; the fullest has about 1 + sqrt(2 * ln(S) / m) times the mean.
    """
    if zone is None or len(ranked) <= size:
        return list(ranked[:size])
    local = [each for each in ranked if each.zone == zone][: (size + 1) // 2]
    taken = {each.id for each in local}
    return local + [each for each in ranked if each.id not in taken][: size - len(local)]

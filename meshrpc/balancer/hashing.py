"""Hashing: the places of keys and of endpoints, the same in every process.

What `ring_hash` and `maglev` stand on. Python's own `hash` differs from process to process, so it
is BLAKE2b, cut to 64 bits: as fast for short texts as anything in the standard library but CRC-32,
whose 32 bits are too few for a ring. It says where a text is; whose place that is, say the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain
from typing import Protocol

HASH_BITS = 64
"""Of a place: `rng.getrandbits(HASH_BITS)` is one of chance."""

_EMPTY = blake2b(digest_size=HASH_BITS // 8)
"""Copied for each hash, which takes four fifths of the time that making a new one does."""


class _Counted(Protocol):
    @property
    def pending(self) -> int: ...


class KeyOwner(Protocol):
    """An endpoint, as far as a balancer that goes by keys looks at it."""

    @property
    def id(self) -> str:
        """Its instance's id: by this all callers agree which keys are its own."""
        ...

    @property
    def weight(self) -> int:
        """Its share of the keys, relative to the others'."""
        ...

    @property
    def load(self) -> _Counted:
        """What is under way there."""
        ...


def hash_of(text: str) -> int:
    """Return the place of `text`, from 0 to 2^64 - 1."""
    state = _EMPTY.copy()
    # A text that is no valid unicode (an undecodable argument, say) is a key as good as another.
    state.update(text.encode("utf-8", "surrogatepass"))
    return int.from_bytes(state.digest(), "big")


def weights_of(ready: Sequence[KeyOwner], members: Sequence[KeyOwner] | None) -> dict[str, int]:
    """Return the weights, by id, of all that own keys: `members`, and whoever is ready besides."""
    everybody = chain(members or (), ready)
    return {endpoint.id: max(1, endpoint.weight) for endpoint in everybody}

"""The endpoint to which a key belongs: what pickers that go by keys share.

A ring or a table says which id owns each of its places; a key has one of these, and all that own
none of it stand behind its owner in an order of the key's own. So a key whose owner is not ready,
or has too much to do, goes to its next choice, and comes back.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from meshrpc.balancer.candidate import Candidate
from meshrpc.balancer.hashing import HASH_BITS, hash_of

E = TypeVar("E", bound=Candidate)


class KeyPicker(ABC, Generic[E]):
    """The owner of a key, or the next that is ready."""

    __slots__ = ("_owners", "_rng")

    def __init__(self, ids: Sequence[str], ready: Sequence[E], rng: random.Random) -> None:
        """Make it of the owners' ids, in the order in which the picker numbers them."""
        by_id = {endpoint.id: endpoint for endpoint in ready}
        self._owners = [by_id.get(name) for name in ids]
        """None: it is not ready."""
        self._rng = rng

    @abstractmethod
    def pick(self, now: float, key: str | None = None) -> E:
        """Return the first choice of `key`; without one, that of a random place."""

    def choices(self, key: str | None) -> Iterator[E]:
        """Yield all ready endpoints in the order in which `key` prefers them, some repeatedly."""
        return self._from(self._rng.getrandbits(HASH_BITS) if key is None else hash_of(key))

    @abstractmethod
    def _from(self, place: int) -> Iterator[E]:
        """Yield what `choices` does of a key that hashes to `place`."""

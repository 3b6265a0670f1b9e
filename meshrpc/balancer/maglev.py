"""Maglev: calls with the same key go to the same endpoint, each endpoint with its exact part.

The lookup table of Google's load balancer (Eisenbud et al., NSDI 2016, section 3.4): endpoints take
turns, each at taking the first free slot in an order of the slots that is its own; a key belongs to
whoever has the slot that it hashes to. All have the same number of slots, give or take one, and one
that leaves moves under 1 % of the others' keys at 650 endpoints: what a ring saves there, it pays
with uneven shares. A key whose owner is not ready goes on through an order of slots of its own.
Choose it for caches and sessions. A change of members costs a new table, some 25 ms; a change of
who is ready does not.
"""

from __future__ import annotations

import heapq
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TypeVar

from meshrpc.balancer.candidate import Candidate
from meshrpc.balancer.hashing import HASH_BITS, hash_of
from meshrpc.balancer.key_balancer import KeyBalancer
from meshrpc.balancer.key_picker import KeyPicker

TABLE_SIZE = 65_537
"""Slots: a prime, so that every step leads through all of them, and a hundred times the endpoints
of a large service, so that one slot more or less is 1 % (the paper's small table; Envoy's too)."""

_FEW = 128
"""With so many slots free, probing (size / free looks) costs more than looking at all the free
ones. Near sqrt(TABLE_SIZE); between 96 and 200 it makes no difference."""

E = TypeVar("E", bound=Candidate)


@dataclass(frozen=True, slots=True)
class Table:
    """Endpoints by id, and for each slot the index of the one that has it."""

    ids: list[str]
    slots: array[int]

    def picker(self, ready: Sequence[E], rng: random.Random) -> MaglevPicker[E]:
        """Return a picker over those that are ready."""
        return MaglevPicker(self, ready, rng)


def table(weights: Mapping[str, int], size: int = TABLE_SIZE) -> Table:
    """Return the table of the endpoints with these ids and weights (1 or more).

    It depends on nothing else, not on their order either. `size` is a prime; of more endpoints
    than that, only `size` get a slot.
    """
    ids = sorted(weights)
    hashes = [hash_of(name) for name in ids]
    place = [hashed % size for hashed in hashes]
    step = [hashed // size % (size - 1) + 1 for hashed in hashes]
    turns = chain.from_iterable(_turns(ids, weights))
    slots = [0] * size
    taken = [False] * size
    for index in islice(turns, max(0, size - _FEW)):
        slot, its_step = place[index], step[index]
        while taken[slot]:
            slot += its_step
            if slot >= size:
                slot -= size
        taken[slot] = True
        slots[slot] = index
        place[index] = slot
    free = [slot for slot in range(size) if not taken[slot]]
    for index in islice(turns, len(free)):
        # The same choice: the free slot to which its steps lead first.
        slot, its_step = place[index], step[index]
        steps_per_slot = pow(its_step, -1, size)
        fewest = min([(other - slot) * steps_per_slot % size for other in free])
        slot = (slot + fewest * its_step) % size
        free.remove(slot)
        slots[slot] = index
    return Table(ids, array("I", slots))


def _turns(ids: Sequence[str], weights: Mapping[str, int]) -> Iterator[list[int]]:
    """Yield, without end, the indexes of those whose turn it is, all of one weight.

    Everyone has a first turn. After that the n-th is due at (n - 1/2) / weight (Webster's rule),
    which depends on nobody else's weight, and rounds exact shares to the nearest.
    """
    alike: dict[int, list[int]] = {}
    for index, name in enumerate(ids):
        alike.setdefault(weights[name], []).append(index)
    due = [(0.0, -weight, 1) for weight in alike]
    heapq.heapify(due)
    while True:
        _, minus_weight, number = due[0]
        yield alike[-minus_weight]
        heapq.heapreplace(due, ((number + 0.5) / -minus_weight, minus_weight, number + 1))


class MaglevBalancer(KeyBalancer):
    """Makes pickers that look keys up in a table of `size` slots, a prime."""

    def __init__(
        self, rng: random.Random, max_load: float | None = None, size: int = TABLE_SIZE
    ) -> None:
        super().__init__(partial(table, size=size), rng, max_load, most=size)


class MaglevPicker(KeyPicker[E]):
    """The owner of a key's slot."""

    __slots__ = ("_size", "_slots")

    def __init__(self, table: Table, ready: Sequence[E], rng: random.Random) -> None:
        super().__init__(table.ids, ready, rng)
        self._slots = table.slots
        self._size = len(table.slots)

    def pick(self, now: float, key: str | None = None) -> E:  # noqa: ARG002 - keys do not age
        """Return the owner of `key`; without one, that of a random slot."""
        place = self._rng.getrandbits(HASH_BITS) if key is None else hash_of(key)
        owner = self._owners[self._slots[place % self._size]]
        return owner if owner is not None else next(self._from(place))

    def _from(self, place: int) -> Iterator[E]:
        # Double hashing, as the endpoints' own orders: keys that share an owner, even a slot, part
        # when it is gone, and so are spread over all the others.
        size = self._size
        step = place // size % (size - 1) + 1
        slot = place % size
        for _ in range(size):
            owner = self._owners[self._slots[slot]]
            if owner is not None:
                yield owner
            slot = (slot + step) % size

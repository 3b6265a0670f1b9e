"""Bounded load: a key stays with its owner unless that has more than its part of the calls.

Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016): with `max_load` c
an endpoint takes a call only while fewer are pending on it than ceil(c x share x (pending in all
+ 1)), where share is its part of the ready endpoints' weights. The call goes to the key's next
choice otherwise, so that one hot key takes as many endpoints as it needs and no other key moves
before it must. Choose c = 1.25 or more: the closer to 1, the more keys leave their owner.
It counts this caller's own calls and knows of no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from meshrpc.balancer.candidate import Candidate
from meshrpc.balancer.key_picker import KeyPicker

E = TypeVar("E", bound=Candidate)

_PICKS_PER_COUNT = 8
"""A count of all pending calls serves as many picks as there are endpoints, divided by this: it
costs the looking at eight endpoints for each pick, however many there are."""


class BoundedLoadPicker(Generic[E]):
    """The first choice of a key that is not at its bound."""

    __slots__ = ("_counted", "_endpoints", "_keyed", "_part", "_picks", "_picks_per_count")

    def __init__(self, keyed: KeyPicker[E], ready: Sequence[E], max_load: float) -> None:
        self._keyed = keyed
        self._endpoints = tuple({endpoint.id: endpoint for endpoint in ready}.values())
        self._part = max_load / sum(max(1, endpoint.weight) for endpoint in self._endpoints)
        self._picks_per_count = max(1, len(self._endpoints) // _PICKS_PER_COUNT)
        self._counted = 0
        self._picks = self._picks_per_count  # as many as a count serves: the first pick counts

    def pick(self, now: float, key: str | None = None) -> E:
        """Return the first endpoint below its bound, in the order in which `key` prefers them."""
        if self._picks >= self._picks_per_count:
            self._count()
        self._picks += 1
        # Each pick since, this one too, is taken to be under way: a bound may be a call too high
        # for a moment, never too low for the endpoints to hold all calls together.
        limit = self._part * (self._counted + self._picks)
        owner = self._keyed.pick(now, key)
        if owner.load.pending < limit * max(1, owner.weight):
            return owner
        for tried, endpoint in enumerate(self._keyed.choices(key)):
            if endpoint.load.pending < limit * max(1, endpoint.weight):
                return endpoint
            if tried == len(self._endpoints):
                # Others than this picker may have begun calls. Counted anew there is one below
                # its bound, since the bounds are more than all calls together.
                self._count()
                self._picks = 1
                limit = self._part * (self._counted + 1)
        return owner

    def _count(self) -> None:
        self._counted = sum(endpoint.load.pending for endpoint in self._endpoints)
        self._picks = 0

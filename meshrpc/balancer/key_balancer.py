"""A balancer that goes by keys: its map of who owns which, and the pickers that look keys up there.

The map is of all members, ready or not, so that all callers agree on it. It takes long to make and
is kept while the members and their weights stay the same; a change of who is ready costs a picker.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Protocol, TypeVar

from meshrpc.balancer.bounded_load import BoundedLoadPicker
from meshrpc.balancer.candidate import Candidate
from meshrpc.balancer.key_picker import KeyPicker

E = TypeVar("E", bound=Candidate)


class KeyMap(Protocol):
    """Who owns which keys: a ring, or a table."""

    def picker(self, ready: Sequence[E], rng: random.Random) -> KeyPicker[E]:
        """Return a picker over those that are ready."""
        ...


class KeyBalancer:
    """Makes pickers by one map of the keys.

    Args:
        make: the map of the endpoints with these ids and weights.
        rng: for calls without a key.
        max_load: as `bounded_load` has it; None: no bound.
        most: members that a map has places for.
    """

    def __init__(
        self,
        make: Callable[[Mapping[str, int]], KeyMap],
        rng: random.Random,
        max_load: float | None,
        most: float = math.inf,
    ) -> None:
        self._make = make
        self._rng = rng
        self._max_load = max_load
        self._most = most
        self._weights: Mapping[str, int] = {}
        self._map: KeyMap | None = None

    def picker(
        self, ready: Sequence[E], members: Sequence[E] | None = None
    ) -> KeyPicker[E] | BoundedLoadPicker[E]:
        """Return a picker over `ready`, by the map of all `members` (None: the same)."""
        weights = _weights(ready, members)
        if len(weights) > self._most:
            # Some have no place, and these might be the only ones that are ready.
            weights = _weights(ready, None)
        if self._map is None or weights != self._weights:
            self._map, self._weights = self._make(weights), weights
        picker = self._map.picker(ready, self._rng)
        if self._max_load is None:
            return picker
        return BoundedLoadPicker(picker, ready, self._max_load)


def _weights(ready: Sequence[Candidate], members: Sequence[Candidate] | None) -> dict[str, int]:
    """Return the weights, by id, of all that own keys: `members`, and whoever is ready besides."""
    everybody = chain(members or (), ready)
    return {endpoint.id: max(1, endpoint.weight) for endpoint in everybody}

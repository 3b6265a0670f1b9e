"""Weighted round robin: each endpoint in turn, as often as its weight says, at every moment.

A share of s is a call due in each of the windows [(k-1)/s, k/s), rounded outwards to whole turns;
the earliest deadline goes first among those whose window has begun. Every call then falls into its
window, so that no count is ever a whole call away from its exact share: Tijdeman's chairman
assignment (1980), Pfair scheduling (Baruah et al., 1996). Within the windows the order is random,
or all callers would ask the heaviest endpoints at the same moments.

Weights are what endpoints report that they can carry (`Capacity`, gRFC A58) once two of them do,
and those of their registrations before. It does not notice an endpoint that is slow but says not.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from math import inf
from statistics import median_low
from typing import Any, Generic, TypeVar

from meshrpc.balancer.candidate import Candidate
from meshrpc.policy import model

MOST = 10.0
LEAST = 0.01
"""What a reported weight is at most and at least, in multiples of the median: a report is the word
of one process, and must not draw all calls to it, nor keep it from ever getting any."""

TOLERANCE = 0.02
"""Shares that changed by less, as a part of themselves, are kept as they are."""

PLANNED = 128
PLANNED_AT_MOST = 1024
"""Turns that are put into order together: whole rounds over all endpoints, since the heaviest are
planned first in each; but never so many that the caller would notice the time it takes."""

MIXED = 5
"""Times that every turn put into order is offered another place. Of 500 callers that start together
at 100 endpoints weighing 80 to 120, no turn of the first round then has more than 18 ask the same
one, where chance alone has about 15, and none of the next three more than 136. Without, all do."""

_FINENESS = 10_000
"""Steps from 0 to the median, for reported weights: turns are planned in whole numbers."""

_UNIT = 1 << 20
"""What a weight of 1 is made of. A credit carried over is a whole number of these."""

E = TypeVar("E", bound=Candidate)


class Turns:
    """Whose turn it is, as an index into `weights`; each count within 1 of its exact share.

    With `owed` (calls that each was short of its share before, below 0: ahead of it) it goes on
    from there: no count gets a call or more ahead of the shares it should have had, as they were
    at each time, and those behind catch up. Without, the first turn is drawn by weight.
    """

    def __init__(
        self, weights: Sequence[int], rng: random.Random, owed: Sequence[float] | None = None
    ) -> None:
        self.weights = weights
        self._rng = rng
        # One turn adds its weight to each endpoint's credit, and takes the total from one.
        self._gains = [weight * _UNIT for weight in weights]
        self._cost = sum(self._gains)
        self._credit = [0] * len(weights) if owed is None else _credits(self._gains, owed)
        self._planned = min(PLANNED_AT_MOST, len(weights) * -(-PLANNED // len(weights)))
        self._calls = [0] * len(weights)
        """Planned so far, of each."""
        self._turns = 0
        """Planned so far, in all."""
        self._order: list[int] = []
        """Planned and not taken yet, the next one last."""
        self._ready: list[tuple[int, float, int, int]] = []
        """Windows that have begun: deadline, a number to break ties with, index, release."""
        # Windows to come: release, index.
        self._waiting = [(self._release(index), index) for index in range(len(weights))]
        heapify(self._waiting)
        if owed is None:
            # Whichever is the first, all others can still meet their deadlines.
            first = rng.choices(range(len(weights)), weights)[0]
            self._waiting.remove((0, first))
            heapify(self._waiting)
            self._plan_one(first)
            self._order.append(first)

    def next(self) -> int:
        """Return whose turn it is."""
        if not self._order:
            self._plan()
        return self._order.pop()

    def owed(self) -> list[float]:
        """Return the calls that each is short of its share; below 0: ahead of it."""
        calls = self._calls.copy()
        for index in self._order:
            calls[index] -= 1
        turns = self._turns - len(self._order)
        return [
            (credit + turns * gain - count * self._cost) / self._cost
            for credit, gain, count in zip(self._credit, self._gains, calls, strict=True)
        ]

    def _plan(self) -> None:
        start = self._turns
        ready, waiting = self._ready, self._waiting
        plan: list[tuple[int, int, int]] = []
        """Of each turn: release, deadline, index."""
        for turn in range(start, start + self._planned):
            while waiting and waiting[0][0] <= turn:
                release, index = heappop(waiting)
                heappush(ready, (self._deadline(index), self._rng.random(), index, release))
            deadline, _, index, release = heappop(ready)
            plan.append((release, deadline, index))
            self._plan_one(index)
        # Two may change places where both stay in their windows.
        for late in [*range(len(plan) - 1, 0, -1)] * MIXED:
            early = int(self._rng.random() * (late + 1))
            one, other = plan[early], plan[late]
            if other[0] <= start + early and start + late < one[1]:
                plan[early], plan[late] = other, one
        self._order = [index for _, _, index in reversed(plan)]

    def _plan_one(self, index: int) -> None:
        self._calls[index] += 1
        self._turns += 1
        heappush(self._waiting, (self._release(index), index))

    def _release(self, index: int) -> int:
        """Return the first turn that the next call of `index` may have."""
        due = self._calls[index] * self._cost - self._credit[index]
        return max(0, due // self._gains[index])

    def _deadline(self, index: int) -> int:
        """Return the turn before which the next call of `index` must be."""
        due = (self._calls[index] + 1) * self._cost - self._credit[index]
        return -(-due // self._gains[index])


def _credits(gains: Sequence[int], owed: Sequence[float]) -> list[int]:
    """Return what is owed in units. In sum it must be nothing; what is left over, all share."""
    cost = sum(gains)
    left = sum(owed)
    return [round(calls * cost - left * gain) for calls, gain in zip(owed, gains, strict=True)]


class WeightedRoundRobinBalancer:
    """Makes pickers of which each goes on where the one before it was."""

    def __init__(self, policy: model.Balancer, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._last: WeightedRoundRobinPicker[Any] | None = None

    def picker(
        self,
        ready: Sequence[E],
        members: Sequence[E] | None = None,  # noqa: ARG002 - only those that are ready have turns
    ) -> WeightedRoundRobinPicker[E]:
        """Return a picker over `ready`; those that were there before keep their credit."""
        owed = {} if self._last is None else self._last.owed()
        picker = WeightedRoundRobinPicker(tuple(ready), owed, self._policy, self._rng)
        self._last = picker
        return picker


class WeightedRoundRobinPicker(Generic[E]):
    """Each of its endpoints in turn, by weights that it works out anew from time to time."""

    __slots__ = ("_endpoints", "_owed", "_policy", "_rng", "_turns", "_update_at")

    def __init__(
        self,
        endpoints: tuple[E, ...],
        owed: Mapping[str, float],
        policy: model.Balancer,
        rng: random.Random,
    ) -> None:
        self._endpoints = endpoints
        self._owed = owed
        self._policy = policy
        self._rng = rng
        self._turns: Turns | None = None
        self._update_at = -inf

    def pick(self, now: float, key: str | None = None) -> E:  # noqa: ARG002 - no key is kept to
        """Return the endpoint whose turn it is."""
        turns = self._turns
        if turns is None or now >= self._update_at:
            turns = self._update(turns, now)
        return self._endpoints[turns.next()]

    def owed(self) -> Mapping[str, float]:
        """Return by id the calls that each endpoint is short of its share."""
        if self._turns is None:
            return self._owed
        ids = (endpoint.id for endpoint in self._endpoints)
        return dict(zip(ids, self._turns.owed(), strict=True))

    def _update(self, turns: Turns | None, now: float) -> Turns:
        self._update_at = now + self._policy.update
        weights = _weights(self._endpoints, now, self._policy)
        if turns is None:
            known = any(endpoint.id in self._owed for endpoint in self._endpoints)
            owed = [self._owed.get(endpoint.id, 0.0) for endpoint in self._endpoints]
            turns = Turns(weights, self._rng, owed if known else None)
        elif _have_changed(turns.weights, weights):
            turns = Turns(weights, self._rng, turns.owed())
        self._turns = turns
        return turns


def _weights(endpoints: Sequence[Candidate], now: float, policy: model.Balancer) -> list[int]:
    """Return what the endpoints report, or else what they are registered with."""
    reported = [endpoint.capacity.weight(now, policy) for endpoint in endpoints]
    known = [weight for weight in reported if weight is not None]
    if len(known) < 2:
        return [max(1, endpoint.weight) for endpoint in endpoints]
    # The lower of the two in the middle: of two endpoints, the one that claims less.
    median = median_low(known)
    ratios = [None if weight is None else _bounded(weight / median) for weight in reported]
    mean = sum(ratio for ratio in ratios if ratio is not None) / len(known)
    return [round((mean if ratio is None else ratio) * _FINENESS) for ratio in ratios]


def _bounded(ratio: float) -> float:
    return min(MOST, max(LEAST, ratio))


def _have_changed(old: Sequence[int], new: Sequence[int]) -> bool:
    """Tell whether the share of any is another one."""
    before, after = sum(old), sum(new)
    return any(
        abs(now * before - was * after) > TOLERANCE * was * after
        for was, now in zip(old, new, strict=True)
    )

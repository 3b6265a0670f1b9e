"""Least request: of a few endpoints drawn at random, the one with the fewest calls under way.

gRFC A48 and Envoy. What counts is (pending + 1) / weight, and an idle endpoint before any that is
not ("shortest expected delay, never queue", from LVS). Equal ones take turns: who has had fewer
calls, by its weight, comes first, so that counts stay close even where calls never overlap.

Choose it when calls differ much in length, and how long the last ones took says little of the next:
uploads, streams, work of any size. It does not notice an endpoint that is slow until calls pile up.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from meshrpc.balancer.candidate import Candidate

RETRY_FAILING = 3.0
"""Seconds since the last call to a failing endpoint after which it counts like any other, for one
call: it would never show that it is well again if it was never asked."""


_MOST_BEHIND = 8.0
"""Turns of its own that an endpoint catches up with: who was busy for long does not get all calls
for as long afterwards (start-time fair queueing does the same for a flow that was silent)."""

E = TypeVar("E", bound=Candidate)


class LeastRequestBalancer:
    """Makes pickers that draw `choices` endpoints and keep the one with the fewest calls."""

    def __init__(self, rng: random.Random, choices: int = 2) -> None:
        self._rng = rng
        self._choices = choices

    def picker(
        self,
        ready: Sequence[E],
        members: Sequence[E] | None = None,  # noqa: ARG002 - no key has an owner here
    ) -> LeastRequestPicker[E]:
        """Return a picker over `ready`."""
        return LeastRequestPicker(tuple(ready), self._rng, self._choices)


class LeastRequestPicker(Generic[E]):
    """The least busy of some endpoints drawn at random, by weight where weights differ."""

    __slots__ = (
        "_bounds",
        "_count",
        "_draws",
        "_endpoints",
        "_is_plain",
        "_loads",
        "_pairs",
        "_random",
        "_steps",
        "_turn",
        "_turns",
        "_weights",
    )

    def __init__(self, endpoints: tuple[E, ...], rng: random.Random, choices: int) -> None:
        self._endpoints = endpoints
        self._loads = tuple(endpoint.load for endpoint in endpoints)  # one step less to each
        self._weights = tuple(endpoint.weight for endpoint in endpoints)
        self._bounds = tuple(accumulate(self._weights))
        self._count = len(endpoints)
        self._pairs = self._count * (self._count - 1)
        self._draws = min(choices, self._count)
        self._is_plain = self._draws == 2 and len(set(self._weights)) == 1
        self._random = rng.random
        steps = {weight: 1.0 / weight for weight in self._weights}
        self._steps = tuple(steps[weight] for weight in self._weights)
        self._turns = [0.0] * self._count  # calls had, by weight
        self._turn = 0.0  # the most of these that anybody had who then was picked

    def pick(self, now: float, key: str | None = None) -> E:  # noqa: ARG002 - no key is kept to
        """Return the least busy of those drawn, a failing one only where all of them are."""
        if self._is_plain:
            # What `_least` does, spelled out for the usual case: a third of the time.
            count = self._count
            pair = int(self._random() * self._pairs)
            i = pair % count
            j = pair // count
            j += j >= i  # skip over i; keeps every other place equally likely
            one = self._loads[i]
            other = self._loads[j]
            if one.is_failing or other.is_failing:
                if self._rank(j, now) < self._rank(i, now):
                    i = j
            elif other.pending < one.pending or (
                other.pending == one.pending and self._turns[j] < self._turns[i]
            ):
                i = j
        else:
            i = self._least(now)
        step = self._steps[i]
        turn = self._turns[i]
        if turn > self._turn:
            self._turn = turn
        elif turn < (least := self._turn - _MOST_BEHIND * step):
            turn = least
        self._turns[i] = turn + step
        return self._endpoints[i]

    def _least(self, now: float) -> int:
        """Return the place of the first in rank of as many as are drawn."""
        best = self._draw()
        for _ in range(self._draws - 1):
            other = self._draw()
            if other == best:  # would be no choice
                other = (other + 1) % self._count
            if self._rank(other, now) < self._rank(best, now):
                best = other
        return best

    def _draw(self) -> int:
        # By weight: drawn evenly, no endpoint could get more than `choices` times the mean.
        return bisect(self._bounds, self._random() * self._bounds[-1])

    def _rank(self, i: int, now: float) -> tuple[bool, float, float]:
        """Return what comes first when it is less: failing, calls pending, calls had."""
        load, weight = self._loads[i], self._weights[i]
        shunned = load.is_failing and now - load.asked_at < RETRY_FAILING
        busy = (load.pending + 1) / weight if load.pending else 0.0
        return shunned, busy, self._turns[i]

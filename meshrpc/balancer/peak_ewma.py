"""Peak EWMA with the power of two choices: the default balancer.

Each pick draws two endpoints and takes the one with the lower load (`load.py`), as Finagle's and
Linkerd's P2C do. Two choices are enough to keep the fullest endpoint close to the mean
(Mitzenmacher, "The power of two choices"). Of two that are nearly alike it is the one not asked for
longer: differences so small are luck, and luck is remembered for seconds. While the better one looks bad, because it has failed
and not succeeded since or is much more loaded than those taken lately, more are drawn
(docs/decisions/0014). And an endpoint that always loses is asked now and then all the same, for
nothing else would show that it is well again (aegis).

Choose it when instances are not all equally fast, which is nearly always.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Generic, TypeVar

from meshrpc.balancer.candidate import Candidate
from meshrpc.balancer.load import UNASKED, Load

BETWEEN_PROBES = 300
"""Picks for each one that goes to the worse of two, because that was not asked for `UNASKED`
seconds: few enough that the slowest hundredth of all calls does not feel it."""

_BETWEEN_LOOKS = 7
"""Picks between looks at what is usual, and for an endpoint to spend one on."""

_MORE = 17
"""Drawn at most when the better of the first two fails: enough to find the one that works among
four with probability 0.996."""

_A_FEW = 5
"""Drawn at most when it is only loaded: where half of all are slow, these then get 1 % of the calls,
and a pick costs no more than two, however far apart all are."""

_ALIKE = math.log(1.5)
"""How far apart two may be that are alike, in load and in latency: by one and a half times. A hundred
equal endpoints then get calls within 20 % of the mean, which otherwise are 50 % apart by luck. A
slow one with nothing to do is not like a quick one that is busy: it would get calls for that."""

_BAD = math.log(4.0)
"""How far above the usual score a winner looks bad: at four times the value."""

_NEWS = 1 / 7
"""The weight of a winner looked at in what is usual: that is the mean of fifty picks or so."""

E = TypeVar("E", bound=Candidate)


class PeakEwmaBalancer:
    """Makes pickers that draw two endpoints and keep the less loaded."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._past = Past(_BETWEEN_LOOKS)

    def picker(
        self,
        ready: Sequence[E],
        members: Sequence[E] | None = None,  # noqa: ARG002 - no key has an owner here
    ) -> TwoChoicesPicker[E]:
        """Return a picker over `ready`."""
        return TwoChoicesPicker(tuple(ready), self._rng, self._past)


class Past:
    """What a balancer's pickers remember of their picks."""

    __slots__ = ("bar", "limit", "unspent", "wait")

    def __init__(self, wait: float) -> None:
        self.wait = wait
        """Picks before the next look; inf: there is none ever, and nothing is remembered."""
        self.unspent = 0
        """Picks since one went to the worse of two."""
        self.limit = math.inf
        """ln of the value above which one looks bad: `_BAD` above the mean of the winners."""
        self.bar = math.inf
        """The score for that, or less: what it was a moment ago."""

    def look(self, winner: Load, loser: Load, now: float) -> bool:
        """Take in who won; return whether the loser shall have the call."""
        self.wait = _BETWEEN_LOOKS
        self.unspent += _BETWEEN_LOOKS
        time = now / winner.decay
        # Penalties are no measure, nor is what one counts as that never answered.
        if not winner.is_failing and winner.score > -math.inf:
            is_plain = now < winner.plain_until
            seen = _BAD + (winner.score - time if is_plain else math.log(winner.value(now)))
            limit = self.limit
            self.limit = seen if limit == math.inf else limit + (seen - limit) * _NEWS
        self.bar = self.limit + time
        if self.unspent <= BETWEEN_PROBES or loser.is_failing or now - loser.asked_at < UNASKED:
            return False
        self.unspent = 0
        return True


class TwoChoicesPicker(Generic[E]):
    """The less loaded of two endpoints drawn at random; without `past` always."""

    __slots__ = ("_count", "_endpoints", "_loads", "_pairs", "_past", "_random")

    def __init__(
        self, endpoints: tuple[E, ...], rng: random.Random, past: Past | None = None
    ) -> None:
        self._endpoints = endpoints
        self._loads = tuple(endpoint.load for endpoint in endpoints)  # one step less to each
        self._count = len(endpoints)
        self._pairs = self._count * (self._count - 1)
        self._random = rng.random
        self._past = past or Past(math.inf)

    def pick(self, now: float, key: str | None = None) -> E:  # noqa: ARG002 - no key is kept to
        """Return the less loaded of two distinct endpoints; the first drawn when equal."""
        count = self._count
        if count == 1:
            return self._endpoints[0]
        loads = self._loads
        # All pairs are equally likely.
        pair = int(self._random() * self._pairs)
        i = pair % count
        j = pair // count
        j += j >= i
        best = loads[i]
        other = loads[j]
        if best.score > other.score:
            i, j = j, i
            best, other = other, best
        past = self._past
        if now >= best.plain_until or best.score > past.bar:
            past.bar = past.limit + now / best.decay
            if now >= best.plain_until:
                i, j = self._better(i, j, now)
            if count > 2 and self._looks_bad(loads[i], now):
                i = self._search(i, now)
        elif (
            other.score - best.score < _ALIKE
            and other.asked_at < best.asked_at
            and other.memory - best.memory < _ALIKE
            and now < other.plain_until
        ):
            i, j = j, i
        past.wait -= 1
        if past.wait <= 0 and past.look(loads[i], loads[j], now):
            return self._endpoints[j]
        return self._endpoints[i]

    def _better(self, i: int, j: int, now: float) -> tuple[int, int]:
        """Return the two, the less loaded first; as they are when equal."""
        one, other = self._loads[i], self._loads[j]
        lower = one if one.score <= other.score else other
        if now < lower.plain_until:
            return (i, j) if lower is one else (j, i)
        return (j, i) if other.value(now) < one.value(now) else (i, j)

    def _looks_bad(self, load: Load, now: float) -> bool:
        """Return whether it fails, or is far more loaded than those taken lately."""
        if now < load.plain_until:
            return load.score > self._past.bar
        return load.is_failing or load.value(now) > math.exp(self._past.limit)

    def _search(self, i: int, now: float) -> int:
        """Return the least loaded of `i` and others, drawn until one does not look bad."""
        loads = self._loads
        limit = min(loads[i].score, self._past.bar)
        for _ in range(_MORE if loads[i].is_failing else _A_FEW):
            j = int(self._random() * self._count)
            other = loads[j]
            if other.score <= limit and now < other.plain_until:
                return j  # nothing else is worth the time that comparing takes
            # By load also among those that work: to the first of them would go everything.
            i, _ = self._better(i, j, now)
            if not self._looks_bad(other, now):
                break
        return i

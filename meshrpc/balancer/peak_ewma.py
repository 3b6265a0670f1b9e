"""Peak EWMA with the power of two choices: the default balancer.

Each pick draws two endpoints and takes the one with the lower load, latency x (pending + 1).
Latency is a moving average over time that jumps to every peak and sinks back with the time
constant `decay` (10 s): an endpoint that turns slow is left at once, and tried again as the
memory of it fades. From Finagle's PeakEwma and P2CPick; Linkerd and tower took it from there.
An endpoint that fails is another matter than a slow one: it counts as very slow for a moment, and
while it has not succeeded since, the picker draws a few pairs more to find one that does better.

Choose it when instances are not all equally fast, which is nearly always. Two choices are
enough to keep the fullest endpoint close to the mean (Mitzenmacher, "The power of two choices").
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from meshrpc.resilience.outcome import Outcome

FAILURE_LATENCY = 5.0
"""What a failure counts as, in seconds, however fast it came: an endpoint that fails at once
would otherwise look like the best one and draw all calls (Linkerd's load biaser)."""

FAILURE_DECAY = 1.0
"""The time constant with which that fades. Were it as long as the memory of latencies, one stray
failure would cost an endpoint its calls for most of a minute (docs/decisions/0011)."""

_MORE_PAIRS = 7
"""Drawn when the better of the first two has failed: enough to find the one that works among four
with probability 0.996."""

_UNKNOWN_LATENCY = 1e6
"""An endpoint with a first call under way and no latency yet is as good as taken: its first
answer decides. Larger than any latency (Finagle's Penalty)."""


_SHORTEST = 1e-6
"""Seconds that any answer counts as at least, and below which no memory fades: at none at all an
endpoint would look unknown, or free however many calls are pending."""


class _Loaded(Protocol):
    @property
    def is_failing(self) -> bool: ...
    def load(self, now: float) -> float: ...


E = TypeVar("E", bound=_Loaded)


class PeakEwma:
    """One endpoint's latency, remembered by its peaks, and the calls pending on it."""

    __slots__ = ("_at", "_failed_at", "_latency", "decay", "is_failing", "pending")

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.pending = 0
        self.is_failing = False
        """Whether it has failed and not succeeded since."""
        self._failed_at = 0.0
        self._latency = 0.0
        self._at = 0.0

    def latency(self, now: float) -> float:
        """Return the remembered latency in seconds, faded since the last sample."""
        # Asked twice for each pick, so spelled out: max() and min() would double its cost.
        age = now - self._at
        if age <= 0.0 or not self._latency:
            return self._latency
        faded = self._latency * math.exp(-age / self.decay)
        return faded if faded > _SHORTEST else _SHORTEST  # noqa: FURB136

    def observe(self, latency: float, now: float) -> None:
        """Take in a sample: a peak at once, anything lower by its weight in time."""
        latency = max(latency, _SHORTEST)
        if latency >= self._latency:
            self._latency = latency
        else:
            kept = self._kept(now)
            self._latency = self._latency * kept + latency * (1.0 - kept)
        self._at = now

    def hold(self, latency: float, now: float) -> None:
        """Take in an answer whose speed means nothing, such as a refusal.

        It keeps what is remembered from fading: quick refusals must not make an endpoint look
        quick. But what has faded stays so: one refusal must not bring an old peak back. Only an
        endpoint without any sample takes the latency for want of a better one.
        """
        if not self._latency:
            self._latency = max(latency, _SHORTEST)
        elif now - self._at > self.decay:
            self._latency = self.latency(now)
        self._at = now

    def learn(self, outcome: Outcome, latency: float | None, now: float) -> None:
        """Take in how an attempt ended, and after how long; None: that says nothing of it."""
        if outcome is Outcome.SUCCESS:
            self.is_failing = False
            if latency is not None:
                self.observe(latency, now)
            return
        if latency is not None:
            if outcome is Outcome.IGNORED:
                self.hold(latency, now)
            elif latency > self.latency(now):  # an answer would have taken at least as long
                self.observe(latency, now)
        if outcome is Outcome.FAILURE or outcome is Outcome.UNREACHED:
            self.is_failing = True
            self._failed_at = now

    def forget(self) -> None:
        """Begin anew: who answers there now is not who did."""
        self._latency = 0.0
        self.is_failing = False

    def load(self, now: float) -> float:
        """Return latency x (pending + 1); with no sample yet, the first call is free."""
        if self.is_failing:
            faded = math.exp(min(0.0, self._failed_at - now) / FAILURE_DECAY)
            return max(self.latency(now), FAILURE_LATENCY * faded) * (self.pending + 1)
        if not self._latency:
            return _UNKNOWN_LATENCY * self.pending
        return self.latency(now) * (self.pending + 1)

    def _kept(self, now: float) -> float:
        # Never above 1: a `now` from before the last sample must not make the memory grow.
        return math.exp(min(0.0, self._at - now) / self.decay)


class PeakEwmaBalancer:
    """Makes pickers that draw two endpoints and keep the less loaded."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def picker(self, endpoints: Sequence[E]) -> TwoChoicesPicker[E]:
        """Return a picker over `endpoints`."""
        return TwoChoicesPicker(tuple(endpoints), self._rng)


class TwoChoicesPicker(Generic[E]):
    """The less loaded of two endpoints drawn at random."""

    __slots__ = ("_count", "_endpoints", "_rng")

    def __init__(self, endpoints: tuple[E, ...], rng: random.Random) -> None:
        self._endpoints = endpoints
        self._count = len(endpoints)
        self._rng = rng

    def pick(self, now: float, key: str | None = None) -> E:  # noqa: ARG002 - no key is kept to
        """Return the less loaded of two distinct endpoints; the first drawn when equal."""
        if self._count == 1:
            return self._endpoints[0]
        best = self._draw(now)
        if best.is_failing and self._count > 2:
            load = best.load(now)
            for _ in range(_MORE_PAIRS):
                other = self._draw(now)
                # By load also among those that work: to the first of them would go everything.
                if (its := other.load(now)) < load:
                    best, load = other, its
                if not other.is_failing:
                    break
        return best

    def _draw(self, now: float) -> E:
        i = int(self._rng.random() * self._count)
        j = int(self._rng.random() * (self._count - 1))
        j += j >= i  # skip over i; keeps every other index equally likely
        one, other = self._endpoints[i], self._endpoints[j]
        return one if one.load(now) <= other.load(now) else other

"""Throttle: a caller that sends less to a service that accepts too little of it.

Refusing a call costs a server about as much as answering it, so only its callers can take that
load off. Each compares what it wanted with what was accepted lately, and refuses the excess with
probability (requests - K x accepts) / (requests + 1) (SRE book, ch. 21 "client-side throttling").
Refusals are requests too, so the window is short, or it would feed on itself (go-zero#4101); the
probability stays below 1 and one call a second goes out regardless, so that recovery is seen.

A call counts once it is known how it went. Counted as it starts (go-zero#5011), a burst would be
refused before its first answer, and so would be a slow service's first calls.
"""

from __future__ import annotations

import math
import random

from meshrpc.policy import model
from meshrpc.resilience.window import Window

MIN_CALLS = 20
"""Below this many in the window a ratio says little; by default, below 13 calls a second, nothing is refused."""

PROBE_EVERY = 1.0
"""Seconds after which a call goes out whatever the odds are (go-zero's forcePass)."""


class Throttle:
    """What one caller holds back from one service; `rng` decides which calls those are.

    Each call that was admitted and that the service had its chance with is reported once, by
    `accepted` or `failed`. One that reached nobody, or that was cancelled, is reported by neither.
    """

    __slots__ = ("_let_out_at", "_policy", "_rng", "_window")

    def __init__(self, policy: model.Throttle, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._window = Window(policy.window)
        self._let_out_at = -math.inf

    def configure(self, policy: model.Throttle, now: float) -> None:
        """Change the rules; what the old window has counted goes on counting, as if it came now."""
        if policy.window != self._policy.window:
            window = Window(policy.window)
            window.add(now, *self._window.counts(now))
            self._window = window
        self._policy = policy

    def admit(self, now: float) -> bool:
        """Return whether a call may go out; False counts as one that was not accepted."""
        requests, accepts = self._window.counts(now)
        if (
            requests > self._policy.multiplier * accepts  # seldom: the rest is not even looked at
            and now - self._let_out_at < PROBE_EVERY
            and self._rng.random() < self._probability(requests, accepts)
        ):
            self._window.add(now, 1, 0)
            return False
        self._let_out_at = now
        return True

    def accepted(self, now: float) -> None:
        """Count a call that the service took, whatever it answered."""
        self._window.add(now, 1, 1)

    def failed(self, now: float) -> None:
        """Count a call that the service did not take, or not in time."""
        self._window.add(now, 1, 0)

    def rejection_probability(self, now: float) -> float:
        """Return the part of the calls that is refused at present: 0 up to `max_rejected`."""
        return self._probability(*self._window.counts(now))

    def _probability(self, requests: int, accepts: int) -> float:
        if requests < MIN_CALLS:
            return 0.0
        excess = (requests - self._policy.multiplier * accepts) / (requests + 1)
        return max(0.0, min(excess, self._policy.max_rejected))

    def __repr__(self) -> str:
        return f"<Throttle {self._window!r}>"

"""Hedging: when a second attempt is due while the first one runs, and how many there may be.

A call is hedged when it takes longer than a percentile of its method's latencies (Dean and Barroso,
"The Tail at Scale"; Finagle's BackupRequestFilter), at least 1 ms. With the 95th percentile that
is every twentieth call. When everything becomes slow at once it would be every call: a budget holds
the hedges to a part of the calls, and nothing of it is there before the calls are. A call that was
hedged took longer than the percentile whoever answered, so hedging does not pull the percentile
down. Which methods are hedged, and where a hedge goes, is not decided here.
"""

from __future__ import annotations

from typing import Final

from meshrpc.policy import model
from meshrpc.resilience.percentile import Percentile
from meshrpc.resilience.retry_budget import RetryBudget

MIN_DELAY: Final = 0.001
"""Seconds: below this a second attempt would cost more than the wait (Finagle has the same)."""


class Hedges:
    """The methods of one service that are hedged."""

    def __init__(self) -> None:
        self._methods: dict[str, Hedging] = {}

    def method(self, path: str, policy: model.Hedge, now: float) -> Hedging:
        """Return what is known of `/pkg.Service/Method`, to be hedged by `policy` from now on."""
        known = self._methods.get(path)
        if known is None:
            known = self._methods[path] = Hedging(policy, now)
        elif known.policy != policy:
            known.configure(policy, now)
        return known


class Hedging:
    """What the calls of one method have shown, and the hedges they may still add."""

    __slots__ = ("_budget", "_latencies", "policy")

    def __init__(self, policy: model.Hedge, now: float) -> None:
        self.policy = policy
        self._latencies = Percentile(now)
        self._budget = RetryBudget(_rates(policy), now, saved=0.0)

    def __repr__(self) -> str:
        return f"<Hedging {self._latencies!r} {self._budget!r}>"

    def configure(self, policy: model.Hedge, now: float) -> None:
        """Follow another policy; what was seen and what was saved stay."""
        self.policy = policy
        self._budget.configure(_rates(policy), now)

    def begin(self, now: float) -> float | None:
        """Count a call, and return the seconds until its hedge is due.

        None: too little is known to say what is slow.
        """
        self._budget.deposit()
        latency = self._latencies.value(self.policy.percentile, now)
        return None if latency is None else max(MIN_DELAY, latency)

    def grant(self, now: float) -> bool:
        """Return whether a hedge may be sent, and count it if so: it is sent at once."""
        return self._budget.withdraw(now)

    def observe(self, latency: float, now: float) -> None:
        """Learn how long a call took: seconds from its start to the answer, whoever gave it."""
        self._latencies.observe(latency, now)


def _rates(policy: model.Hedge) -> model.RetryBudget:
    return model.RetryBudget(ratio=policy.max_extra, min_per_second=0.0)

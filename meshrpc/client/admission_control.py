"""Admission control: the calls that this process makes of one service, and those it refuses itself.

Before a call is sent, the circuit breaker looks at how many are under way and the throttle at how
many the service accepted lately; a call that is let through puts something into the retry budget.
The decisions are `resilience`'s; here they meet the calls.
"""

from __future__ import annotations

import random

import grpc

from meshrpc.client.attempt import Attempt
from meshrpc.policy.model import EffectivePolicy
from meshrpc.resilience.circuit_breaker import CircuitBreaker
from meshrpc.resilience.outcome import Outcome
from meshrpc.resilience.retry_budget import RetryBudget
from meshrpc.resilience.throttle import Throttle
from meshrpc.wire import NOT_EXECUTED, OVERLOADED

_NOT_ACCEPTED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""How a call ends that the service did not cope with; other failures are mistakes of its own."""


class AdmissionControl:
    """What bounds the calls to one service, and the retries among them."""

    def __init__(self, policy: EffectivePolicy, now: float, rng: random.Random) -> None:
        self.budget = RetryBudget(policy.retry_budget, now)
        self._throttle = Throttle(policy.throttle, rng)
        self._breaker = CircuitBreaker(policy.circuit_breaker)

    def __repr__(self) -> str:
        return f"<AdmissionControl {self._breaker!r} {self._throttle!r} {self.budget!r}>"

    def configure(self, policy: EffectivePolicy, now: float) -> None:
        """Go by another policy from now on."""
        self.budget.configure(policy.retry_budget, now)
        self._throttle.configure(policy.throttle, now)
        self._breaker.configure(policy.circuit_breaker)

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return self._breaker.in_flight

    def admit(self, now: float) -> str | None:
        """Count a call in; or return, for people, why it is refused.

        Exactly one `call_ended` follows for a call that was counted in.
        """
        if not self._breaker.acquire():
            return f"the circuit breaker is open: {self.in_flight} calls are under way"
        if not self._throttle.admit(now):
            self._breaker.release()
            return "throttled, because too few calls are accepted there"
        self.budget.deposit()
        return None

    def call_ended(self, last: Attempt | None, now: float) -> None:
        """Count a call out; `last` is its last attempt, None if it was not sent or forgotten."""
        self._breaker.release()
        outcome = None if last is None else last.outcome
        if last is None or outcome is Outcome.UNREACHED or outcome is Outcome.ABANDONED:
            return  # it says nothing of what the service accepts
        if (outcome is Outcome.FAILURE and last.code in _NOT_ACCEPTED) or _is_overload(last):
            self._throttle.failed(now)
        else:
            self._throttle.accepted(now)


def _is_overload(last: Attempt) -> bool:
    """Whether a server had too much to do to take the call.

    A refusal for a rate says the same code, but is of one key: for others the service has room.
    CANCELLED, where nobody here cancelled, is what grpc says that has no room for a call.
    """
    return last.code is grpc.StatusCode.CANCELLED or (
        last.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        and last.details.startswith(OVERLOADED)
        and any(key == NOT_EXECUTED for key, _ in last.trailers())
    )

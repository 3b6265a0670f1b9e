"""Retries within their budget, in any order of events and when everything fails for long."""

import heapq
import random
from dataclasses import dataclass
from fractions import Fraction

import grpc
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshrpc import wire
from meshrpc.policy import model
from meshrpc.resilience.outcome import CONNECT_FAILED
from meshrpc.resilience.retry import backoff, may_retry, read_failure
from meshrpc.resilience.retry_budget import SAVED, RetryBudget

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED


@dataclass(slots=True, eq=False)
class Call:
    """A call whose attempts all fail, as long as it is in the machine."""

    idempotent: bool
    deadline: float | None
    attempts: int = 1
    next_at: float | None = None
    """When its next attempt starts; None while one is under way."""


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ends, and what that means, by hand."""

    code: grpc.StatusCode
    details: str = ""
    trailers: wire.Metadata = ()
    timed_out: bool = False
    not_executed: bool = False


ENDS = [
    End(UNAVAILABLE, "Socket closed"),
    End(UNAVAILABLE, "the handler said: failed to connect to all addresses"),
    End(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    End(grpc.StatusCode.INTERNAL, CONNECT_FAILED),
    End(grpc.StatusCode.INVALID_ARGUMENT, "no such book"),
    End(DEADLINE_EXCEEDED),
    End(DEADLINE_EXCEEDED, timed_out=True),
    End(UNAVAILABLE, CONNECT_FAILED + "; last error: refused", not_executed=True),
    End(UNAVAILABLE, "Received RST_STREAM with error code 7", not_executed=True),
    End(UNAVAILABLE, "leaving", ((wire.NOT_EXECUTED, "1"),), not_executed=True),
    End(grpc.StatusCode.RESOURCE_EXHAUSTED, "", ((wire.NOT_EXECUTED, "1"),), not_executed=True),
]

PUSHBACKS = {
    "0": 0.0,
    "1": 0.001,
    "250": 0.25,
    "60000": 60.0,
    b"40": 0.04,
    "-1": None,
    "-250": None,
    "": None,
    "soon": None,
    "1.5": None,
    "+5": None,
    " 5": None,
    "٣": None,  # a digit, but not one of ASCII's
    b"\xff": None,
}
"""What a server may say, and the seconds that makes; None: not again."""

CODES = [
    frozenset({UNAVAILABLE}),
    frozenset({UNAVAILABLE, DEADLINE_EXCEEDED}),
    frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED}),
]

policies = st.builds(
    model.Retry,
    attempts=st.integers(1, 6),
    codes=st.sampled_from(CODES),
    backoff=st.builds(
        model.Backoff, base=st.sampled_from([0.001, 0.025]), max=st.sampled_from([0.025, 0.25])
    ),
)


def decide(
    policy: model.Retry,
    end: End,
    pushback: str | bytes | None,
    attempts: int,
    *,
    idempotent: bool,
    rng: random.Random,
) -> float | None:
    """Return the wait before the next attempt, None without one, as it should be."""
    said = () if pushback is None else ((wire.RETRY_PUSHBACK, pushback),)
    failure = read_failure(end.code, end.details, end.trailers + said, timed_out=end.timed_out)
    allowed = may_retry(policy, failure, attempts=attempts, idempotent=idempotent)
    assert allowed == (
        attempts < policy.attempts
        and (end.timed_out or end.code in policy.codes)
        and (idempotent or end.not_executed)
        and (pushback is None or PUSHBACKS[pushback] is not None)
    )
    if not allowed:
        return None
    wait = backoff(policy.backoff, failure, retry=attempts, rng=rng)
    if pushback is not None:
        assert wait == PUSHBACKS[pushback]
    elif end.not_executed and attempts == 1:
        assert wait == 0.0
    else:
        planned = policy.backoff.base
        for _ in range(attempts - 1):
            planned *= 2
        planned = min(planned, policy.backoff.max)
        assert 0.8 * planned <= wait <= 1.2 * planned
    return wait


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: f"{end.code.name} {end.details}".strip())
def test_every_end_with_everything_a_server_may_say_is_decided_as_it_should_be(end, idempotent):
    """What may have been executed is repeated only if idempotent, and never against pushback."""
    rng = random.Random(1)
    for codes in CODES:
        policy = model.Retry(attempts=3, codes=codes)
        for pushback in [None, *PUSHBACKS]:
            for attempts in (1, 2, 3):
                decide(policy, end, pushback, attempts, idempotent=idempotent, rng=rng)


class RetryModel(RuleBasedStateMachine):
    """Calls that fail in every way, decided upon as a call of the client does.

    Beside them stands a budget in exact fractions that earns as time passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 50.0
        self.rng = random.Random(1)
        self.rates = model.RetryBudget()
        self.budget = RetryBudget(self.rates, self.now)
        self.tokens = Fraction(SAVED)
        self.calls: list[Call] = []
        self.earned = Fraction(0)
        self.spent = 0
        # Spent less earned, at every moment so far.
        self.owed = [Fraction(0)]

    def earn(self, amount: Fraction) -> None:
        self.earned += amount
        self.tokens = min(Fraction(SAVED), self.tokens + amount)

    def withdraw(self) -> bool:
        granted = self.budget.withdraw(self.now)
        if abs(self.tokens - 1) > Fraction(1, 10**6):  # floats decide the rest
            assert granted == (self.tokens >= 1)
        if granted:
            self.tokens -= 1
            self.spent += 1
        return granted

    @rule()
    def spend_all(self):
        """Many calls of others fail at once."""
        while self.withdraw():
            assert self.tokens > -1

    @rule(idempotent=st.booleans(), within=st.sampled_from([None, 0.01, 0.3, 5.0]))
    def begin(self, idempotent, within):
        self.calls.append(Call(idempotent, within and self.now + within))
        self.budget.deposit()
        self.earn(Fraction(self.rates.ratio))

    @rule(calls=st.integers(1, 100))
    def succeed(self, calls):
        for _ in range(calls):
            self.budget.deposit()
            self.earn(Fraction(self.rates.ratio))

    @precondition(lambda self: any(call.next_at is None for call in self.calls))
    @rule(
        data=st.data(),
        policy=policies,
        end=st.sampled_from(ENDS),
        pushback=st.none() | st.sampled_from(list(PUSHBACKS)),
        times=st.integers(1, 15),
    )
    def fail(self, data, policy, end, pushback, times):
        """Let a call's attempt fail, and as many others of its kind as run."""
        running = [call for call in self.calls if call.next_at is None]
        first = data.draw(st.sampled_from(running))
        alike = [call for call in running if call.idempotent is first.idempotent]
        for call in alike[:times]:
            self.fail_one(call, policy, end, pushback)

    def fail_one(
        self, call: Call, policy: model.Retry, end: End, pushback: str | bytes | None
    ) -> None:
        wait = decide(
            policy, end, pushback, call.attempts, idempotent=call.idempotent, rng=self.rng
        )
        if wait is None:
            self.calls.remove(call)
            return
        if call.deadline is not None and self.now + wait >= call.deadline:
            self.calls.remove(call)
            return
        if not self.withdraw():
            self.calls.remove(call)
            return
        call.next_at = self.now + wait
        assert call.deadline is None or call.next_at < call.deadline

    @rule(seconds=st.sampled_from([0.001, 0.03, 0.4, 3.0, 3600.0]))
    def advance(self, seconds):
        until = self.now + seconds
        self.earn(Fraction(until - self.now) * Fraction(self.rates.min_per_second))
        self.now = until
        for call in self.calls:
            if call.next_at is not None and call.next_at <= self.now:
                call.next_at = None
                call.attempts += 1

    @rule(ratio=st.sampled_from([0.0, 0.1, 0.5]), per_second=st.sampled_from([0.0, 1.0, 20.0]))
    def configure(self, ratio, per_second):
        self.rates = model.RetryBudget(ratio=ratio, min_per_second=per_second)
        self.budget.configure(self.rates, self.now)
        self.spend_all()  # what the old rates have earned until now, and no more

    @invariant()
    def retries_stay_within_what_was_earned(self):
        """Since any moment: no more than was earned since then, and what can be saved."""
        self.owed.append(self.spent - self.earned)
        assert self.owed[-1] <= min(self.owed) + Fraction(SAVED) + Fraction(1, 10**6)

    @invariant()
    def the_balance_is_between_nothing_and_what_is_saved(self):
        assert 0.0 <= self.budget._tokens <= SAVED


RetryModel.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, derandomize=True
)
TestRetryModel = RetryModel.TestCase


@pytest.mark.parametrize("rate", [20, 100, 500])
def test_when_everything_fails_retries_add_less_than_a_fifth(rate):
    """A minute of failures, each known after 20 ms: 1.2 attempts a call at most, with no throttle.

    The budget's own promise holds beside it, and most of what it grants is used.
    """
    policy, rates, rng = model.Retry(), model.RetryBudget(), random.Random(rate)
    budget = RetryBudget(rates, 0.0)
    failing = [(number / rate + 0.02, 1) for number in range(60 * rate)]
    calls = retries = 0
    failure = read_failure(UNAVAILABLE, "the database is gone", ())
    while failing:
        now, attempts = heapq.heappop(failing)
        if attempts == 1:
            calls += 1
            budget.deposit()
        if may_retry(policy, failure, attempts=attempts, idempotent=True):
            wait = backoff(policy.backoff, failure, retry=attempts, rng=rng)
            if budget.withdraw(now):
                retries += 1
                heapq.heappush(failing, (now + wait + 0.02, attempts + 1))
    assert calls == 60 * rate
    assert (calls + retries) / calls <= 1.2
    granted = rates.ratio * calls + rates.min_per_second * now + SAVED
    assert 0.95 * granted < retries <= granted

"""Which failed attempts are followed by another, when, and how many in all."""

import random

import grpc
import pytest

from meshrpc import wire
from meshrpc.policy.model import Backoff, EffectivePolicy, Retry
from meshrpc.policy.model import RetryBudget as BudgetPolicy
from meshrpc.policy.table import PolicyTable, is_idempotent
from meshrpc.resilience.outcome import Outcome, classify
from meshrpc.resilience.retry import Failure, backoff, may_retry, pause_before_retry, read_failure
from meshrpc.resilience.retry_budget import SAVED, RetryBudget
from services.payment.v1 import payment_pb2  # noqa: F401 - its descriptors say what is idempotent

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
INTERNAL = grpc.StatusCode.INTERNAL
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("failure", "idempotent", "attempts", "expected"),
    [
        (Failure(UNAVAILABLE), True, 1, True),
        (Failure(UNAVAILABLE), True, 2, True),
        (Failure(UNAVAILABLE), True, 3, False),
        (Failure(UNAVAILABLE), False, 1, False),
        (Failure(UNAVAILABLE, not_executed=True), False, 1, True),
        (Failure(INTERNAL), True, 1, False),
        (Failure(RESOURCE_EXHAUSTED, not_executed=True), True, 1, False),
        (Failure(UNAVAILABLE, pushback=-1.0), True, 1, False),
        (Failure(UNAVAILABLE, pushback=0.5), True, 1, True),
        (Failure(grpc.StatusCode.DEADLINE_EXCEEDED, timed_out=True), True, 1, True),
        (Failure(grpc.StatusCode.DEADLINE_EXCEEDED, timed_out=True), False, 1, False),
        (Failure(grpc.StatusCode.DEADLINE_EXCEEDED), True, 1, False),
    ],
)
def test_a_retry_needs_a_retried_code_a_repeatable_call_and_attempts_left(
    failure, idempotent, attempts, expected
):
    """Each of the three can forbid it alone, and so can the server."""
    assert (
        may_retry(Retry(attempts=3), failure, attempts=attempts, idempotent=idempotent) is expected
    )


def test_backoff_doubles_up_to_its_maximum_within_its_jitter():
    """Retry n waits base x 2^(n-1), at most max, by 20 % more or less."""
    policy, rng = Backoff(base=0.025, max=0.25), random.Random(1)
    for retry, expected in ((1, 0.025), (2, 0.05), (4, 0.2), (5, 0.25), (40, 0.25)):
        for _ in range(100):
            wait = backoff(policy, Failure(UNAVAILABLE), retry=retry, rng=rng)
            assert 0.8 * expected <= wait <= 1.2 * expected


@pytest.mark.parametrize(
    ("remaining", "expected"), [(None, 0.5), (0.51, 0.5), (0.5, None), (0.1, None), (-1.0, None)]
)
def test_no_attempt_is_planned_for_when_the_deadline_has_passed(remaining, expected):
    """Nor for that very moment."""
    failure = Failure(UNAVAILABLE, pushback=0.5)
    pause = pause_before_retry(
        Retry(), failure, attempts=1, idempotent=True, remaining=remaining, rng=random.Random(1)
    )
    assert pause == expected


def test_what_a_server_that_stops_has_dropped_counts_as_unavailable():
    """It ends with CANCELLED, although nobody here cancelled."""
    assert read_failure(grpc.StatusCode.CANCELLED, "", ()).code is UNAVAILABLE


def test_what_was_not_executed_goes_elsewhere_at_once():
    """The first retry of a refused connection does not wait; the second does."""
    rng, failure = random.Random(1), Failure(UNAVAILABLE, not_executed=True)
    assert backoff(Backoff(), failure, retry=1, rng=rng) == 0.0
    assert backoff(Backoff(), failure, retry=2, rng=rng) > 0.0


def test_pushback_sets_the_wait_exactly():
    """A server that says when is taken at its word."""
    failure = Failure(UNAVAILABLE, pushback=1.25)
    assert backoff(Backoff(), failure, retry=1, rng=random.Random(1)) == 1.25


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("1500", 1.5),
        ("-1", -1.0),
        ("soon", -1.0),
        ("", -1.0),
        (b"20", 0.02),
        ("1.5", -1.0),
    ],
)
def test_pushback_is_milliseconds_and_anything_else_means_never(value, expected):
    """gRFC A6: negative or unparseable is "do not retry"."""
    trailers = (("grpc-retry-pushback-ms", value),)
    assert read_failure(UNAVAILABLE, "", trailers).pushback == expected


@pytest.mark.parametrize(
    ("code", "details", "trailers", "expected"),
    [
        (UNAVAILABLE, "failed to connect to all addresses; last error: UNKNOWN", (), True),
        (UNAVAILABLE, "Received RST_STREAM with error code 7", (), True),
        (UNAVAILABLE, "Received RST_STREAM with error code 2", (), False),
        (UNAVAILABLE, "Socket closed", (), False),
        (UNAVAILABLE, "", (("mesh-not-executed", "1"),), True),
        (INTERNAL, "failed to connect to all addresses", (), False),
    ],
)
def test_not_executed_is_only_what_can_be_proved(code, details, trailers, expected):
    """A connection that broke may have carried the call; one that was refused did not."""
    assert read_failure(code, details, trailers).not_executed is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.OK, Outcome.SUCCESS),
        (UNAVAILABLE, Outcome.FAILURE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Outcome.FAILURE),
        (INTERNAL, Outcome.FAILURE),
        (grpc.StatusCode.INVALID_ARGUMENT, Outcome.IGNORED),
        (grpc.StatusCode.NOT_FOUND, Outcome.IGNORED),
        (grpc.StatusCode.CANCELLED, Outcome.IGNORED),
        (RESOURCE_EXHAUSTED, Outcome.IGNORED),
    ],
)
def test_only_the_endpoints_own_faults_count_against_it(code, expected):
    """The caller's mistakes and a refusal for its rate say nothing about the endpoint."""
    assert classify(code) is expected


@pytest.mark.parametrize("rate", [20, 100, 500])
def test_the_budget_keeps_attempts_within_1_2_of_calls_when_everything_fails(rate):
    """At 20 calls a second or more, a minute of total failure adds at most a fifth.

    Bound: ratio 0.1, plus 1/s over 20/s = 0.05, plus 10 saved over 1200 calls = 0.01.
    """
    budget, attempts, calls = RetryBudget(BudgetPolicy(), 0.0), 0, 60 * rate
    for call in range(calls):
        now = call / rate
        budget.deposit()
        attempts += 1
        for _ in range(2):
            attempts += budget.withdraw(now)
    assert attempts <= 1.2 * calls


def test_the_budget_saves_up_to_ten_retries_and_no_more():
    """A burst of failures after a quiet hour is covered up to the saved tokens."""
    budget = RetryBudget(BudgetPolicy(), 0.0)
    granted = sum(budget.withdraw(3600.0) for _ in range(100))
    assert granted == SAVED


def test_a_changed_budget_keeps_what_was_saved():
    """A policy push mints no retries."""
    budget = RetryBudget(BudgetPolicy(), 0.0)
    for _ in range(10):
        assert budget.withdraw(0.0)
    budget.configure(BudgetPolicy(ratio=0.5, min_per_second=100.0), 0.0)
    assert not budget.withdraw(0.0)


def test_a_changed_budget_holds_from_the_change_on():
    """An hour at 0/s earns nothing, though it is looked at only once the rate is 100/s."""
    budget = RetryBudget(BudgetPolicy(min_per_second=0.0), 0.0)
    for _ in range(10):
        assert budget.withdraw(0.0)
    budget.configure(BudgetPolicy(min_per_second=100.0), 3600.0)
    assert not budget.withdraw(3600.0)
    assert budget.withdraw(3600.01)


def test_a_clock_read_out_of_order_costs_no_token():
    """A `now` from before the last one counts as the same time."""
    budget = RetryBudget(BudgetPolicy(), 10.0)
    assert sum(budget.withdraw(now) for now in (10.0, 0.0, -1e6, 10.0)) == 4


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("payment.v1.PaymentService/Charge", True),
        ("payment.v1.PaymentService/GetPayment", True),
        ("grpc.health.v1.Health/Check", False),
        ("nobody.Knows/This", False),
    ],
)
def test_idempotency_is_what_the_proto_says(method, expected):
    """Without a descriptor, or an option in it, a method is not repeated."""
    assert is_idempotent(method) is expected


def test_a_policy_can_name_a_method_that_may_be_repeated():
    """`non_idempotent` lists exact methods, and only those."""
    table = PolicyTable(EffectivePolicy("x", retry=Retry(non_idempotent=frozenset({"a.B/C"}))))
    assert table.method("/a.B/C").fixed.idempotent
    assert not table.method("/a.B/D").fixed.idempotent


def test_what_a_server_cut_when_it_left_may_have_been_executed():
    """Unless it says that no handler has seen it."""
    cut = ((wire.DRAIN, "1"),)
    assert read_failure(UNAVAILABLE, "the server is leaving", cut).broken
    refused = (*cut, (wire.NOT_EXECUTED, "1"))
    assert not read_failure(UNAVAILABLE, "the server is leaving", refused).broken

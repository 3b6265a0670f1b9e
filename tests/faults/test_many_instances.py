"""What callers notice when many instances break, or all of them, and come back."""

import itertools
import math

import grpc
import pytest

from tests.faults import scenarios
from tests.faults.account import attempts_a_call, back_after, is_back, went_to_a_broken
from tests.faults.methods import GET, PUT

pytestmark = [pytest.mark.process, pytest.mark.alone]

OUT_WITHIN = 3.0
BACK_WITHIN = 5.0
ATTEMPTS = 1.2
"""A call, at most, with everything failing."""
SLACK = 0.05


ONE_AT_A_TIME = """
    balancer: round_robin
"""
BREAKER = """
    concurrency: off
    circuit_breaker: {max_requests: 30}
    throttle: {max_rejected: 0%}
"""


def most_at_once(attempts):
    """Return how many attempts were under way at a time, at most."""
    steps = sorted([(a.began, 1) for a in attempts] + [(a.ended, -1) for a in attempts])
    return max(itertools.accumulate(step for _, step in steps))


def longest(run, calls):
    """Return what the longest of these calls took, but for what this process's own loop stood still."""
    return max(
        call.ended - call.started - run.lag.between(call.started, call.ended) for call in calls
    )


def check_all(run):
    """Hardly more attempts than calls, no call late, and back in time once there is somebody."""
    fault, healed = run.marks["fault"], run.marks["healed"]
    assert attempts_a_call(run, fault, healed) <= ATTEMPTS
    assert run.overdue("mesh") <= SLACK
    assert back_after(run.mesh.calls, healed) <= BACK_WITHIN
    executions = run.executions("mesh")
    assert [c for c in run.mesh.calls if c.method == PUT and executions[c.number] > 1] == []


async def test_half_of_the_instances_are_cut_off(wired):
    """Calls fail only until it is noticed; none is late; afterwards all four are asked again.

    Those two get no new calls within 3 s.
    """
    run = await scenarios.blackhole_half(
        wired,
        cut=OUT_WITHIN + 0.3,
        after=BACK_WITHIN,
        until=lambda run: all(run.attempts_at(v, run.marks["healed"]) for v in wired),
    )
    assert run.overdue("mesh") <= SLACK
    fault, healed = run.marks["fault"], run.marks["healed"]
    assert run.mesh.meant(fault + OUT_WITHIN, healed)
    failed = run.mesh.failed_by(run.lag)
    assert [call for call in failed if fault + OUT_WITHIN <= call.meant < healed] == []
    assert [went_to_a_broken(victim, run, OUT_WITHIN) for victim in wired.victims[:2]] == [[], []]
    assert all(run.attempts_at(victim, healed) for victim in wired)


def after_the_first(count, attempts):
    """Return how many attempts began after so many had ended."""
    ended = sorted(attempt.ended for attempt in attempts)[:count][-1:]
    return sum(attempt.began > end for attempt in attempts for end in ended)


async def test_of_two_that_fail_one_is_ejected_and_the_other_stays(fleet):
    """Ten per cent of four is nobody, but one may always go, and no more than that.

    In turns, so that both get calls enough; by default failures alone keep calls away from both.
    """
    with fleet.following(ONE_AT_A_TIME):
        run = await scenarios.misbehave_half(fleet, "fail", bad=1.5, after=0)
    ejected = {endpoint.instance.id for endpoint in run.ejected_at_the_end}
    assert len(ejected) == 1
    assert ejected < {victim.id for victim in fleet.victims[:2]}
    # Ejected by its first failures, of which as many may be under way as calls came at once.
    asked = [after_the_first(10, run.attempts_at(v, run.marks["fault"])) for v in fleet.victims[:2]]
    assert min(asked) < 10 < max(asked)


async def test_when_everything_hangs_no_more_calls_pile_up_than_the_breaker_lets(fleet):
    """Thirty under way at a time; the others fail at once, were not executed, and none is late."""
    with fleet.following(BREAKER):
        run = await scenarios.fail_all(
            fleet,
            word="hang",
            rate=100,
            methods=(PUT,),
            failing=1.5,
            apart=0.1,
            after=5.5,
            until=is_back,
        )
    check_all(run)
    executions = run.executions("mesh")
    refused = [c for c in run.mesh.failed() if c.code is not grpc.StatusCode.DEADLINE_EXCEEDED]
    assert {call.code for call in refused} == {grpc.StatusCode.UNAVAILABLE}
    assert sum(executions[call.number] for call in refused) == 0
    assert longest(run, refused) < 0.1
    assert most_at_once(run.attempts) <= 30


@pytest.mark.parametrize(
    "rate",
    [20, pytest.param(100, marks=pytest.mark.soak), pytest.param(500, marks=pytest.mark.soak)],
)
async def test_when_everything_fails_nothing_gets_worse(fleet, rate):
    """At most 1.2 attempts a call, and 95 % succeed within 5 s of the first healthy instance.

    All calls may be repeated, so that nothing but the budget and the throttle bounds the attempts.
    """
    check_all(
        await scenarios.fail_all(
            fleet, rate=rate, methods=(GET,), failing=2.0, apart=0.2, after=5.5, until=is_back
        )
    )


@pytest.mark.parametrize(
    "rate",
    [
        pytest.param(20, marks=pytest.mark.soak),
        100,
        pytest.param(500, marks=pytest.mark.soak),
    ],
)
async def test_when_everything_is_dead_calls_fail_at_once(fleet, rate):
    """Nobody is there: calls fail fast, and succeed within 5 s of the first instance's return."""
    # At 20 calls/s the ten retries that the budget had saved are many for a while.
    dead = 12.0 if rate == 20 else 2.0
    run = await scenarios.kill_all(
        fleet, rate=rate, methods=(GET,), dead=dead, apart=0.1, after=5.0, until=is_back
    )
    check_all(run)
    hopeless = run.mesh.meant(run.marks["fault"] + 1, run.marks["healed"] - 1)
    assert hopeless
    assert longest(run, hopeless) < 0.5


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rate", [20, 100, 500])
async def test_there_is_no_metastable_tail(fleet, rate):
    """After a longer failure calls go on to succeed, for as long as they are watched."""
    run = await scenarios.fail_all(fleet, rate=rate, failing=20.0, after=20.0)
    check_all(run)
    late = run.mesh.meant(run.marks["healed"] + BACK_WITHIN, math.inf)
    assert sum(call.is_ok for call in late) >= 0.99 * len(late)


async def test_a_failing_leaf_is_asked_hardly_more_often_than_there_are_calls(chain):
    """Three services deep, every one with retries, at most 1.2 calls arrive at the leaf for each."""
    front, _, leaf = chain
    run = await scenarios.fail_leaf(front, leaf, methods=(GET,), failing=2.5)
    began = run.marks["failing"]
    calls = run.mesh.meant(began)
    arrived = leaf.executions(began)
    assert len(arrived) <= ATTEMPTS * len(calls)
    assert len(arrived) > 10
    assert run.overdue("mesh") <= SLACK

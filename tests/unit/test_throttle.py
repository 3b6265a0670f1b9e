"""What a caller holds back from a service that accepts too little of what it gets."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from meshrpc.policy import model
from meshrpc.resilience.throttle import MIN_CALLS, PROBE_EVERY, Throttle

POLICY = model.Throttle(multiplier=2.0, window=2.0, max_rejected=0.8)
NOW = 100.0


class Roll(random.Random):
    """A die that always shows the same."""

    shows = 0.0

    def random(self) -> float:
        return self.shows


def throttle_after(accepted: int, failed: int, policy: model.Throttle = POLICY) -> Throttle:
    """Return a throttle that has just let one call out, and knows how these others went.

    It refuses what it may: its die shows 0.
    """
    throttle = Throttle(policy, Roll())
    assert throttle.admit(NOW)
    for _ in range(accepted):
        throttle.accepted(NOW)
    for _ in range(failed):
        throttle.failed(NOW)
    return throttle


@pytest.mark.parametrize(
    ("multiplier", "accepted", "failed", "expected"),
    [
        (2.0, 100, 0, 0.0),
        (2.0, 50, 50, 0.0),
        (2.0, 50, 51, 1 / 102),
        (2.0, 10, 30, 20 / 41),
        (2.0, 0, 20, 0.8),
        (1.5, 20, 10, 0.0),
        (1.5, 20, 20, 10 / 41),
        (4.0, 10, 30, 0.0),
    ],
)
def test_it_refuses_the_excess_over_the_accepted_calls_times_the_multiplier(
    multiplier, accepted, failed, expected
):
    """The SRE book's formula, and nothing at all while no more than that was sent."""
    policy = model.Throttle(multiplier=multiplier, window=2.0, max_rejected=0.8)
    throttle = throttle_after(accepted, failed, policy)
    assert throttle.rejection_probability(NOW) == pytest.approx(expected)
    assert throttle.admit(NOW) is (expected == 0.0)


def test_the_die_decides_with_exactly_that_probability():
    """A roll below the probability refuses; one that equals it does not."""
    throttle = throttle_after(10, 30)
    throttle._rng.shows = throttle.rejection_probability(NOW)
    assert throttle.admit(NOW)
    throttle._rng.shows -= 1e-9
    assert not throttle.admit(NOW)


def test_a_ratio_of_few_calls_says_nothing():
    """Nineteen failures refuse nothing; the twentieth does."""
    throttle = throttle_after(0, MIN_CALLS - 1)
    assert throttle.rejection_probability(NOW) == 0.0
    assert throttle.admit(NOW)
    throttle.failed(NOW)
    assert not throttle.admit(NOW)


def test_no_more_than_the_cap_is_refused():
    """With everything failing for long, one call in five still goes out."""
    throttle = Throttle(POLICY, random.Random(1))
    passed = 0
    for step in range(20_000):
        now = NOW + step / 1000
        if throttle.admit(now):
            passed += 1
            throttle.failed(now)
    assert 0.19 < passed / 20_000 < 0.21
    assert throttle.rejection_probability(now) == 0.8


def test_without_a_cap_to_reach_it_never_refuses():
    """max_rejected 0 turns it off."""
    policy = model.Throttle(max_rejected=0.0)
    throttle = throttle_after(0, 1000, policy)
    assert throttle.rejection_probability(NOW) == 0.0
    assert all(throttle.admit(NOW) for _ in range(100))


def test_a_refused_call_is_a_request_that_was_not_accepted():
    """Refusals raise the probability as failures do."""
    throttle = throttle_after(10, 30)
    assert not throttle.admit(NOW)
    assert throttle.rejection_probability(NOW) == pytest.approx(21 / 42)


def test_calls_under_way_count_for_nothing():
    """A burst of a thousand calls passes before the first is answered, also after some failures."""
    throttle = throttle_after(3, 2)
    assert all(throttle.admit(NOW) for _ in range(1000))
    assert throttle.rejection_probability(NOW) == 0.0


def test_a_service_that_is_slower_than_the_window_is_not_failing():
    """Calls that take ten seconds, and are accepted, are never refused."""
    throttle = Throttle(POLICY, Roll())
    calls = simulate(throttle, 100, lambda _: True, until=30.0, latency=10.0)
    assert all(call.admitted for call in calls)


def test_one_call_a_second_goes_out_whatever_the_odds():
    """A call passes when none has for a second, and not a moment sooner."""
    throttle = throttle_after(0, 10_000)
    assert not throttle.admit(NOW + PROBE_EVERY - 0.001)
    assert throttle.admit(NOW + PROBE_EVERY)
    assert not throttle.admit(NOW + PROBE_EVERY + 0.001)


def test_what_is_older_than_the_window_is_forgotten():
    """An outage before the last two seconds refuses nothing."""
    throttle = throttle_after(0, 1000)
    assert throttle.rejection_probability(NOW + 1.7) == 0.8
    assert throttle.rejection_probability(NOW + 2.0) == 0.0


def test_new_rules_hold_at_once_for_what_was_counted():
    """Each field counts from the next call on, and an outage is not forgotten for it."""
    throttle = throttle_after(10, 30)
    throttle.configure(model.Throttle(multiplier=1.0, window=2.0, max_rejected=0.8), NOW)
    assert throttle.rejection_probability(NOW) == pytest.approx(30 / 41)
    throttle.configure(model.Throttle(multiplier=1.0, window=2.0, max_rejected=0.5), NOW)
    assert throttle.rejection_probability(NOW) == 0.5
    throttle.configure(model.Throttle(multiplier=1.0, window=20.0, max_rejected=0.5), NOW + 1)
    assert throttle.rejection_probability(NOW + 1) == 0.5
    assert throttle.rejection_probability(NOW + 15) == 0.5
    throttle.configure(model.Throttle(multiplier=1.0, window=0.5, max_rejected=0.5), NOW + 15)
    assert throttle.rejection_probability(NOW + 16) == 0.0


def test_its_repr_is_a_status_line():
    """It says how much was accepted lately."""
    throttle = throttle_after(10, 30)
    assert repr(throttle) == f"<Throttle {throttle._window!r}>"


@dataclass(slots=True)
class Call:
    """One call of a simulation."""

    at: float
    admitted: bool
    accepted: bool = False


def simulate(
    throttle: Throttle,
    rate: float,
    accepts: Callable[[float], bool],
    *,
    until: float,
    latency: float = 0.05,
    arrivals: random.Random | None = None,
) -> list[Call]:
    """Make calls at `rate`, evenly or as `arrivals` has it, and answer each after `latency`."""
    calls: list[Call] = []
    answers: list[tuple[float, int]] = []
    now = 0.0
    while now < until:
        while answers and answers[0][0] <= now:
            at, number = heapq.heappop(answers)
            (throttle.accepted if calls[number].accepted else throttle.failed)(at)
        call = Call(now, throttle.admit(now))
        if call.admitted:
            call.accepted = accepts(now)
            heapq.heappush(answers, (now + latency, len(calls)))
        calls.append(call)
        now += arrivals.expovariate(rate) if arrivals else 1 / rate
    return calls


def recovered_after(calls: list[Call], since: float) -> float:
    """Return from when on 95 % of the calls of every second pass, in steps of a tenth."""
    admitted = [0] * (round((calls[-1].at - since) * 10) + 1)
    made = admitted.copy()
    for call in calls:
        if call.at >= since:
            tenth = int((call.at - since) * 10)
            made[tenth] += 1
            admitted[tenth] += call.admitted
    late = [
        tenth
        for tenth in range(len(made) - 10)
        if sum(admitted[tenth : tenth + 10]) < 0.95 * sum(made[tenth : tenth + 10])
    ]
    return (late[-1] + 1) / 10 if late else 0.0


@pytest.mark.parametrize("latency", [0.005, 0.3])
@pytest.mark.parametrize("rate", [20, 100, 500])
def test_a_recovery_is_believed_within_seconds(rate, latency):
    """After a minute of failures 95 % pass within 4 s, and within 2.5 s more often than not.

    With the defaults. During the outage little more than every fifth call is sent; at 20 calls a
    second chance leaves fewer than 20 in a window now and then, and then all of them are.
    """
    delays = []
    for seed in range(9 if rate < 500 else 3):
        throttle = Throttle(model.Throttle(), random.Random(seed))
        calls = simulate(
            throttle,
            rate,
            lambda now: not 5 <= now < 65,
            until=75.0,
            latency=latency,
            arrivals=random.Random(seed + 100),
        )
        outage = [call.admitted for call in calls if 10 <= call.at < 65]
        assert sum(outage) < (0.22 if rate > 20 else 0.4) * len(outage)
        delays.append(recovered_after(calls, 65))
    assert max(delays) <= 4.0
    assert sorted(delays)[len(delays) // 2] <= 2.5


@pytest.mark.parametrize("overload", [3, 10])
def test_an_overloaded_service_gets_little_more_than_twice_what_it_accepts(overload):
    """It takes 100 calls a second of those it gets: it goes on doing that, and refuses as many."""
    capacity, offered = 100, 100 * overload
    taken: list[float] = []

    def accepts(now: float) -> bool:
        free = len(taken) < capacity // 10 or taken[-capacity // 10] <= now - 0.1
        if free:
            taken.append(now)
        return free

    throttle = Throttle(model.Throttle(max_rejected=0.95), random.Random(1))
    calls = simulate(throttle, offered, accepts, until=30.0)
    settled = [call for call in calls if call.at >= 5]
    sent = sum(call.admitted for call in settled) / 25
    assert sum(call.accepted for call in settled) / 25 > 0.9 * capacity
    assert 1.7 * capacity < sent < 2.3 * capacity

"""When a hedge is due, and how many there are: percentile and budget."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrpc.policy.model import EffectivePolicy, Hedge, Retry
from meshrpc.policy.table import PolicyTable
from meshrpc.resilience.hedge import MIN_DELAY, Hedges, Hedging
from meshrpc.resilience.percentile import ERROR, HALF, MIN_SAMPLES, REFRESH, Percentile
from services.payment.v1 import payment_pb2  # noqa: F401 - its descriptors say what is idempotent

ULPS = 1 + 1e-9

latencies = st.lists(st.floats(1e-4, 3600.0), min_size=MIN_SAMPLES, max_size=200)
fractions = st.floats(0.01, 0.99)


def exact(samples: list[float], fraction: float) -> float:
    """The smallest sample that at least `fraction` of them do not exceed."""
    return next(
        sample for rank, sample in enumerate(sorted(samples), 1) if rank >= fraction * len(samples)
    )


def filled(samples: list[float], now: float = 0.0) -> Percentile:
    percentile = Percentile(now)
    for sample in samples:
        percentile.observe(sample, now)
    return percentile


@given(latencies, fractions)
def test_the_percentile_is_never_too_low_and_at_most_5_percent_too_high(samples, fraction):
    """Between the true one and 1.05 times it, whatever the latencies and the fraction."""
    true = exact(samples, fraction)
    value = filled(samples).value(fraction, 0.0)
    assert true / ULPS <= value <= true * (1 + ERROR) * ULPS


@given(
    st.lists(st.tuples(st.floats(0, 4000), st.floats(0, 10)), min_size=MIN_SAMPLES, max_size=100),
    fractions,
    st.data(),
)
def test_slower_answers_never_make_the_percentile_lower(pairs, fraction, data):
    """With every latency as long or longer, so is the value; so it is at a higher fraction."""
    before = filled([latency for latency, _ in pairs]).value(fraction, 0.0)
    after = filled([latency + more for latency, more in pairs]).value(fraction, 0.0)
    assert before <= after
    higher = data.draw(st.floats(fraction, 0.999))
    assert before <= filled([latency for latency, _ in pairs]).value(higher, 0.0)


def test_latencies_that_none_tells_apart_have_a_value_all_the_same():
    """Zero, negative and endless latencies count at the ends of the scale."""
    assert filled([0.0] * 20).value(0.95, 0.0) == filled([-1.0] * 20).value(0.95, 0.0) == 1e-4
    assert filled([1e9] * 20).value(0.95, 0.0) == pytest.approx(3600, rel=ERROR)


def test_nineteen_latencies_say_nothing():
    """The value is there with the twentieth, at once."""
    percentile = filled([0.01] * (MIN_SAMPLES - 1))
    assert percentile.value(0.95, 0.0) is None
    percentile.observe(0.01, 0.0)
    assert percentile.value(0.95, 0.0) == pytest.approx(0.01, rel=ERROR)


def test_a_value_is_used_for_a_second():
    """What came meanwhile counts from then on; another fraction is worked out at once."""
    percentile = filled([0.01] * 20)
    assert percentile.value(0.5, 0.0) == pytest.approx(0.01, rel=ERROR)
    for _ in range(100):
        percentile.observe(1.0, 0.5)
    assert percentile.value(0.5, REFRESH - 0.01) == pytest.approx(0.01, rel=ERROR)
    assert percentile.value(0.6, REFRESH - 0.01) == pytest.approx(1.0, rel=ERROR)
    assert percentile.value(0.5, 2 * REFRESH) == pytest.approx(1.0, rel=ERROR)


@pytest.mark.parametrize(
    ("seen_at", "now", "is_known"),
    [
        (0.0, HALF - 1, True),
        (0.0, 2 * HALF - 1, True),
        (0.0, 2 * HALF, False),
        (HALF - 1, 2 * HALF - 0.1, True),
        (HALF - 1, 2 * HALF, False),
        (HALF, 3 * HALF - 1, True),
        (HALF, 1e6, False),
    ],
)
def test_latencies_are_forgotten_after_15_to_30_seconds(seen_at, now, is_known):
    """They last for the half they fell in and the one after it, also over pauses."""
    percentile = Percentile(0.0)
    for _ in range(MIN_SAMPLES):
        percentile.observe(0.01, seen_at)
    assert (percentile.value(0.95, now) is not None) is is_known


def test_a_clock_read_out_of_order_loses_nothing():
    """A latency from before the newest half counts into it."""
    percentile = Percentile(0.0)
    percentile.observe(0.01, 100.0)
    for _ in range(MIN_SAMPLES - 1):
        percentile.observe(0.01, 90.0)
    assert percentile.value(0.95, 100.0) is not None


def test_a_service_that_slows_down_is_believed_within_two_halves():
    """Of 100 calls a second, all ten times slower: the old speed is gone after 30 seconds."""
    rng = random.Random(1)
    percentile = Percentile(0.0)
    for call in range(6000):
        now = call / 100
        percentile.observe(rng.uniform(0.9, 1.1) * (0.01 if now < 30 else 0.1), now)
    assert percentile.value(0.05, 60.0) == pytest.approx(0.09, rel=2 * ERROR)


def test_a_hedge_is_due_after_the_percentile_and_not_before_a_millisecond():
    """At the 95th percentile of what was seen; never under `MIN_DELAY`."""
    hedging = Hedging(Hedge(), 0.0)
    assert hedging.begin(0.0) is None
    for _ in range(100):
        hedging.observe(0.0002, 0.0)
    assert hedging.begin(0.0) == MIN_DELAY
    for _ in range(10):
        hedging.observe(0.2, 0.5)
    assert hedging.begin(2.0) == pytest.approx(0.2, rel=ERROR)


def test_the_first_twenty_calls_earn_the_first_hedge():
    """Nothing is saved at the beginning, unlike with retries."""
    hedging = Hedging(Hedge(), 0.0)
    for _ in range(19):
        hedging.begin(0.0)
        assert not hedging.grant(1e9)
    hedging.begin(0.0)
    assert hedging.grant(0.0)
    assert not hedging.grant(0.0)


@pytest.mark.parametrize("max_extra", [0.0, 0.01, 0.05, 0.3, 1.0])
def test_when_every_call_is_slow_hedges_stay_within_the_budget(max_extra):
    """Ten thousand calls that all want a hedge: granted is max_extra of them, within one."""
    hedging, granted = Hedging(Hedge(max_extra=max_extra), 0.0), 0
    for call in range(1, 10_001):
        hedging.begin(call / 100)
        granted += hedging.grant(call / 100)
        assert granted <= max_extra * call + 1e-6
    assert granted >= max_extra * 10_000 - 1


def test_methods_are_hedged_by_what_they_are_themselves():
    """A slow method does not teach a quick one, and each earns its own hedges."""
    hedges, policy = Hedges(), Hedge(max_extra=1.0)
    slow, quick = hedges.method("/a.B/Slow", policy, 0.0), hedges.method("/a.B/Quick", policy, 0.0)
    for _ in range(20):
        slow.observe(10.0, 0.0)
        quick.observe(0.01, 0.0)
    assert slow.begin(0.0) > 9
    assert quick.begin(0.0) < 0.02
    assert slow.grant(0.0)
    assert not slow.grant(0.0)
    assert quick.grant(0.0)


def test_a_method_is_known_again_under_another_policy():
    """It is the same one, and follows the policy it was asked for with."""
    hedges = Hedges()
    method = hedges.method("/a.B/C", Hedge(max_extra=0.0), 0.0)
    assert hedges.method("/a.B/C", Hedge(max_extra=1.0), 0.0) is method
    method.begin(0.0)
    assert method.grant(0.0)


@pytest.mark.parametrize("hedge", [None, Hedge()])
@pytest.mark.parametrize(
    ("method", "listed", "idempotent"),
    [
        ("payment.v1.PaymentService/GetPayment", False, True),
        ("grpc.health.v1.Health/Check", False, False),
        ("grpc.health.v1.Health/Check", True, True),
        ("nobody.Knows/This", False, False),
        ("nobody.Knows/This", True, True),
    ],
)
def test_only_idempotent_methods_have_a_hedge(method, listed, idempotent, hedge):
    """By their proto or by the policy; and no call that is to be sent once."""
    retry = Retry(non_idempotent=frozenset({method} if listed else ()))
    compiled = (
        PolicyTable(EffectivePolicy("x", retry=retry, hedge=hedge)).method(f"/{method}").fixed
    )
    assert compiled.hedge is (hedge if idempotent else None)
    assert compiled.once.hedge is None


def test_hedging_keeps_what_it_saw_under_another_policy():
    """A policy push mints no hedges and forgets no latency."""
    hedging = Hedging(Hedge(), 0.0)
    for _ in range(20):
        hedging.observe(0.01, 0.0)
    hedging.configure(Hedge(percentile=0.5, max_extra=1.0), 0.0)
    assert not hedging.grant(0.0)
    assert hedging.begin(0.0) == pytest.approx(0.01, rel=ERROR)
    assert hedging.grant(0.0)


def test_hedging_does_not_pull_its_own_percentile_down():
    """Calls that a hedge rescued count with the delay and more: after five minutes of them the
    delay still is the 95th percentile of calls without hedging, and 5 % of them are hedged."""
    rng = random.Random(2)
    hedging, hedged, calls, delays = Hedging(Hedge(max_extra=1.0), 0.0), 0, 30_000, []
    for call in range(calls):
        now = call / 100
        delay = hedging.begin(now)
        took = rng.expovariate(20)
        if delay is not None and took > delay and hedging.grant(now):
            hedged += 1
            took = min(took, delay + rng.expovariate(20))
        hedging.observe(took, now)
        if now > 60:
            delays.append(delay)
    unhedged = exact([rng.expovariate(20) for _ in range(calls)], 0.95)
    assert sum(delays) / len(delays) == pytest.approx(unhedged, rel=2 * ERROR)
    assert 0.03 < hedged / calls < 0.06


def test_live_objects_say_how_they_are():
    """Their representations are status lines."""
    hedging = Hedging(Hedge(), 0.0)
    hedging.observe(0.1, 0.0)
    assert repr(hedging) == "<Hedging <Percentile of 1 latencies> <RetryBudget 0.0 of 10>>"

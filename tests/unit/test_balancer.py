"""Balancers choose as their documentation says, by exact counts and derived bounds."""

import random

import pytest

from meshrpc.balancer import create_balancer
from meshrpc.balancer.peak_ewma import PeakEwma, PeakEwmaBalancer
from meshrpc.balancer.ring_hash import RING_SIZE, RingHashBalancer
from meshrpc.balancer.round_robin import RoundRobinBalancer
from meshrpc.policy.model import Balancer, BalancerKind
from meshrpc.resilience.outcome import Outcome

CARRIED_OUT = (
    BalancerKind.ROUND_ROBIN,
    BalancerKind.RANDOM,
    BalancerKind.PEAK_EWMA,
    BalancerKind.RING_HASH,
)


class Endpoint:
    """An endpoint whose latency the test sets."""

    def __init__(self, name: str, latency: float = 0.001, weight: int = 1) -> None:
        self.name = self.id = name
        self.weight = weight
        self.ewma = PeakEwma(decay=10.0)
        if latency:
            self.ewma.observe(latency, 0.0)

    @property
    def is_failing(self) -> bool:
        return self.ewma.is_failing

    def load(self, now: float) -> float:
        return self.ewma.load(now)


def counts(picker, picks, now=0.0):
    seen: dict[str, int] = {}
    for _ in range(picks):
        name = picker.pick(now).name
        seen[name] = seen.get(name, 0) + 1
    return seen


@pytest.mark.parametrize("kind", CARRIED_OUT)
@pytest.mark.parametrize("size", [1, 2, 7])
def test_every_pick_is_a_member_and_every_member_is_picked(kind, size):
    """A picker returns only endpoints it was made with, and in time each of them."""
    balancer = create_balancer(Balancer(kind), random.Random(1))
    names = {f"e{i}" for i in range(size)}
    assert set(counts(balancer.picker([Endpoint(n) for n in names]), 200)) == names


def test_round_robin_counts_differ_by_one_at_most():
    """Over any window of picks without a change two endpoints differ by one pick at most."""
    picker = RoundRobinBalancer(random.Random(1)).picker([Endpoint(f"e{i}") for i in range(5)])
    for window in (1, 4, 5, 13, 501):
        seen = counts(picker, window)
        assert max(seen.values()) - min([*seen.values(), *[0] * (5 - len(seen))]) <= 1


def test_round_robin_goes_on_where_it_was_when_endpoints_change():
    """A new picker does not start over at the first endpoint: that one would get all the calls
    of a registry that changes often."""
    balancer = RoundRobinBalancer(random.Random(1))
    endpoints = [Endpoint(f"e{i}") for i in range(3)]
    firsts = [balancer.picker(endpoints).pick(0.0).name for _ in range(6)]
    assert sorted(firsts) == ["e0", "e0", "e1", "e1", "e2", "e2"]


def test_callers_that_start_together_begin_with_different_endpoints():
    """Round robin starts at an endpoint of chance."""
    endpoints = [Endpoint(f"e{i}") for i in range(4)]
    starts = {
        RoundRobinBalancer(random.Random(seed)).picker(endpoints).pick(0.0).name
        for seed in range(40)
    }
    assert len(starts) == 4


def test_two_choices_never_take_the_most_loaded_of_several():
    """The endpoint with the highest load loses against whichever is drawn beside it."""
    endpoints = [Endpoint("slow", 1.0), Endpoint("a", 0.001), Endpoint("b", 0.002)]
    seen = counts(PeakEwmaBalancer(random.Random(1)).picker(endpoints), 1000)
    assert "slow" not in seen
    # "b" wins only when drawn with "slow": one pair in three.
    assert 250 < seen["b"] < 420


def test_equal_endpoints_share_evenly_when_calls_are_pending():
    """With every call held open, two choices keep the fullest within 1.15 of the mean."""
    endpoints = [Endpoint(f"e{i}") for i in range(10)]
    picker = PeakEwmaBalancer(random.Random(7)).picker(endpoints)
    for _ in range(10_000):
        picker.pick(0.0).ewma.pending += 1
    assert max(e.ewma.pending for e in endpoints) <= 1.15 * 1000


def test_a_peak_counts_at_once_and_fades_with_the_decay():
    """Latency jumps to a peak and has sunk to 1/e of it one decay later."""
    ewma = PeakEwma(decay=10.0)
    ewma.observe(0.010, 0.0)
    ewma.observe(0.500, 1.0)
    assert ewma.latency(1.0) == 0.5
    assert ewma.latency(11.0) == pytest.approx(0.5 / 2.718281828, rel=1e-6)


def test_a_lower_sample_moves_the_average_by_its_weight_in_time():
    """A sample one decay after the last keeps 1/e of the old value."""
    ewma = PeakEwma(decay=10.0)
    ewma.observe(1.0, 0.0)
    ewma.observe(0.1, 10.0)
    kept = 1 / 2.718281828
    assert ewma.latency(10.0) == pytest.approx(kept + 0.1 * (1 - kept), rel=1e-6)


def test_an_endpoint_without_history_is_tried_once_then_waited_for():
    """The first call to a new endpoint is free; while it is pending others are preferred."""
    new, old = Endpoint("new", latency=0), Endpoint("old", 0.001)
    picker = PeakEwmaBalancer(random.Random(1)).picker([new, old])
    assert picker.pick(0.0) is new
    new.ewma.pending += 1
    assert {picker.pick(0.0).name for _ in range(20)} == {"old"}


def test_quick_refusals_do_not_make_an_endpoint_look_quick():
    """Answers whose speed means nothing keep the remembered latency from fading."""
    ewma = PeakEwma(decay=1.0)
    ewma.observe(0.2, 0.0)
    for second in range(1, 60):
        ewma.hold(0.0001, float(second))
    assert ewma.latency(59.0) == 0.2
    fresh = PeakEwma(decay=1.0)
    fresh.hold(0.0001, 0.0)
    assert fresh.latency(0.0) == 0.0001


def test_a_refusal_does_not_bring_a_faded_peak_back():
    """An endpoint that failed a minute ago is not shunned anew for somebody's NOT_FOUND."""
    ewma = PeakEwma(decay=10.0)
    ewma.observe(5.0, 0.0)
    faded = ewma.latency(60.0)
    ewma.hold(0.001, 60.0)
    assert ewma.latency(60.0) == pytest.approx(faded)


def test_a_failure_however_fast_makes_an_endpoint_look_slow_for_a_moment():
    """Five seconds at once, 1/e of it a second later, and nothing of it after a success."""
    ewma = PeakEwma(decay=10.0)
    ewma.observe(0.020, 0.0)
    ewma.learn(Outcome.FAILURE, 0.001, 1.0)
    assert ewma.load(1.0) == 5.0
    assert ewma.load(2.0) == pytest.approx(5.0 / 2.718281828)
    assert ewma.load(60.0) == pytest.approx(ewma.latency(60.0))
    ewma.learn(Outcome.SUCCESS, 0.020, 2.0)
    assert ewma.load(2.0) == pytest.approx(0.020, rel=0.2)


def test_one_stray_failure_costs_an_endpoint_a_few_seconds_of_calls_and_no_more():
    """At 200 calls a second it has a quarter of them again five seconds later."""
    endpoints = [Endpoint(f"e{i}", 0.020) for i in range(4)]
    picker = PeakEwmaBalancer(random.Random(3)).picker(endpoints)
    endpoints[0].ewma.learn(Outcome.FAILURE, 0.001, 0.0)
    taken = {True: 0, False: 0}
    for number in range(2000):
        now = number / 200
        picked = picker.pick(now)
        taken[now >= 5] += picked is endpoints[0]
        picked.ewma.learn(Outcome.SUCCESS, 0.020, now)
    assert taken[False] < 250
    assert taken[True] == pytest.approx(250, rel=0.3)


def test_an_attempt_given_up_has_lasted_at_least_so_long():
    """A hedge's loser and a caller without patience tell of slowness, never of speed."""
    ewma = PeakEwma(decay=10.0)
    ewma.observe(0.020, 0.0)
    ewma.learn(Outcome.ABANDONED, 0.001, 0.0)
    assert ewma.latency(0.0) == 0.020
    ewma.learn(Outcome.ABANDONED, 0.5, 0.0)
    assert ewma.latency(0.0) == 0.5
    assert not ewma.is_failing


def test_among_many_that_fail_the_one_that_works_is_found():
    """A picker that drew only two of four would ask a failing one in half of its picks."""
    endpoints = [Endpoint(f"e{i}", 0.020) for i in range(4)]
    for endpoint in endpoints[1:]:
        endpoint.ewma.learn(Outcome.FAILURE, 0.001, 0.0)
    picker = PeakEwmaBalancer(random.Random(1)).picker(endpoints)
    assert counts(picker, 1000, now=0.1)["e0"] > 980


def test_a_clock_read_out_of_order_does_not_make_a_memory_grow():
    """A `now` from before the last sample counts as that sample's time, whatever the decay."""
    ewma = PeakEwma(decay=0.001)
    ewma.observe(0.5, 10.0)
    assert ewma.latency(9.0) == 0.5
    ewma.observe(0.1, 9.0)
    assert ewma.latency(9.0) == 0.5


def test_an_answer_that_took_no_time_is_an_answer():
    """On a coarse clock too, an endpoint that has answered is known, and its load counts."""
    quick = PeakEwma(decay=10.0)
    quick.observe(0.0, 1.0)
    slow = PeakEwma(decay=10.0)
    slow.observe(0.010, 1.0)
    quick.pending = slow.pending = 1
    assert 0 < quick.load(1.0) < slow.load(1.0)


def test_calls_after_a_long_silence_are_spread_by_what_is_pending():
    """However far memories have faded, an endpoint with calls pending is not free."""
    endpoints = [Endpoint("e0", 0.001), Endpoint("e1", 0.002)]
    picker = PeakEwmaBalancer(random.Random(1)).picker(endpoints)
    for _ in range(100):
        picker.pick(1e6).ewma.pending += 1
    assert [e.ewma.pending for e in endpoints] == [50, 50]


def test_a_balancer_this_release_lacks_is_an_error():
    """No other balancer is silently used in its place."""
    with pytest.raises(ValueError, match="maglev"):
        create_balancer(Balancer(BalancerKind.MAGLEV), random.Random(1))


def owners(endpoints, keys=3000):
    """Who gets each of so many keys."""
    picker = RingHashBalancer(random.Random(1)).picker(endpoints)
    return {f"key-{i}": picker.pick(0.0, f"key-{i}").name for i in range(keys)}


def test_a_key_belongs_to_one_endpoint_for_every_caller():
    """Whatever the order of endpoints and the source of randomness."""
    endpoints = [Endpoint(f"e{i}") for i in range(5)]
    other = RingHashBalancer(random.Random(2)).picker(endpoints[::-1])
    assert all(other.pick(0.0, key).name == owner for key, owner in owners(endpoints).items())


def test_an_endpoint_that_leaves_moves_its_own_keys_only():
    """And one that comes takes only what becomes its own."""
    endpoints = [Endpoint(f"e{i}") for i in range(5)]
    before, after = owners(endpoints), owners(endpoints[:-1])
    moved = {key for key in before if before[key] != after[key]}
    assert moved == {key for key in before if before[key] == "e4"}


def test_shares_of_keys_follow_weights_as_closely_as_the_ring_allows():
    """128 points a unit of weight: a standard deviation of 9 %, four of them allowed here."""
    endpoints = [Endpoint("a"), Endpoint("b"), Endpoint("c", weight=2)]
    keys = owners(endpoints, 8000)
    shares = [sum(owner == name for owner in keys.values()) / 8000 for name in "abc"]
    assert shares == pytest.approx([0.25, 0.25, 0.5], rel=0.4)


def test_calls_without_a_key_are_spread_over_the_ring():
    """As gRFC A42 asks for."""
    picker = RingHashBalancer(random.Random(1)).picker([Endpoint(f"e{i}") for i in range(4)])
    seen = counts(picker, 4000)
    assert set(seen) == {"e0", "e1", "e2", "e3"}
    assert max(seen.values()) < 2 * min(seen.values())


@pytest.mark.parametrize(("count", "weight"), [(3000, 1), (8000, 1), (100, 10_000)])
def test_a_ring_is_bounded_whatever_is_on_it(count, weight):
    """One point for each endpoint at least, and not many more than the cap in all."""
    endpoints = [Endpoint(f"e{i}", weight=weight) for i in range(count)]
    picker = RingHashBalancer(random.Random(1)).picker(endpoints)
    assert {owner.name for owner in picker._owners} == {each.name for each in endpoints}
    assert len(picker._owners) <= max(RING_SIZE, count)


def test_most_keys_stay_where_a_ring_becomes_too_full():
    """At the 33rd endpoint all points are halved; at the 34th nothing but its own keys moves."""
    endpoints = [Endpoint(f"e{i}") for i in range(34)]
    before, after = owners(endpoints[:32]), owners(endpoints[:33])
    assert sum(before[key] == after[key] for key in before) > len(before) / 2
    moved = [key for key, owner in owners(endpoints).items() if owner != after[key]]
    assert {owners(endpoints)[key] for key in moved} == {"e33"}

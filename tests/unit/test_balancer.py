"""Balancers choose as their documentation says, by exact counts and derived bounds."""

import heapq
import itertools
import random

import pytest

from meshrpc.balancer import create_balancer
from meshrpc.balancer.capacity import Capacity
from meshrpc.balancer.least_request import LeastRequestBalancer
from meshrpc.balancer.load import Load
from meshrpc.balancer.peak_ewma import PeakEwmaBalancer, TwoChoicesPicker
from meshrpc.balancer.round_robin import RoundRobinBalancer
from meshrpc.policy.model import Balancer, BalancerKind
from meshrpc.resilience.outcome import Outcome


class Endpoint:
    """An endpoint whose latency the test sets; 0: unknown."""

    def __init__(self, name: str, latency: float = 0.001, weight: int = 1) -> None:
        self.name = self.id = name
        self.weight = weight
        self.load = Load(decay=10.0)
        self.capacity = Capacity()
        if latency:
            self.load.start(-latency)
            self.load.finish(-latency)
            self.load.learn(Outcome.SUCCESS, latency, 0.0)


def several(count):
    """As many endpoints that nobody has asked yet."""
    return [Endpoint(f"e{i}", latency=0) for i in range(count)]


def counts(picker, picks, now=0.0):
    seen: dict[str, int] = {}
    for _ in range(picks):
        name = picker.pick(now).name
        seen[name] = seen.get(name, 0) + 1
    return seen


def calls(picker, arrivals, takes):
    """Carry calls out that begin at `arrivals` and take `takes(endpoint, now)` seconds; each
    moment, and whom it asked."""
    under_way = []
    order = itertools.count()
    for now in arrivals:
        while under_way and under_way[0][0] <= now:
            ended, _, endpoint, began = heapq.heappop(under_way)
            endpoint.load.finish(began)
            endpoint.load.learn(Outcome.SUCCESS, ended - began, ended)
        endpoint = picker.pick(now)
        endpoint.load.start(now)
        heapq.heappush(under_way, (now + takes(endpoint, now), next(order), endpoint, now))
        yield now, endpoint


def poisson(rate, count, rng):
    """So many moments at random, `rate` a second."""
    return itertools.accumulate(rng.expovariate(rate) for _ in range(count))


def fullest(chosen, size):
    """The most that one of so many endpoints got, in multiples of the mean."""
    seen: dict[str, int] = {}
    for _, endpoint in chosen:
        seen[endpoint.name] = seen.get(endpoint.name, 0) + 1
    return max(seen.values()) / (sum(seen.values()) / size)


@pytest.mark.parametrize("kind", BalancerKind)
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
        picker.pick(0.0).load.start(0.0)
    assert max(e.load.pending for e in endpoints) <= 1.15 * 1000


def test_an_endpoint_without_history_is_tried_once_then_waited_for():
    """The first call to a new endpoint is free; while it is pending others are preferred."""
    new, old = Endpoint("new", latency=0), Endpoint("old", 0.001)
    picker = PeakEwmaBalancer(random.Random(1)).picker([new, old])
    assert picker.pick(0.0) is new
    new.load.start(0.0)
    assert {picker.pick(0.0).name for _ in range(20)} == {"old"}


def test_one_stray_failure_costs_an_endpoint_a_few_seconds_of_calls_and_no_more():
    """At 200 calls a second it has a quarter of them again five seconds later."""
    endpoints = [Endpoint(f"e{i}", 0.020) for i in range(4)]
    picker = PeakEwmaBalancer(random.Random(3)).picker(endpoints)
    endpoints[0].load.learn(Outcome.FAILURE, 0.001, 0.0)
    taken = {True: 0, False: 0}
    for number in range(2000):
        now = number / 200
        picked = picker.pick(now)
        taken[now >= 5] += picked is endpoints[0]
        picked.load.learn(Outcome.SUCCESS, 0.020, now)
    assert taken[False] < 250
    assert taken[True] == pytest.approx(250, rel=0.3)


def test_among_many_that_fail_the_one_that_works_is_found():
    """A picker that drew only two of four would ask a failing one in half of its picks."""
    endpoints = [Endpoint(f"e{i}", 0.020) for i in range(4)]
    for endpoint in endpoints[1:]:
        endpoint.load.learn(Outcome.FAILURE, 0.001, 0.0)
    picker = PeakEwmaBalancer(random.Random(1)).picker(endpoints)
    assert counts(picker, 10_000, now=0.1)["e0"] > 9940


def test_calls_after_a_long_silence_are_spread_by_what_is_pending():
    """However far memories have faded, an endpoint with calls pending is not free."""
    endpoints = [Endpoint("e0", 0.001), Endpoint("e1", 0.002)]
    picker = PeakEwmaBalancer(random.Random(1)).picker(endpoints)
    for _ in range(100):
        picker.pick(1e6).load.start(1e6)
    assert [e.load.pending for e in endpoints] == [50, 50]


def test_an_endpoint_that_stalls_is_left_before_its_first_answer():
    """Its calls under way are older than its answers used to be, and that is enough to know."""
    stalled, well = Endpoint("stalled", 0.010), Endpoint("well", 0.020)
    picker = PeakEwmaBalancer(random.Random(1)).picker([stalled, well])
    stalled.load.start(0.0)
    well.load.start(0.0)
    well.load.finish(0.0)
    well.load.learn(Outcome.SUCCESS, 0.020, 0.020)
    assert counts(picker, 20, now=0.005) == {"stalled": 20}  # 2 x 10 ms, just below 20 ms
    assert counts(picker, 20, now=0.050) == {"well": 20}


def test_an_endpoint_that_always_loses_is_asked_now_and_then():
    """Not before three seconds without a call, and for one pick in 300 at most."""
    endpoints = [Endpoint("slow", 1.0), *(Endpoint(f"e{i}") for i in range(3))]
    for endpoint in endpoints:
        endpoint.load.decay = 1e9  # so that nothing else would bring it a call
    picker = PeakEwmaBalancer(random.Random(1)).picker(endpoints)
    asked = []
    for number in range(60_000):
        now = number / (1000 if number < 30_000 else 50)  # then too few for every three seconds
        picked = picker.pick(now)
        picked.load.start(now)
        picked.load.finish(now)
        if picked is endpoints[0]:
            asked.append((number, now))
    assert len(asked) > 60
    for (number, now), (next_number, next_now) in itertools.pairwise(asked):
        assert next_number - number > 300
        assert next_now - now >= 3.0


def test_new_pickers_do_not_ask_a_slow_endpoint_more_often():
    """The picks between two such calls are counted over all pickers of a balancer."""
    endpoints = [Endpoint("slow", 1.0), Endpoint("a"), Endpoint("b")]
    balancer = PeakEwmaBalancer(random.Random(1))
    seen = [balancer.picker(endpoints).pick(9.0).name for _ in range(3000)]
    assert 1 <= seen.count("slow") <= 10


def test_a_failing_endpoint_and_a_retry_are_not_spent_on_finding_out():
    """A failing one would make a call fail, and a retry is to succeed."""
    failing, well = Endpoint("failing", 1.0), Endpoint("well")
    failing.load.decay = well.load.decay = 1e9
    picker = PeakEwmaBalancer(random.Random(1)).picker([failing, well])
    assert counts(picker, 3000, now=100.0)["failing"] >= 9
    retries = TwoChoicesPicker((failing, well), random.Random(1))
    assert counts(retries, 3000, now=100.0) == {"well": 3000}
    failing.load.learn(Outcome.FAILURE, None, 100.0)
    assert counts(picker, 3000, now=200.0) == {"well": 3000}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("busy", [0.1, 3, 30])
@pytest.mark.parametrize("shape", [None, 4.0])
def test_two_choices_by_latency_share_evenly_among_equals(seed, busy, shape):
    """10,000 calls over ten, on the mean `busy` under way: at most 1.15 x the mean.

    Each takes 10 ms +- 50 %, or is as spread as that and has a tail besides (gamma, k = 4).
    """
    rng = random.Random(seed)
    chosen = calls(
        PeakEwmaBalancer(rng).picker(several(10)),
        poisson(busy / 0.010, 10_000, rng),
        lambda _endpoint, _now: (
            rng.gammavariate(shape, 0.010 / shape) if shape else rng.uniform(0.005, 0.015)
        ),
    )
    assert fullest(chosen, 10) <= 1.15


@pytest.mark.parametrize(("latency", "share"), [(1.4, 0.5), (1.6, 0.0)])
def test_of_two_that_are_nearly_alike_the_one_not_asked_for_longer_is_asked(latency, share):
    """Below one and a half times the load they take turns; above, the slower one gets nothing."""
    endpoints = [Endpoint("quick", 1.0), Endpoint("slow", latency)]
    picker = PeakEwmaBalancer(random.Random(1)).picker(endpoints)
    slow = 0
    for number in range(200):
        now = 1.0 + number / 1000
        picked = picker.pick(now)
        picked.load.start(now)
        picked.load.finish(now)
        slow += picked is endpoints[1]
    assert slow == 200 * share


SLOW, WELL_AGAIN, OVER = 10.0, 40.0, 70.0


def share_of(slow, size, seed, part=1.0):
    """What part of 200 calls a second, 5 ms each, the first `slow` of so many endpoints get between
    two moments, if `part` of their calls take 20 times as long from SLOW until WELL_AGAIN."""
    rng = random.Random(seed)
    endpoints = several(size)
    affected = endpoints[:slow]

    def takes(endpoint, now):
        is_slow = endpoint in affected and SLOW <= now < WELL_AGAIN and rng.random() < part
        return (0.100 if is_slow else 0.005) * rng.uniform(0.8, 1.2)

    picker = PeakEwmaBalancer(rng).picker(endpoints)
    chosen = list(calls(picker, poisson(200, int(200 * OVER), rng), takes))

    def share(since, until):
        picked = [endpoint in affected for now, endpoint in chosen if since <= now < until]
        return sum(picked) / len(picked)

    return share


@pytest.mark.parametrize("seed", range(5))
def test_one_of_four_that_turns_slow_is_left_and_has_its_share_when_it_is_well_again(seed):
    """20 times slower: at once it gets less than one call in a hundred; ten seconds after it has
    recovered, four fifths of its share."""
    share = share_of(1, 4, seed)
    assert share(SLOW + 1, WELL_AGAIN) < 0.01
    assert share(WELL_AGAIN + 10, WELL_AGAIN + 25) > 0.8 * 0.25


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("part", [0.05, 0.3])
def test_one_that_is_slow_now_and_then_is_not_taken_for_well_at_its_first_quick_answer(part, seed):
    """Of four, it gets less than 3 % of the calls, though it is quick at 70 or 95 % of them."""
    share = share_of(1, 4, seed, part)
    assert share(SLOW + 1, WELL_AGAIN) < 0.03


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("slow", "size"), [(2, 4), (5, 10), (6, 20)])
def test_many_that_are_slow_get_hardly_more_than_one(slow, size, seed):
    """Two choices alone would ask a slow one whenever both are, up to a call in four."""
    share = share_of(slow, size, seed)
    assert share(SLOW + 2, WELL_AGAIN) < 0.02


def test_endpoints_that_are_four_times_slower_are_asked_when_the_fast_ones_are_busy():
    """What looks bad is so beside those taken lately, calls pending included: at 90 % load all are
    used by what they can do."""
    rng = random.Random(1)
    endpoints = several(8)
    free = dict.fromkeys(endpoints, 0.0)

    def takes(endpoint, now):
        work = rng.gammavariate(4, (0.040 if endpoint in endpoints[:4] else 0.010) / 4)
        free[endpoint] = max(free[endpoint], now) + work
        return free[endpoint] - now

    chosen = list(
        calls(PeakEwmaBalancer(rng).picker(endpoints), poisson(0.9 * 500, 20_000, rng), takes)
    )
    picked = [endpoint in endpoints[:4] for _, endpoint in chosen[2000:]]
    assert 0.17 < sum(picked) / len(picked) < 0.25  # a fifth of what all can do


def test_all_that_turn_slow_at_once_share_as_before():
    """Soon nothing looks bad any more: what is usual has changed."""
    rng = random.Random(1)
    endpoints = several(10)
    chosen = list(
        calls(
            PeakEwmaBalancer(rng).picker(endpoints),
            poisson(300, 6000, rng),
            lambda _endpoint, now: (0.005 if now < 5 else 0.100) * rng.uniform(0.8, 1.2),
        )
    )
    assert fullest([each for each in chosen if each[0] >= 5], 10) <= 1.15


def test_a_failures_penalty_is_no_measure_of_what_is_usual():
    """Slow endpoints look bad after an outage as they did before."""
    endpoints = [Endpoint(f"e{i}", 0.200 if i < 2 else 0.010) for i in range(4)]
    picker = PeakEwmaBalancer(random.Random(1)).picker(endpoints)
    counts(picker, 100)
    for endpoint in endpoints:
        endpoint.load.learn(Outcome.FAILURE, None, 0.0)
    counts(picker, 200)
    for endpoint in endpoints:
        endpoint.load.learn(Outcome.SUCCESS, None, 0.0)
    assert set(counts(picker, 60)) == {"e2", "e3"}


@pytest.mark.parametrize("past", [0.0, 1e6])
def test_a_stalled_third_is_avoided_before_its_first_answer(past):
    """Two choices alone would send a ninth of the calls there for as long as nobody gives up."""
    rng = random.Random(1)
    endpoints = several(30)
    arrivals = (past + now for now in poisson(1000, 6000, rng))
    chosen = list(
        calls(
            PeakEwmaBalancer(rng).picker(endpoints),
            arrivals,
            lambda endpoint, now: (
                60.0 if endpoint in endpoints[:10] and now > past + 3 else rng.uniform(0.004, 0.006)
            ),
        )
    )
    picked = [endpoint in endpoints[:10] for now, endpoint in chosen if now > past + 3.2]
    assert sum(picked) / len(picked) < 0.02


@pytest.mark.parametrize("size", [10, 100])
@pytest.mark.parametrize("choices", [2, 3])
@pytest.mark.parametrize("busy", [0.0, 3, 30])
def test_least_request_shares_evenly_among_equals(size, choices, busy):
    """10,000 calls, on the mean `busy` under way: 1.05 x the mean."""
    rng = random.Random(size)
    chosen = calls(
        LeastRequestBalancer(rng, choices).picker(several(size)),
        poisson(max(busy, 1) / 0.010, 10_000, rng),
        lambda _endpoint, _now: rng.gammavariate(4, 0.0025) if busy else 0.0,
    )
    assert fullest(chosen, size) <= 1.05


@pytest.mark.parametrize("choices", [2, 3, 9])
def test_least_request_takes_the_least_busy_of_those_drawn(choices):
    """The busiest never; where all are drawn, the least busy always."""
    endpoints = several(5)
    for pending, endpoint in enumerate(endpoints):
        for _ in range(pending):
            endpoint.load.start(0.0, timed=False)
    seen = counts(LeastRequestBalancer(random.Random(1), choices).picker(endpoints), 2000)
    assert "e4" not in seen
    assert max(seen, key=seen.__getitem__) == "e0"
    # Every pair is equally likely: e0 is in four of ten. Three draws need not be all distinct.
    if choices == 2:
        assert seen["e0"] == pytest.approx(800, rel=0.1)


@pytest.mark.parametrize("weights", [(1, 2), (1, 2, 4), (1, 1, 10), (1,) * 50 + (5,) * 10])
def test_least_request_shares_by_weight_where_calls_do_not_overlap(weights):
    """However few are drawn, and however uneven the weights are."""
    endpoints = [Endpoint(f"e{i}", weight=weight) for i, weight in enumerate(weights)]
    seen = counts(LeastRequestBalancer(random.Random(1)).picker(endpoints), 10_000)
    for endpoint in endpoints:
        exact = 10_000 * endpoint.weight / sum(weights)
        assert seen[endpoint.name] == pytest.approx(exact, rel=0.03)


def test_least_request_shares_by_weight_where_all_are_busy():
    """With every call held open, too, and equally many for each unit of weight."""
    endpoints = [Endpoint("one"), Endpoint("two", weight=2), Endpoint("four", weight=4)]
    picker = LeastRequestBalancer(random.Random(1)).picker(endpoints)
    for _ in range(7000):
        picker.pick(0.0).load.start(0.0)
    assert [e.load.pending for e in endpoints] == pytest.approx([1000, 2000, 4000], rel=0.02)


@pytest.mark.parametrize("weight", [1, 2])
def test_least_request_avoids_who_fails_and_asks_again_after_a_while(weight):
    """It has the fewest calls under way, which is why it would get them all: one in three seconds
    is what it gets, until it succeeds."""
    endpoints = [Endpoint("failing", weight=weight), *(Endpoint(f"e{i}") for i in range(3))]
    picker = LeastRequestBalancer(random.Random(1)).picker(endpoints)
    asked = 0
    for number in range(6000):
        now = number / 200
        picked = picker.pick(now)
        if picked is endpoints[0]:
            picked.load.start(now)
            picked.load.finish(now)
            picked.load.learn(Outcome.FAILURE, 0.001, now)
            asked += 1
    assert 8 <= asked <= 11
    endpoints[0].load.learn(Outcome.SUCCESS, 0.001, 30.0)
    expected = 3000 * weight / (weight + 3)
    assert counts(picker, 3000, now=30.0)["failing"] == pytest.approx(expected, rel=0.05)


def test_who_was_busy_for_long_need_not_catch_up():
    """After a thousand turns that went to the other one, they share again within a few."""
    busy, idle = several(2)
    picker = LeastRequestBalancer(random.Random(1)).picker([busy, idle])
    busy.load.start(0.0)
    assert counts(picker, 2000) == {"e1": 2000}
    busy.load.finish(0.0)
    assert counts(picker, 100)["e1"] >= 40

"""Weighted round robin keeps every count within a call of its exact share, whatever comes in."""

import math
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.balancer.capacity import Capacity
from meshrpc.balancer.weighted_round_robin import (
    LEAST,
    MOST,
    Turns,
    WeightedRoundRobinBalancer,
)
from meshrpc.load_report import LoadReport
from meshrpc.policy.model import Balancer, BalancerKind

KIND = BalancerKind.WEIGHTED_ROUND_ROBIN
POLICY = Balancer(KIND)
AT_ONCE = Balancer(KIND, blackout=0.0)


class Endpoint:
    """An endpoint with a weight of its registration, and whatever it reports."""

    def __init__(self, name, weight=1, *, carries=None):
        self.id = name
        self.weight = weight
        self.capacity = Capacity()
        if carries is not None:
            self.report(carries, 0.0)

    def report(self, carries, now):
        """Report that it could carry so many calls per second."""
        self.capacity.report(LoadReport(0.5, carries / 2), now)


def endpoints(weights, **reports):
    return [
        Endpoint(f"e{i}", weight, carries=reports.get(f"e{i}")) for i, weight in enumerate(weights)
    ]


def balancer(seed=1, policy=AT_ONCE):
    return WeightedRoundRobinBalancer(policy, random.Random(seed))


def counts(picker, picks, now=0.0):
    return Counter(picker.pick(now).id for _ in range(picks))


def picked(members, picks=7000, now=0.0, policy=AT_ONCE):
    seen = counts(balancer(policy=policy).picker(members), picks, now)
    return [seen[member.id] for member in members]


weights_of_any = st.lists(st.integers(1, 10_000), min_size=1, max_size=50)


@settings(max_examples=150, deadline=None)
@given(
    weights_of_any | st.lists(st.integers(1, 4), min_size=1, max_size=50),
    st.integers(0, 1 << 32),
)
def test_each_count_is_within_one_of_its_exact_share_after_every_pick(weights, seed):
    """For any weights and any chance, at every moment: not a call too many, not one too few."""
    members = endpoints(weights)
    picker = balancer(seed).picker(members)
    total = sum(weights)
    seen = dict.fromkeys((member.id for member in members), 0)
    for picks in range(1, 601):
        seen[picker.pick(0.0).id] += 1
        for member in members:
            assert abs(seen[member.id] - Fraction(picks * member.weight, total)) < 1


@pytest.mark.parametrize("weights", [[10_000, 1], [1, 10_000, 10_000], [9999, 1, 5000, 3]])
def test_a_whole_cycle_gives_everyone_exactly_its_share(weights):
    """After as many picks as all weights together, each has its weight, and again and again."""
    picker = balancer().picker(endpoints(weights))
    for _ in range(2):
        seen = counts(picker, sum(weights))
        assert [seen[f"e{i}"] for i in range(len(weights))] == weights


def test_endpoints_of_one_weight_go_in_turn():
    """Equal weights are round robin: every round asks each once, in no order that all share."""
    picker = balancer().picker(endpoints([3] * 7))
    rounds = [[picker.pick(0.0).id for _ in range(7)] for _ in range(50)]
    assert all(len(set(one)) == 7 for one in rounds)
    assert len({one[0] for one in rounds}) == 7


def test_the_first_pick_is_by_weight():
    """Over many callers the first calls are spread as all calls are: within 5 sigma."""
    weights, callers = [1, 2, 3, 10, 24], 20_000
    seen = Counter(Turns(weights, random.Random(seed)).next() for seed in range(callers))
    for index, weight in enumerate(weights):
        share = weight / sum(weights)
        sigma = math.sqrt(callers * share * (1 - share))
        assert abs(seen[index] - callers * share) < 5 * sigma


def test_callers_that_start_together_do_not_all_ask_the_heaviest():
    """Of 1,000 callers, at no turn of the first round do more than five times its share of them ask
    one endpoint: were the order that of the deadlines, nearly all would, at each turn."""
    rng = random.Random(1)
    weights = [rng.randint(80, 120) for _ in range(100)]
    callers = [Turns(weights, random.Random(seed)) for seed in range(1000)]
    most = 5 * 1000 * max(weights) / sum(weights)
    for _ in range(100):
        assert max(Counter(caller.next() for caller in callers).values()) <= most


def owed_after_each(turns, picks):
    for _ in range(picks):
        turns.next()
        yield turns.owed()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(0, 1 << 32))
def test_weights_that_drift_every_few_calls_keep_every_count_near(size, seed):
    """A caller of few calls a second, which has new weights every second, is no random one: after
    each call no endpoint is a call ahead of its share as it was over time, nor 1.5 behind."""
    rng = random.Random(seed)
    weights = [rng.randint(1000, 10_000) for _ in range(size)]
    share_of = [Fraction(0)] * size
    seen = [0] * size
    turns = Turns(weights, rng)
    for _ in range(40):
        for _ in range(rng.randint(1, 5)):
            seen[turns.next()] += 1
            total = sum(weights)
            for index, weight in enumerate(weights):
                share_of[index] += Fraction(weight, total)
                assert -1.5 < seen[index] - share_of[index] < 1.0001
        weights = [max(1, round(weight * rng.uniform(0.8, 1.25))) for weight in weights]
        turns = Turns(weights, rng, turns.owed())


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(0, 1 << 32))
def test_no_weights_put_an_endpoint_a_call_ahead_or_leave_one_far_behind(data, seed):
    """Weights that jump about between any two calls: still never a call ahead, and behind by no
    more than log2 of the endpoints and one."""
    rng = random.Random(seed)
    size = data.draw(st.integers(2, 20))
    jumps = st.lists(st.sampled_from([1, 10, 10_000]), min_size=size, max_size=size)
    turns = Turns(data.draw(jumps), rng)
    for _ in range(30):
        for owed in owed_after_each(turns, data.draw(st.integers(1, 4))):
            assert min(owed) > -1.0001
            assert max(owed) < 1 + math.log2(size)
            assert sum(owed) == pytest.approx(0.0, abs=1e-6)
        turns = Turns(data.draw(jumps), rng, turns.owed())


def test_new_weights_forget_no_credit():
    """One call a second and new weights before each: every share is kept as it was over time."""
    members = endpoints([1] * 6)
    picker = balancer().picker(members)
    seen, due = Counter(), Counter()
    for second in range(1000):
        now = float(second)
        carries = [1.0 + 0.1 * (second % 2), 2.0, 3.0, 5.0, 8.0, 13.0 + second % 3]
        for member, amount in zip(members, carries, strict=True):
            member.report(amount, now)
            due[member.id] += amount / sum(carries)
        seen[picker.pick(now).id] += 1
    # A call and a half, and what comes of shares that may be 2 % off before there is a new plan.
    assert all(abs(seen[name] - due[name]) < 1.5 + 0.001 * due[name] for name in due)


def test_the_turn_goes_on_in_the_next_picker():
    """A picker anew before every call gives the same counts as one picker for all of them."""
    members = endpoints([1, 2, 3, 10, 24])
    makes = balancer()
    seen = Counter(makes.picker(members).pick(0.0).id for _ in range(400))
    assert all(abs(seen[f"e{i}"] - 10 * w) <= 1 for i, w in enumerate([1, 2, 3, 10, 24]))


def test_a_picker_that_nobody_used_loses_nothing():
    """Several changes between two calls pass the credit on."""
    members = endpoints([1, 2, 3, 10, 24])
    makes = balancer()
    seen = Counter()
    for _ in range(400):
        makes.picker(members)
        makes.picker(members)
        seen[makes.picker(members).pick(0.0).id] += 1
    assert all(abs(seen[f"e{i}"] - 10 * w) <= 1 for i, w in enumerate([1, 2, 3, 10, 24]))


def test_endpoints_come_and_go_and_the_shares_follow():
    """Whoever is there gets its share of the time it was there, and nobody else gets anything."""
    rng = random.Random(5)
    everyone = {f"e{i}": Endpoint(f"e{i}", rng.randint(1, 20)) for i in range(12)}
    present = set(list(everyone)[:6])
    makes = balancer()
    seen = Counter()
    due = dict.fromkeys(everyone, 0.0)
    for _ in range(400):
        present ^= {rng.choice(list(everyone))}
        present |= {rng.choice(list(everyone))}
        members = [everyone[name] for name in sorted(present)]
        picker = makes.picker(members)
        total = sum(member.weight for member in members)
        for _ in range(rng.randint(1, 40)):
            one = picker.pick(0.0).id
            assert one in present
            seen[one] += 1
            for member in members:
                due[member.id] += member.weight / total
    # Each of its ~33 departures and as many returns may cost or give it a call; by chance, both
    # ways: far from the 66 that only one way would come to.
    assert all(abs(seen[name] - due[name]) < 25 for name in everyone)
    assert sum(seen.values()) > 5000


def test_an_old_picker_goes_on_over_its_own_endpoints():
    """A call that began before a change still picks among those it knew."""
    makes = balancer()
    old = makes.picker(endpoints([1, 2]))
    old.pick(0.0)
    makes.picker([Endpoint("new")]).pick(0.0)
    assert set(counts(old, 30)) == {"e0", "e1"}


def test_a_replaced_set_starts_by_weight_again():
    """Where nobody is left that has a credit, the first pick is one of chance."""
    firsts = Counter()
    for seed in range(2000):
        makes = balancer(seed)
        makes.picker(endpoints([1])).pick(0.0)
        makes.picker([Endpoint("light", 1), Endpoint("heavy", 3)])
        firsts[makes.picker([Endpoint("light", 1), Endpoint("heavy", 3)]).pick(0.0).id] += 1
    assert abs(firsts["light"] - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_without_reports_the_registered_weights_count():
    """Static weights: 1, 2 and 4 of 7."""
    assert picked(endpoints([1, 2, 4])) == [1000, 2000, 4000]


def test_one_report_alone_changes_nothing():
    """There is nothing to compare it with."""
    assert picked(endpoints([1, 2, 4], e0=100.0)) == [1000, 2000, 4000]


def test_reports_of_all_replace_the_registered_weights():
    """Who can carry twice as much gets twice as much, however it was registered."""
    assert picked(endpoints([9, 1, 1], e0=50.0, e1=100.0, e2=200.0)) == [1000, 2000, 4000]


def test_those_without_a_report_count_as_the_mean():
    """Two report 100 and 300: the third gets 200's share."""
    assert picked(endpoints([1, 1, 50], e0=100.0, e1=300.0), 6000) == [1000, 3000, 2000]


def test_reports_count_after_the_blackout_and_until_the_expiry():
    """Before and after, the registered weights do."""
    members = endpoints([1, 1, 1], e0=50.0, e1=100.0, e2=200.0)
    picker = balancer(policy=POLICY).picker(members)
    even = {"e0": 1000, "e1": 1000, "e2": 1000}
    assert counts(picker, 3000, now=9.9) == even
    uneven = counts(picker, 7000, now=10.9)
    assert all(abs(uneven[f"e{i}"] - 1000 * 2**i) <= 1 for i in range(3))
    assert counts(picker, 7000, now=179.9) == {"e0": 1000, "e1": 2000, "e2": 4000}
    again = counts(picker, 3000, now=181.0)
    assert all(abs(again[f"e{i}"] - 1000) <= 2 for i in range(3))


def test_weights_are_worked_out_anew_every_update():
    """Not before `update` is over, and then at once."""
    one, other = endpoints([1, 1], e0=100.0, e1=100.0)
    picker = balancer().picker([one, other])
    assert counts(picker, 100, now=0.0) == {"e0": 50, "e1": 50}
    other.report(300.0, 0.1)
    assert counts(picker, 100, now=0.9) == {"e0": 50, "e1": 50}
    assert counts(picker, 100, now=1.0)["e1"] in (74, 75, 76)


@pytest.mark.parametrize(("carries", "anew"), [(101.0, False), (110.0, True)])
def test_only_a_share_that_changed_makes_a_new_plan(carries, anew):
    """Reports tremble; a plan is kept while no share has moved by more than 2 % of itself."""
    one, other = endpoints([1, 1], e0=100.0, e1=100.0)
    picker = balancer().picker([one, other])
    picker.pick(0.0)
    before = picker._turns
    other.report(carries, 0.5)
    picker.pick(1.0)
    assert (picker._turns is not before) is anew


def test_slow_drift_is_followed():
    """Changes each too small to count add up: they are held against the plan, not the last look."""
    one, other = endpoints([1, 1], e0=100.0, e1=100.0)
    picker = balancer().picker([one, other])
    for second in range(200):
        other.report(100.0 * 1.005**second, float(second))
        one.report(100.0, float(second))
        picker.pick(float(second))
    share = counts(picker, 10_000, now=199.5)["e1"] / 10_000
    carries = 1.005**199
    assert share == pytest.approx(carries / (carries + 1), rel=0.03)


HOSTILE = [
    LoadReport(1e-308, 1e308),
    LoadReport(1e308, 1e-308),
    LoadReport(5e-324, 5e-324),
    LoadReport(0.5, 1e-300, eps=1e308),
    LoadReport(1e-9, 1e9),
    LoadReport(1e9, 1e-9),
    LoadReport(0.0, 0.0),
]


@pytest.mark.parametrize("report", HOSTILE)
@pytest.mark.parametrize("honest", [1, 3, 9])
def test_a_hostile_report_neither_takes_all_calls_nor_stops_its_own(report, honest):
    """Whatever one endpoint says, it counts as ten honest ones at most, and still has calls."""
    members = endpoints([1] * (honest + 1), **{f"e{i}": 100.0 for i in range(1, honest + 1)})
    members[0].capacity.report(report, 0.0)
    seen = picked(members, 20_000)
    assert all(count > 0 for count in seen)
    assert max(seen) <= 20_000 * MOST / (MOST + honest) + 1
    assert seen[0] >= 20_000 * LEAST / (LEAST + honest) - 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)] * 3),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 1 << 32),
)
def test_no_reports_break_a_pick(figures, seed):
    """All endpoints may say anything, and say otherwise each second: there is always a pick."""
    members = endpoints([1] * len(figures))
    picker = balancer(seed).picker(members)
    rng = random.Random(seed)
    for second in range(8):
        for member, (utilization, rps, eps) in zip(
            members, rng.sample(figures, len(figures)), strict=True
        ):
            member.capacity.report(LoadReport(utilization, rps, eps), float(second))
        assert set(counts(picker, 40, float(second))) <= {member.id for member in members}


def test_a_weight_that_cannot_be_counts_as_one():
    """A registry may hold anything."""
    assert picked(endpoints([0, -5, 2]), 400) == [100, 100, 200]


def test_ten_thousand_endpoints():
    """The bounds hold at any size."""
    rng = random.Random(1)
    weights = [rng.randint(1, 100) for _ in range(10_000)]
    turns = Turns(weights, rng)
    seen = Counter(turns.next() for _ in range(20_000))
    total = sum(weights)
    assert all(abs(seen[i] - Fraction(20_000 * w, total)) < 1 for i, w in enumerate(weights))


def test_uneven_servers_end_at_their_ideal_shares():
    """Servers of speed 1, 2 and 4 that report what their calls cost them, from even weights on:
    within 10 % of the ideal shares after a minute, and they stay there."""
    speeds = {"e0": 1.0, "e1": 2.0, "e2": 4.0}
    members = endpoints([1, 1, 1])
    picker = balancer(policy=POLICY).picker(members)
    rng = random.Random(3)
    for second in range(120):
        seen = Counter(picker.pick(second + i / 140).id for i in range(140))
        for member in members:
            rps = float(seen[member.id])
            noise = rng.uniform(0.97, 1.03)
            utilization = rps / (50.0 * speeds[member.id]) * noise
            member.capacity.report(LoadReport(utilization, rps), second + 1.0)
        if second >= 60:
            for name, speed in speeds.items():
                assert seen[name] == pytest.approx(140 * speed / 7, rel=0.10)

"""Calls stay in their zone as far as it can carry them, and every zone gets its part."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrpc.balancer.zones import ZonePicker, zone_shares

COUNTS = st.integers(0, 40)
INSTANCES = st.dictionaries(st.sampled_from(["a", "b", "c", "d", None]), COUNTS).filter(
    lambda counts: any(counts.values())
)
CALLERS = st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e", None]), COUNTS)
OWN = st.sampled_from(["a", "b", "c", "d", "e"])


@pytest.mark.parametrize(
    ("instances", "callers", "shares"),
    [
        # As spread as its callers, or more than its part: nothing leaves.
        ({"a": 2, "b": 2, "c": 2}, {"a": 5, "b": 5, "c": 5}, {"a": 1.0}),
        ({"a": 9, "b": 1}, {"a": 1, "b": 1}, {"a": 1.0}),
        # 2/10 of the instances for 4/10 of the callers: half stays. b can spare 1/10, c 1/10.
        ({"a": 2, "b": 4, "c": 4}, {"a": 4, "b": 3, "c": 3}, {"a": 0.5, "b": 0.25, "c": 0.25}),
        # d can spare 3/10, c has none to spare, b less than its own callers need.
        (
            {"a": 1, "b": 2, "c": 3, "d": 4},
            {"a": 3, "b": 3, "c": 3, "d": 1},
            {"a": 1 / 3, "d": 2 / 3},
        ),
        # The own zone is lost: to the others, in proportion to what they can spare.
        ({"a": 0, "b": 6, "c": 6}, {"a": 2, "b": 2, "c": 2}, {"b": 0.5, "c": 0.5}),
        ({"b": 9, "c": 3}, {"a": 4, "b": 1, "c": 1}, {"b": 7 / 8, "c": 1 / 8}),
        # Callers unknown: as many in each zone that is named, the own one included.
        ({"a": 1, "b": 1, "c": 4}, None, {"a": 0.5, "c": 0.5}),
        ({"b": 1, "c": 1}, None, {"b": 0.5, "c": 0.5}),
        ({"a": 3, "b": 3}, {}, {"a": 1.0}),
        ({"a": 1, "b": 3}, {"b": 0, None: 5}, {"a": 0.5, "b": 0.5}),
        # Instances without a zone are one more zone, to which all others' calls may go.
        ({"a": 1, None: 1}, {"a": 1}, {"a": 0.5, None: 0.5}),
        # Odd: a lost zone whose callers nobody told of, and nobody has any to spare.
        (
            {"b": 1, "c": 3, "d": 7},
            {"b": 3, "c": 9, "d": 21},
            {"b": 1 / 11, "c": 3 / 11, "d": 7 / 11},
        ),
        # None works at all.
        ({"a": 0}, {"a": 1}, {}),
        ({}, None, {}),
    ],
)
def test_shares_by_hand(instances, callers, shares):
    """The shares of a caller in zone a are those worked out by hand."""
    assert zone_shares("a", instances, callers) == pytest.approx(shares)


@given(INSTANCES, CALLERS.filter(lambda callers: any(callers.values())))
def test_every_zone_gets_exactly_its_part_when_all_callers_follow(instances, callers):
    """The calls of all callers together load every instance alike.

    With c the part of the instances in a zone and q the part of the callers, a zone with c < q
    keeps c, and one with c >= q has its own q and, of all that leaves, (c - q) / sum of (c - q).
    What leaves is the sum of (q - c) where that is positive, which is the sum of (c - q) where
    that is; so such a zone gets q + (c - q) = c too. Callers without a zone spread their calls
    over all instances, and so add to each zone by its c.
    """
    working, calling = sum(instances.values()), sum(callers.values())
    part = {zone: count / working for zone, count in instances.items()}
    calls = Counter()
    for zone, count in callers.items():
        if count:
            for to, share in (zone_shares(zone, instances, callers) if zone else part).items():
                calls[to] += count / calling * share
    assert {to: calls[to] for to in instances} == pytest.approx(part)
    assert calls.keys() <= instances.keys()


@given(OWN, INSTANCES, st.none() | CALLERS)
def test_shares_are_a_distribution_over_zones_that_work(own, instances, callers):
    """Shares sum to 1, none is negative, and a zone where none works gets none."""
    shares = zone_shares(own, instances, callers)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares.values()) > 0.0
    assert all(instances[zone] > 0 for zone in shares)


@given(OWN, INSTANCES, CALLERS)
def test_as_much_stays_as_the_own_zone_can_carry(own, instances, callers):
    """A zone keeps all calls of its own callers, or else as many as its part of the instances is.

    No balanced way to send calls can keep more: a zone's own calls and its part both limit it.
    """
    zoned = sum(count for zone, count in callers.items() if zone)
    part = instances.get(own, 0) / sum(instances.values())
    demand = callers.get(own, 0) / zoned if zoned else 1 / len({own, *instances} - {None})
    kept = zone_shares(own, instances, callers).get(own, 0.0)
    if part and part >= demand:
        assert kept == pytest.approx(1.0)
    else:
        assert kept * demand == pytest.approx(part)


@given(
    st.dictionaries(OWN, st.floats(0.001, 1000.0), min_size=1),
    st.dictionaries(OWN, st.floats(0.001, 1000.0)),
    OWN,
)
def test_odd_numbers_make_no_odd_shares(instances, callers, own):
    """Weights that no float holds exactly give shares within 0 and 1 that sum to 1, too."""
    shares = zone_shares(own, instances, callers)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(0.0 <= share <= 1.0 for share in shares.values())


class Recorder:
    """A picker that answers with its name and what it was asked."""

    def __init__(self, name):
        self.name = name

    def pick(self, now, key=None):
        return self.name, now, key


class Fixed(random.Random):
    """Chance at one of its ends."""

    def __init__(self, value):
        super().__init__(0)
        self.value = value

    def random(self):
        return self.value


def zone_picker(shares, rng):
    return ZonePicker([(share, Recorder(zone)) for zone, share in shares.items()], rng)


@pytest.mark.parametrize("total", [1.0, 0.25, 3.0])
def test_zones_are_drawn_by_their_shares(total):
    """Over 10,000 calls each zone has its share within 5 deviations, whatever shares sum to."""
    shares, calls = {"a": 0.5, "b": 0.3, "c": 0.2}, 10_000
    picker = zone_picker({zone: share * total for zone, share in shares.items()}, random.Random(1))
    counts = Counter(picker.pick(1.0)[0] for _ in range(calls))
    assert counts.keys() == shares.keys()
    for zone, share in shares.items():
        deviation = math.sqrt(calls * share * (1 - share))
        assert abs(counts[zone] - calls * share) <= 5 * deviation


@pytest.mark.parametrize("value", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_the_ends_of_chance_fall_to_a_zone_too(value):
    """Although ten tenths do not sum to 1 if they are added up one by one."""
    tenths = dict.fromkeys("abcdefghij", 0.1)
    assert zone_picker(tenths, Fixed(value)).pick(0.0)[0] in tenths

"""How a limit over the fleet is divided, and what is wanted of it."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.limits.demand import Demand
from meshrpc.limits.fleet_share import FleetShare
from meshrpc.limits.keys import from_wire, key_of_override, to_wire
from meshrpc.limits.shares import EVERY_KEY, FIRST, MOST_KEYS, WHOLE, divide, size
from meshrpc.policy.model import RateLimit, RateOverride, ShareMode

demands = st.lists(st.integers(0, 3 * WHOLE), min_size=1, max_size=30)


# Division


@settings(deadline=None)
@given(st.integers(0, WHOLE), demands)
def test_a_division_never_gives_out_more_than_there_is(whole, demands):
    """The shares add up to the whole, but for what does not divide evenly."""
    shares = divide(whole, demands)
    assert whole - 2 * len(demands) <= sum(shares) <= whole
    assert min(shares) >= 0


@settings(deadline=None)
@given(demands)
def test_a_division_is_max_min_fair(demands):
    """Who gets less than it wants gets no less than anybody else; more demand is never less share."""
    shares = divide(WHOLE, demands)
    unsatisfied = [share for share, want in zip(shares, demands, strict=True) if share < want]
    if unsatisfied:
        assert max(shares) - min(unsatisfied) <= len(shares)
    pairs = sorted(zip(demands, shares, strict=True))
    for (less, first), (more, second) in itertools.pairwise(pairs):
        assert first <= second + len(shares) or less == more


@settings(deadline=None)
@given(demands)
def test_nobody_starts_from_nothing(demands):
    """Each has its part of a fiftieth, whatever the others want."""
    assert min(divide(WHOLE, demands)) >= WHOLE // (50 * len(demands))


def test_skewed_demand():
    """300, 60, 20, 10, 5 and 1 of 100 a second: the small ones have what they want and a little
    more, the large ones equal parts of the rest."""
    shares = divide(WHOLE, [int(wanted * WHOLE / 100) for wanted in (300, 60, 20, 10, 5, 1)])
    assert [round(share / WHOLE * 100, 2) for share in shares] == [
        *(31.05, 31.05, 20.65, 10.49, 5.41, 1.35),
    ]
    assert divide(WHOLE, [0, 0, 0, 0]) == [WHOLE // 4] * 4
    assert divide(WHOLE, []) == []


@settings(deadline=None)
@given(
    st.floats(0.001, 1e6),
    st.integers(1, 10_000),
    st.lists(st.integers(0, WHOLE), min_size=1, max_size=8),
)
def test_the_parts_of_a_limit_are_the_limit(rate, burst, parts):
    """Rates add up to the rate of the shares exactly; bursts to at most one more for each process."""
    shares = [part * WHOLE // max(1, sum(parts)) for part in parts]
    sizes = [size(rate, burst, share) for share in shares]
    assert sum(each for each, _ in sizes) == Fraction(rate) * sum(max(1, s) for s in shares) / WHOLE
    assert all(each >= 1 for _, each in sizes)
    assert sum(each for _, each in sizes) <= burst + len(shares)


# Demand


def counted(demand, per_look, start, looks, every=0.25):
    """Look `looks` times; return when the demand was said to have changed a lot."""
    changes = []
    for number in range(1, looks + 1):
        now = start + number * every
        if demand.look(per_look, now):
            changes.append(now)
    return changes


def test_a_demand_that_begins_or_ends_is_known_within_two_looks():
    """A count that chance does not explain stands for itself, up and down."""
    demand = Demand(0.0)
    assert counted(demand, 25, 0.0, 8) == [0.25]
    assert demand.rate == pytest.approx(100.0)
    assert counted(demand, 0, 2.0, 8) == [2.5]
    assert demand.rate < 1e-9


def test_a_slow_demand_is_learned_slowly():
    """One call a second is no news; after fifteen seconds it is known to a tenth."""
    demand = Demand(0.0)
    for second in range(1, 16):
        assert not demand.look(1, float(second))
    assert demand.rate == pytest.approx(1.0, rel=0.1)
    assert not demand.is_negligible
    for second in range(16, 60):
        demand.look(0, float(second))
    assert demand.is_negligible


def test_a_look_too_soon_says_nothing_and_loses_nothing():
    """Two looks in a row count what came before both."""
    demand = Demand(0.0)
    assert not demand.look(50, 0.01)
    assert demand.look(0, 0.25)
    assert demand.rate == pytest.approx(200.0)


# What a process says


def fleet_limit(**fields):
    return RateLimit("a", 10.0, 5, share=ShareMode.FLEET, **fields)


def claims_of(fleet, spec):
    return {claim.key: claim for claim in fleet.claims(spec, lambda _: spec.rate)}


def test_a_limit_without_key_is_one_bucket():
    """What is wanted of it is its whole demand, in parts of its rate."""
    fleet, spec = FleetShare(), fleet_limit()
    fleet.look(0.0, lambda _: spec.rate)
    fleet.asked[""] = 20
    assert fleet.look(1.0, lambda _: spec.rate)
    (claim,) = fleet.claims(spec, lambda _: spec.rate)
    assert (claim.key, claim.demand, claim.share, claim.is_granted) == (
        EVERY_KEY,
        2 * WHOLE,
        FIRST,
        False,
    )


def test_only_keys_that_want_more_than_half_of_what_they_have_are_named():
    """A first share of a tenth of 10/s is 1/s: who calls once in three seconds needs no division."""
    fleet, spec = FleetShare(), fleet_limit(key=("caller",))
    fleet.look(0.0, lambda _: spec.rate)
    fleet.asked |= {"busy": 9, "idle": 1}
    fleet.look(3.0, lambda _: spec.rate)
    claims = claims_of(fleet, spec)
    assert set(claims) == {EVERY_KEY, b"=busy"}
    assert claims[EVERY_KEY].demand == 0
    assert claims[b"=busy"].demand == pytest.approx(0.3 * WHOLE, rel=0.01)
    assert not claims[b"=busy"].is_granted


def test_however_many_keys_are_busy_only_so_many_are_named():
    """The busiest ones; and what is remembered of the others is bounded too."""
    fleet, spec = FleetShare(), fleet_limit(key=("caller",))
    fleet.look(0.0, lambda _: spec.rate)
    for second in range(1, 20):
        fleet.asked |= {f"c{number}": 10 + number for number in range(5000)}
        fleet.look(float(second), lambda _: spec.rate)
        assert len(fleet._demands) <= 2 * MOST_KEYS
    claims = claims_of(fleet, spec)
    assert len(claims) == 1 + MOST_KEYS
    assert all(int(key[2:]) >= 5000 - 2 * MOST_KEYS for key in claims if key != EVERY_KEY)


@settings(deadline=None)
@given(st.lists(st.text(max_size=8).filter(lambda text: "\0" not in text), min_size=1, max_size=3))
def test_a_key_comes_back_from_the_wire(values):
    """As bytes and back, whatever its values are."""
    key = values[0] if len(values) == 1 else tuple(values)
    assert from_wire(to_wire(key), ("k",) * len(values)) == key


@pytest.mark.parametrize("wire", [b"", b"*", b"=\xff\xff", b"=a\0b", b"a"])
def test_what_is_no_key_of_the_limit_is_none(wire):
    """Control may know the limit with other keys, or be wrong."""
    assert from_wire(wire, ("caller",)) is None


def test_an_override_names_its_bucket_by_the_names_of_the_limit():
    """In the limit's order, a method as it is called, long values as their digests."""
    override = RateOverride((("caller", "b"), ("method", "s.S/M")), 1.0, 1)
    assert key_of_override(("method", "caller"), override) == ("/s.S/M", "b")
    long = RateOverride((("caller", "x" * 65),), 1.0, 1)
    assert len(key_of_override(("caller",), long)) == 32
    for names in ((), ("caller",), ("caller", "method", "metadata.x")):
        with pytest.raises(ValueError, match="a value for each"):
            key_of_override(names, override)

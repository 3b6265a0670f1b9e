"""A caller's subset is the same for all who ask, hardly moves, and is fair within chance."""

import math
import random
from dataclasses import dataclass
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrpc.balancer.subsetting import first, rank


@dataclass(frozen=True)
class Instance:
    """As much of an instance as subsetting looks at."""

    id: str
    zone: str | None = None


def fleet(count, zones="abc"):
    return [Instance(f"i{n}", zones[n % len(zones)]) for n in range(count)]


FLEETS = st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=30).map(
    lambda zones: [Instance(f"i{n}", zone) for n, zone in enumerate(zones)]
)
SIZES = st.integers(1, 12)
SEEDS = st.text(max_size=5)
ZONES = st.sampled_from([None, "a", "elsewhere"])


def subset(instances, size, seed, zone=None):
    """Return the subset of a caller with this seed, in the order in which it ranks."""
    return first(rank(instances, seed), size, zone)


def test_the_first_by_hash_of_seed_and_id_are_taken():
    """The rank is a hash that every process agrees on."""
    instances = fleet(100)
    ranking = sorted(
        instances, key=lambda i: blake2b(f"worker-7/{i.id}".encode(), digest_size=8).digest()
    )
    assert subset(instances, 20, "worker-7") == ranking[:20]


@given(FLEETS, SIZES, SEEDS, ZONES, st.randoms())
def test_the_order_in_which_instances_are_listed_does_not_matter(fleet, size, seed, zone, rng):
    """Two callers with one seed take the same instances, however their registries list them."""
    shuffled = rng.sample(fleet, len(fleet))
    chosen = subset(fleet, size, seed, zone)
    assert len(chosen) == min(size, len(fleet))
    assert set(subset(shuffled, size, seed, zone)) == set(chosen)


@given(FLEETS, SIZES, SEEDS, ZONES, st.data())
def test_one_that_leaves_costs_its_own_place_alone(fleet, size, seed, zone, data):
    """When one leaves, the others stay, and its place, if it had one, goes to one other.

    Read backwards, that is the claim for one that comes: it takes at most one place.
    """
    leaving = data.draw(st.sampled_from(fleet))
    before = set(subset(fleet, size, seed, zone))
    after = set(subset([i for i in fleet if i != leaving], size, seed, zone))
    assert before - after == before & {leaving}
    assert len(after - before) == (leaving in before and len(fleet) > size)


@given(FLEETS, SIZES, SEEDS)
def test_half_the_places_are_the_zones_and_all_compete_for_the_rest(fleet, size, seed):
    """With a zone, its best are in, as many as have room in half the places; then the best of all."""
    chosen = set(subset(fleet, size, seed, "a"))
    local = set(subset([i for i in fleet if i.zone == "a"], math.ceil(size / 2), seed))
    others = subset([i for i in fleet if i not in local], size - len(local), seed)
    assert chosen == local | set(others)


def test_a_subset_of_one_is_local():
    """With room for one only, it is one of the caller's zone."""
    assert {subset(fleet(9), 1, f"{n}", "b")[0].zone for n in range(50)} == {"b"}


def callers_of_each(callers, instances, size):
    """How many of the callers have each instance in their subset."""
    fleet_ = fleet(instances)
    counts = dict.fromkeys(fleet_, 0)
    for caller in range(callers):
        for instance in subset(fleet_, size, f"caller-{caller}"):
            counts[instance] += 1
    return list(counts.values())


@pytest.mark.parametrize(("callers", "instances", "size"), [(100, 400, 20), (300, 200, 50)])
def test_callers_per_instance_are_binomial(callers, instances, size):
    """Callers per instance have the variance and the extremes of Binomial(callers, size/instances).

    The variance over S instances is within 5 of its standard errors, sqrt(2/S) of itself; beyond
    the extremes, any instance at all would be once in 10^6 times (union bound of exact tails).
    """
    counts = callers_of_each(callers, instances, size)
    p = size / instances
    mean, variance = callers * p, callers * p * (1 - p)
    assert sum(counts) == callers * size
    spread = sum((count - mean) ** 2 for count in counts) / instances
    assert spread == pytest.approx(variance, rel=5 * math.sqrt(2 / instances))

    chances = [math.comb(callers, n) * p**n * (1 - p) ** (callers - n) for n in range(callers + 1)]
    likely = [
        n
        for n in range(callers + 1)
        if instances * min(sum(chances[: n + 1]), sum(chances[n:])) > 1e-6
    ]
    assert likely[0] <= min(counts)
    assert max(counts) <= likely[-1]


def test_few_callers_leave_instances_without_any():
    """10 callers of 100 in 1,000 instances leave 0.9^10 of them idle, within 5 deviations."""
    idle = callers_of_each(10, 1_000, 100).count(0)
    expected = 1_000 * 0.9**10
    assert abs(idle - expected) <= 5 * math.sqrt(expected * (1 - 0.9**10))


def test_two_callers_share_no_more_than_chance_has_it():
    """Subsets of similar seeds overlap as two independent draws do: k^2/S on average.

    The overlap of one pair is hypergeometric; over 200 pairs, its mean is within 5 standard errors.
    """
    size, instances, pairs = 20, 100, 200
    all_, p = fleet(instances), size / instances
    overlap = [
        len({*subset(all_, size, f"worker-{n}")} & {*subset(all_, size, f"worker-{n + 1}")})
        for n in random.Random(1).sample(range(10_000), pairs)
    ]
    variance = size * p * (1 - p) * (instances - size) / (instances - 1)
    assert sum(overlap) / pairs == pytest.approx(size * p, abs=5 * math.sqrt(variance / pairs))

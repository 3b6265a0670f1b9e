"""Skewed keys: ten thousand keys with Zipf's frequencies over a hundred servers."""

import math

import pytest

from tests.simulation.skewed_keys import (
    BOUNDED_MAGLEV,
    BOUNDED_RING,
    CALLERS,
    GONE,
    HOTTEST,
    MAGLEV,
    MAX_LOAD,
    RATE,
    RING_HASH,
    SERVERS,
    SERVICE_TIME,
    moved,
    run,
)

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (2, 3, 4))]
KINDS = pytest.mark.parametrize("balancer", [RING_HASH, MAGLEV], ids=["ring_hash", "maglev"])
UNDER_WAY = RATE * SERVICE_TIME


@KINDS
@pytest.mark.parametrize("seed", SEEDS)
def test_hashing_leaves_a_hot_key_to_its_owner(balancer, seed):
    """A tenth of all calls have one key, and so one server: ten times the mean, and its other keys."""
    most = run(balancer, 1, seed=seed)[0]
    assert 10.1 < HOTTEST < 10.3
    # 20,000 calls, of which the hottest key has 2,040 +- 43; the owner's other keys are at most
    # the second hottest and twice a mean server's.
    assert 0.9 * HOTTEST < most < 1.1 * HOTTEST + HOTTEST / 2 + 2.0


@pytest.mark.parametrize("balancer", [BOUNDED_RING, BOUNDED_MAGLEV], ids=["ring_hash", "maglev"])
@pytest.mark.parametrize("callers", [1, 5, 10])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_bound_holds_for_what_one_caller_has_under_way(balancer, callers, seed):
    """No more than ceil(c (L + 1) / n) of each caller's L calls run at one server; callers add up."""
    one = UNDER_WAY / callers
    # L is Poisson; a bound counts up to an eighth of the endpoints' calls too many.
    much = one + 5 * math.sqrt(one) + SERVERS / 8
    at_once = callers * math.ceil(MAX_LOAD * (much + 1) / SERVERS)
    assert run(balancer, callers, seed=seed)[0] <= at_once / (UNDER_WAY / SERVERS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bound_of_callers_with_nothing_under_way_does_nothing(seed):
    """A thousand callers with 0.2 calls each let one run at any server: as good as no bound."""
    free, bound = run(MAGLEV, 1, seed=seed)[0], run(BOUNDED_MAGLEV, CALLERS[-1], seed=seed)[0]
    assert bound > 0.9 * free


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_ring_moves_only_keys_whose_owner_is_gone(gone, seed):
    """Not one more; they are a part of all keys as large as the part of the servers, give or take their arcs."""
    must, others = moved(RING_HASH, gone, seed=seed)
    assert others == 0.0
    # Arcs deviate by 1/sqrt(40) each, their sum by less: five deviations.
    assert must == pytest.approx(gone, abs=5 * math.sqrt(gone / 40))


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("seed", SEEDS)
def test_maglev_moves_hardly_more(gone, seed):
    """Of the others' keys under two in a hundred, however many servers go; of its own all, exactly their part."""
    must, others = moved(MAGLEV, gone, seed=seed)
    assert others < 2.0
    # 10,000 keys at random over exactly even parts: binomial.
    assert must == pytest.approx(gone, abs=5 * math.sqrt(gone * (100 - gone)) / 100)

"""The distribution of ten thousand calls over a hundred endpoints, by balancer."""

import math

import pytest

from meshrpc.policy.model import BalancerKind
from tests.simulation.distribution import CALLS, ENDPOINTS, SLOW, SLOWNESS, counts
from tests.simulation.start_together import chance

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (2, 3, 4))]
MEAN = CALLS / ENDPOINTS
CHANCE = chance(ENDPOINTS, CALLS, doubt=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("slow", [0, SLOW])
def test_round_robin_is_level_whatever_happens(slow, seed):
    """Counts differ by one at most."""
    sluggish, others = counts(BalancerKind.ROUND_ROBIN, slow, seed=seed)
    came = [*sluggish, *others]
    assert max(came) - min(came) <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_least_request_is_nearly_level(seed):
    """The fullest has 1.15 times the mean at most, the emptiest as little below it."""
    _, came = counts(BalancerKind.LEAST_REQUEST, 0, seed=seed)
    assert max(came) <= 1.15 * sum(came) / ENDPOINTS
    assert min(came) >= 0.85 * sum(came) / ENDPOINTS


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [BalancerKind.RANDOM, BalancerKind.MAGLEV])
def test_others_are_as_uneven_as_chance(kind, seed):
    """Maglev's parts are exactly even, so that only which keys are called is left to chance."""
    _, came = counts(kind, 0, seed=seed)
    assert max(came) <= CHANCE * MEAN


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rings_arcs_come_on_top_of_chance(seed):
    """4,096 points are 32 of each of a hundred endpoints, so that arcs deviate by 1/sqrt(32)."""
    _, came = counts(BalancerKind.RING_HASH, 0, seed=seed)
    assert max(came) <= CHANCE * (1 + 4 / math.sqrt(32)) * MEAN


@pytest.mark.parametrize("seed", SEEDS)
def test_peak_ewma_does_not_go_by_luck(seed):
    """Peaks are luck, and remembered; but those nearly alike take turns, so that chance is not exceeded."""
    _, came = counts(BalancerKind.PEAK_EWMA, 0, seed=seed)
    assert max(came) <= chance(ENDPOINTS, CALLS) * MEAN


@pytest.mark.parametrize("seed", SEEDS)
def test_peak_ewma_and_weighted_round_robin_spare_the_slow(seed):
    """No more than when both draws are slow (0.9 %), and a probe in 300; or a fifth of the others' calls, as reported."""
    slow, _ = counts(BalancerKind.PEAK_EWMA, SLOW, seed=seed)
    both = SLOW / ENDPOINTS * (SLOW - 1) / (ENDPOINTS - 1)
    first = SLOW * 2  # before its first answer, each has been asked once or twice
    assert sum(slow) <= 1.3 * CALLS * (both + 1 / 300) + first
    slow, others = counts(BalancerKind.WEIGHTED_ROUND_ROBIN, SLOW, seed=seed)
    ratio = (sum(slow) / SLOW) / (sum(others) / (ENDPOINTS - SLOW))
    assert ratio == pytest.approx(1 / SLOWNESS, rel=0.1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "kind", [BalancerKind.LEAST_REQUEST, BalancerKind.RANDOM, BalancerKind.MAGLEV]
)
def test_others_do_not_notice(kind, seed):
    """Ten calls a second of 50 ms leave nothing under way for least request to see: the share is fair."""
    slow, others = counts(kind, SLOW, seed=seed)
    share = sum(slow) / (sum(slow) + sum(others))
    assert share == pytest.approx(SLOW / ENDPOINTS, abs=5 * math.sqrt(0.1 * 0.9 / CALLS))

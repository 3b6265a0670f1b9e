"""A slow middle: a tenth of a hundred servers is twenty times slower for fourteen seconds."""

import math

import pytest

from tests.simulation.slow_middle import (
    CLIENTS,
    LEAST_REQUEST,
    PEAK_EWMA,
    RATE,
    RECOVERS,
    ROUND_ROBIN,
    SERVERS,
    SLOW,
    SLOWNESS,
    SUBSET,
    TURNS_SLOW,
    UNTIL,
    expected,
    run,
)

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (2, 3, 4))]
FAIR = 100 * SLOW / SERVERS


def mean(points, start, end):
    values = [value for at, value in points if start <= at < end]
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "balancer", [ROUND_ROBIN, LEAST_REQUEST], ids=["round_robin", "least_request"]
)
def test_some_do_not_notice(balancer, seed):
    """Round robin by design; least request because a caller of four calls a second has none under way.

    The slow ones keep their share, and as it is above a hundredth, p99 is theirs.
    """
    slow = run(balancer, seed=seed)
    # The callers of ten servers are 2,000 places of 20,000, drawn at random: 10 % +- 0.2.
    assert mean(slow.share, TURNS_SLOW, RECOVERS) == pytest.approx(FAIR, abs=1.0)
    assert mean(slow.late, TURNS_SLOW, RECOVERS) > 10 * mean(slow.late, 0.0, TURNS_SLOW)


@pytest.mark.parametrize("seed", SEEDS)
def test_peak_ewma_leaves_them_as_fast_as_each_caller_can_learn(seed):
    """Not later than derived, second by second: what is to be learned fades as e^(-0.2 t), and probes stay."""
    for at, share in run(PEAK_EWMA, seed=seed).share:
        if TURNS_SLOW < at < RECOVERS:
            bound = expected(at - TURNS_SLOW - 0.5)
            noise = 5 * math.sqrt(bound / 100 / RATE) * 100
            assert share <= bound + noise


@pytest.mark.parametrize("seed", SEEDS)
def test_peak_ewma_makes_up_with_them_as_its_memory_fades(seed):
    """A peak of twenty times sinks below the others in decay x ln 20 = 30 s; a draw follows within 5 s."""
    share = run(PEAK_EWMA, seed=seed).share
    back = RECOVERS + PEAK_EWMA.decay * math.log(SLOWNESS)
    drawn = SUBSET * CLIENTS / RATE
    assert back + drawn <= UNTIL
    assert mean(share, back, back + drawn) > 0.7 * FAIR
    assert mean(share, RECOVERS, UNTIL) < 1.1 * FAIR


@pytest.mark.parametrize("seed", SEEDS)
def test_who_calls_more_learns_sooner(seed):
    """The same calls of a hundred callers: six seconds later fewer than two draws alone would leave.

    Of those, both are slow in 10/100 x 9/99 of all cases; what is left is a probe in 300 and little more.
    """
    few = run(PEAK_EWMA, seed=seed, clients=100, until=RECOVERS)
    both = SLOW / SERVERS * (SLOW - 1) / (SERVERS - 1)
    assert mean(few.share, TURNS_SLOW + 6, RECOVERS) < 100 * both
    assert mean(few.late, TURNS_SLOW + 6, RECOVERS) < 2 * mean(few.late, 0.0, TURNS_SLOW)


@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_calls_much_knows_at_once(seed):
    """400 calls a second of each of ten: two seconds later p99 is that of the healthy."""
    few = run(PEAK_EWMA, seed=seed, clients=10, until=15.0)
    assert mean(few.share, TURNS_SLOW + 2, 15.0) < 0.5
    assert mean(few.late, TURNS_SLOW + 2, 15.0) < 1.2 * mean(few.late, 0.0, TURNS_SLOW)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_probe_brings_one_back_that_is_well_again(seed):
    """With 400 calls a second each, one is probed as soon as nobody asked it for 3 s, and believed at once.

    Six seconds after the recovery they have most of their share, where memories would fade for thirty.
    """
    few = run(PEAK_EWMA, seed=seed, clients=10, until=RECOVERS + 12)
    fair = mean(few.share, 0.0, TURNS_SLOW)
    assert mean(few.share, RECOVERS + 6, RECOVERS + 12) > 0.6 * fair

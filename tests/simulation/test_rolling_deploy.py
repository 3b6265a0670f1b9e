"""A rolling deploy: a hundred servers are replaced, ten at a time, under subsets of twenty."""

import math

import pytest

from tests.simulation.rolling_deploy import (
    CLIENTS,
    OVERLAP,
    RATE,
    SERVERS,
    SUBSET,
    drawn_anew,
    expected_connections,
    run,
)

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (2, 3, 4))]


def tail(mean, count, doubt=1e-6):
    """By how much the largest of `count` binomials with this mean exceeds it, but once in a million (Bernstein)."""
    log = math.log(count / doubt)
    return log / 3 + math.sqrt(log * log / 9 + 2 * mean * log)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_connects_only_to_replace_and_to_prefer(seed):
    """2 k b / (S + b) connections a batch, 36.4 in all; a fresh draw each time makes nine times as many."""
    _, made = run(seed=seed).connections[-1]
    expected = expected_connections()
    assert expected <= 2 * SUBSET
    deviation = math.sqrt(expected / CLIENTS)
    assert sum(made) / CLIENTS == pytest.approx(expected, abs=5 * deviation)
    assert max(made) <= expected + tail(expected, CLIENTS)
    assert drawn_anew(seed=seed)[-1][1] > 8 * expected


@pytest.mark.parametrize("seed", SEEDS)
def test_a_servers_callers_are_binomial_at_every_step(seed):
    """C k / S on average, and none so far from it as happens once in a million times."""
    for _, callers in run(seed=seed).callers:
        mean = CLIENTS * SUBSET / len(callers)
        assert sum(callers) == CLIENTS * SUBSET
        assert max(callers) <= mean + tail(mean, len(callers))
        assert min(callers) >= mean - tail(mean, len(callers))


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_is_buried_while_others_begin_slowly(seed):
    """A settled server has its callers' share and at most a third on top, and what chance adds.

    What slow start withholds from new endpoints it may not add to settled ones beyond that.
    """
    deploy = run(seed=seed)
    callers = CLIENTS * SUBSET / SERVERS
    uneven = 1 + tail(callers, SERVERS) / callers
    calls = RATE * OVERLAP / SERVERS * uneven * 4 / 3
    most = uneven * 4 / 3 * (1 + tail(calls, SERVERS) / calls)
    assert max(times for _, times in deploy.busiest) <= most


@pytest.mark.parametrize("seed", SEEDS)
def test_no_call_is_lost_or_goes_to_a_server_that_is_gone(seed):
    """All are answered, by servers that were registered when they were made."""
    deploy = run(seed=seed)
    assert deploy.made == deploy.answered > 0
    assert deploy.strays == 0

"""Everybody starts together: a thousand callers that know nothing, and servers that join."""

import math

import pytest

from meshrpc.policy.model import Balancer, BalancerKind
from tests.simulation.start_together import (
    BALANCERS,
    FIRST,
    JOIN_RATE,
    JOIN_UNTIL,
    JOINED,
    JOINING,
    SERVERS,
    SLOW_START,
    chance,
    join,
    start,
)

SEEDS = [2, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 3, 4, 5))]
FAIR = JOIN_RATE * 2.0 * JOINING / (SERVERS + JOINING)
"""Calls that the new ones together should get in two seconds."""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("servers", [100, 1000])
@pytest.mark.parametrize("kind", BALANCERS)
def test_callers_that_start_together_do_not_choose_alike(kind, servers, seed):
    """The busiest server has no more than chance gives with a probability of one in a million.

    Were all to begin with the same endpoint, it would get a thousand of the first thousand calls.
    """
    points = start(BALANCERS[kind], servers, seed=seed)
    calls, most = points[-1]
    assert calls == pytest.approx(FIRST, rel=0.05)
    assert most <= chance(servers, calls, doubt=1e-6)
    first, most = points[1]
    assert most <= chance(servers, first, doubt=1e-6)


@pytest.mark.parametrize(
    "kind", [BalancerKind.WEIGHTED_ROUND_ROBIN, BalancerKind.RING_HASH, BalancerKind.MAGLEV]
)
def test_nor_with_a_plan_or_without_a_key(kind):
    """Schedules begin at random, and calls without a key go anywhere.

    A ring's arcs are uneven themselves, by 1/sqrt(40.96 points) each and half as much again over
    the largest of a hundred.
    """
    calls, most = start(Balancer(kind), 100, seed=2)[-1]
    uneven = 1 + 4 / math.sqrt(40) if kind is BalancerKind.RING_HASH else 1.0
    assert most <= uneven * chance(100, calls, doubt=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_falls_upon_a_server_that_joins(seed):
    """At most twice a fair share: of k endpoints the best looking one is in 2 of k draws of two."""
    noise = 5 / math.sqrt(2 * FAIR)
    assert all(
        got <= 2 * (1 + noise) for _, got in join(BALANCERS[BalancerKind.PEAK_EWMA], 0.0, seed=seed)
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [BalancerKind.ROUND_ROBIN, BalancerKind.PEAK_EWMA])
def test_in_slow_start_it_gets_what_slow_start_says(kind, seed):
    """A tenth at first, then what has passed of the window; twice that where it looks best. Fair in the end."""
    best = 2.0 if kind is BalancerKind.PEAK_EWMA else 1.0
    points = join(BALANCERS[kind], SLOW_START, seed=seed)
    for middle, got in points:
        if JOINED < middle < JOINED + SLOW_START:
            share = max(0.1, (middle + 1 - JOINED) / SLOW_START)
            assert got <= best * share + 5 * math.sqrt(best * share / FAIR)
    last = [got for middle, got in points if middle > JOINED + SLOW_START]
    assert len(last) == (JOIN_UNTIL - JOINED - SLOW_START) / 2
    # What it gets is now as much chance as anything: a subset's clients, and calls.
    assert sum(last) / len(last) == pytest.approx(1.0, abs=0.15)

"""Reported load: servers of three speeds, and weighted round robin by what they report."""

import math

import pytest

from tests.simulation.reported_load import (
    CLIENTS,
    OTHERS,
    RATE,
    SPEEDS,
    SUBSET,
    UNTIL,
    WEIGHTED,
    run,
)

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (2, 3, 4))]

HEARD_FROM = CLIENTS * SUBSET / RATE
"""Seconds on average until a client has a report of a server: each has 0.3 calls a second of it."""

SETTLED = WEIGHTED.blackout + 2.5 * HEARD_FROM
"""When a client believes e^-2.5 = 92 % of its servers; the others have the mean of these until then."""


def mean(points, start, end):
    values = [value for at, value in points if start <= at < end]
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", SEEDS)
def test_shares_end_within_a_tenth_of_ideal(seed):
    """Once the first reports are ten seconds old and have come from nearly all; and they stay there."""
    shares = run(WEIGHTED, seed=seed).shares
    assert SETTLED < 20.0
    for start in (20.0, 26.0):
        for speed in SPEEDS:
            assert mean(shares[speed], start, start + 6.0) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_until_reports_count_all_have_the_same(seed):
    """A third of the calls each: 7/3 of the ideal for the slowest, 7/12 for the fastest."""
    shares = run(WEIGHTED, seed=seed).shares
    for speed in SPEEDS:
        equal = sum(SPEEDS) / 3 / speed
        noise = 5 * math.sqrt(3 / RATE / WEIGHTED.blackout) + 0.03  # chance, and who is in a subset
        assert mean(shares[speed], 0.0, WEIGHTED.blackout) == pytest.approx(equal, rel=noise)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_slowest_servers_queues_go_with_that(seed):
    """With an equal share they are 81 % busy, with the ideal one 35 %: p99 is less than half of round robin's."""
    blind, weighted = run(OTHERS[0][2], seed=seed), run(WEIGHTED, seed=seed)
    assert mean(weighted.late, 20.0, UNTIL) < mean(blind.late, 20.0, UNTIL) / 2

"""Claims about when a worker that died is started again."""

import random

import pytest

from meshrpc.workers.restarts import (
    CRASH_LOOP_DEATHS,
    CRASH_LOOP_WINDOW,
    FIRST_DELAY,
    HEALTHY_AFTER,
    JITTER,
    LONGEST_DELAY,
    Restarts,
)


class NoJitter(random.Random):
    """Chance that always falls in the middle."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def test_delays_double_from_the_first_to_the_longest():
    """A worker that never becomes ready waits 0.1, 0.2, 0.4 ... 25.6, 30, 30 seconds."""
    restarts = Restarts(NoJitter())
    delays = [restarts.died(now=0.0) for _ in range(11)]
    doubled = [FIRST_DELAY * 2**n for n in range(9)]
    assert delays == pytest.approx([*doubled, LONGEST_DELAY, LONGEST_DELAY])


def test_a_crash_loop_of_days_keeps_the_longest_delay():
    """Thousands of deaths in a row end in the longest delay, not in an overflow."""
    restarts = Restarts(NoJitter())
    assert [restarts.died(now=0.0) for _ in range(5000)][-1] == pytest.approx(LONGEST_DELAY)


def test_a_healthy_life_forgets_earlier_deaths():
    """Having been ready for `HEALTHY_AFTER` seconds, a worker comes back after the first delay."""
    restarts = Restarts(NoJitter())
    for _ in range(5):
        restarts.died(now=0.0)
    restarts.ready(now=100.0)
    assert restarts.died(now=100.0 + HEALTHY_AFTER) == pytest.approx(FIRST_DELAY)
    assert restarts.died(now=200.0) == pytest.approx(2 * FIRST_DELAY)


def test_a_short_life_forgets_nothing():
    """A worker that dies sooner than that goes on doubling."""
    restarts = Restarts(NoJitter())
    restarts.died(now=0.0)
    restarts.ready(now=1.0)
    assert restarts.died(now=1.0 + HEALTHY_AFTER - 0.01) == pytest.approx(2 * FIRST_DELAY)


def test_only_the_last_life_counts_as_health():
    """A life that was never ready is not healthy because an earlier one was, long ago."""
    restarts = Restarts(NoJitter())
    restarts.ready(now=0.0)
    restarts.died(now=1.0)
    assert restarts.died(now=1000.0) == pytest.approx(2 * FIRST_DELAY)


def test_jitter_stays_within_its_share_and_uses_it():
    """First delays lie within 20 % around 0.1 s and spread over most of that range."""
    rng = random.Random(7)
    delays = [Restarts(rng).died(now=0.0) for _ in range(1000)]
    assert min(delays) >= FIRST_DELAY * (1 - JITTER)
    assert max(delays) <= FIRST_DELAY * (1 + JITTER)
    assert max(delays) - min(delays) > FIRST_DELAY * JITTER * 1.8


def test_a_reload_in_between_is_no_health():
    """Of two lives, the second has to earn its own."""
    restarts = Restarts(NoJitter())
    restarts.died(now=0.0)
    restarts.ready(now=0.0)
    restarts.left()
    assert restarts.died(now=100.0) == pytest.approx(2 * FIRST_DELAY)


def test_deaths_close_together_are_a_crash_loop():
    """The last of as many within the window makes it one."""
    restarts = Restarts(NoJitter())
    gap = CRASH_LOOP_WINDOW / (CRASH_LOOP_DEATHS - 1)
    for n in range(CRASH_LOOP_DEATHS):
        assert not restarts.is_crash_loop
        restarts.died(now=n * gap)
    assert restarts.is_crash_loop


def test_deaths_far_apart_are_none():
    """However many."""
    restarts = Restarts(NoJitter())
    gap = CRASH_LOOP_WINDOW / (CRASH_LOOP_DEATHS - 1) + 0.01
    for n in range(100):
        restarts.died(now=n * gap)
    assert not restarts.is_crash_loop


def test_a_crash_loop_is_over_after_a_life_as_long_as_the_window():
    """And is told to be over once; a life that is shorter changes nothing."""
    restarts = Restarts(NoJitter())
    for _ in range(CRASH_LOOP_DEATHS):
        restarts.died(now=0.0)
    assert restarts.recovers_at is None
    restarts.ready(now=10.0)
    assert restarts.recovers_at == 10.0 + CRASH_LOOP_WINDOW
    assert not restarts.has_recovered(9.9 + CRASH_LOOP_WINDOW)
    restarts.died(now=60.0)
    assert restarts.is_crash_loop
    restarts.ready(now=70.0)
    assert restarts.has_recovered(70.0 + CRASH_LOOP_WINDOW)
    assert not restarts.has_recovered(70.0 + CRASH_LOOP_WINDOW)
    restarts.died(now=140.0)
    assert not restarts.is_crash_loop

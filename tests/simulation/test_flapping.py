"""A flapping instance: one of four fails for five seconds of every ten, under round robin."""

import pytest

from tests.simulation.client import OK
from tests.simulation.flapping import BARE, NO_RETRY, ONLY_RETRY, ROUND_ROBIN, run
from tests.simulation.server import State

UNTIL = 150.0
BASE = ROUND_ROBIN.outlier.base_ejection
JITTER = 0.2 * BASE
THRESHOLD = ROUND_ROBIN.outlier.consecutive_failures

# Ejection n lasts between n x base - jitter and n x base, and they follow one another, so that
# their lengths add up to UNTIL at most, but for the last one.
MOST_EJECTIONS = next(n for n in range(100) if BASE * n * (n + 1) / 2 - JITTER * n > UNTIL) + 1


def failures(flapping):
    return sum(call.code is not OK for call in flapping.calls)


@pytest.mark.parametrize("seed", [1, 2])
def test_each_ejection_lasts_longer_and_few_attempts_fail(seed):
    """The n-th lasts n x 5 s less at most 1 s of jitter; each costs a probe or five attempts."""
    flapping = run(NO_RETRY, UNTIL, seed=seed)
    ejections = flapping.ejections
    assert 5 <= len(ejections) <= MOST_EJECTIONS
    for number, each in enumerate(ejections, start=1):
        assert number * BASE - JITTER <= each.until - each.at <= number * BASE
    # One more: the calls that were under way when the fifth failure came back (15/s x 1.5 ms).
    assert len(flapping.bad) <= (THRESHOLD + 1) * (len(ejections) + 1)
    assert failures(flapping) == len(flapping.bad)
    first, last = (
        sum(start <= at < start + UNTIL / 3 for at in flapping.bad) for start in (0, UNTIL * 2 / 3)
    )
    assert last < first


@pytest.mark.parametrize("fault", [State.FAILING, State.DEAD])
def test_with_retries_nobody_notices(fault):
    """No call fails, and attempts exceed calls by less than one in a hundred."""
    flapping = run(ROUND_ROBIN, UNTIL, seed=1, fault=fault)
    assert failures(flapping) == 0
    assert sum(call.attempts for call in flapping.calls) < 1.01 * len(flapping.calls)


def test_either_alone_is_not_enough():
    """Without ejection the budget for retries is used up: half of a quarter fails, 10 % and 1/s are tried again."""
    bare, only_retry = run(BARE, UNTIL, seed=1), run(ONLY_RETRY, UNTIL, seed=1)
    calls = len(bare.calls)
    # A quarter of the calls for half of the time, within five standard deviations.
    expected = calls / 8
    assert abs(failures(bare) - expected) < 5 * expected**0.5
    budget = 0.1 * calls + UNTIL + 10
    assert failures(only_retry) >= failures(bare) - budget > 0

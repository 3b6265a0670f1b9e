"""A retry storm: a caller, order, payment and ledger, and ledger fails every call."""

import pytest

from meshrpc.resilience.retry_budget import SAVED
from tests.simulation.retry_storm import ALL, FAILS, NAIVE, NO_THROTTLE, run

SEEDS = [1, 2]
UNTIL = 50.0
BUDGET = NO_THROTTLE.retry_budget


def most_retries(rate, instances, seconds=UNTIL - FAILS):
    """Attempts per call that the budgets of one layer's processes allow at most."""
    per_call = 1 + BUDGET.ratio
    saved = instances * (SAVED + BUDGET.min_per_second * seconds)
    return per_call + saved / (rate * seconds)


def test_naive_retries_multiply_to_twenty_seven():
    """Three attempts at each of three layers; a few calls run out of time before the last ones."""
    assert 24 < run(NAIVE, 20.0, seed=1, chain_stop=False, until=30.0).amplification <= 27


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", [20.0, 100.0])
def test_budgets_alone_keep_it_below_what_they_add_up_to(rate, seed):
    """1.1 at each layer, and what each process may always retry: below their product, above 1.1."""
    storm = run(NO_THROTTLE, rate, seed=seed, chain_stop=False, until=UNTIL)
    assert 1.1 < storm.amplification <= most_retries(rate, 1) ** 3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", [20.0, 100.0])
def test_with_chain_stop_only_the_last_caller_retries(rate, seed):
    """One budget's worth, whatever the length of the chain: at most 1.2 attempts at the leaf."""
    storm = run(NO_THROTTLE, rate, seed=seed, until=UNTIL)
    # The number of calls is itself random: by 3.5 % at 20/s, and the bound is 1.163 there.
    assert storm.amplification <= min(1.2, 1.04 * most_retries(rate, 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_more_processes_have_more_budgets(seed):
    """The second that each may always retry is per process: three of payment at 20/s come to 1.29 at most."""
    storm = run(NO_THROTTLE, 20.0, seed=seed, instances=3, until=UNTIL)
    assert storm.amplification <= 1.04 * most_retries(20.0, 3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("rate", "instances"), [(20.0, 1), (20.0, 3), (100.0, 3)])
def test_with_all_defaults_the_leaf_gets_less_than_before(rate, instances, seed):
    """The throttle holds most calls back: less than one attempt for each call made."""
    storm = run(ALL, rate, seed=seed, instances=instances, until=UNTIL)
    assert storm.amplification < 1.0

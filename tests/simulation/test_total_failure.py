"""Total failure: all four instances fail for thirty seconds and come back one by one."""

import pytest

from meshrpc.resilience.retry_budget import SAVED
from tests.simulation.measure import attempts_per_call, succeeded
from tests.simulation.server import State
from tests.simulation.total_failure import (
    ALL_BACK,
    COLLAPSE_RATE,
    DEFAULT,
    FAILS,
    INSTANCES,
    NAIVE,
    RECOVERS,
    SPARE,
    TIMED,
    TIMEOUT,
    collapse,
    run,
)

FAULTS = [State.FAILING, State.DEAD, State.FROZEN]
CASES = [(20.0, 1), (20.0, 2), (20.0, 3), (100.0, 1), (100.0, 2), (500.0, 1)]
BUDGET = DEFAULT.retry_budget


def between(failure, start, end):
    return [call for call in failure.calls if start <= call.start < end]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("rate", "seed"), CASES)
def test_an_outage_costs_little_and_ends_at_once(rate, seed, fault):
    """At most 1.2 attempts a call (10 %, one a second, ten saved); 95 % succeed within 5 s of the first that works.

    That one can carry all calls, and the next is back only later. No call ends after its deadline.
    """
    failure = run(DEFAULT, rate, seed=seed, fault=fault, until=RECOVERS + 10)
    down = between(failure, FAILS, RECOVERS)
    retries = BUDGET.ratio * len(down) + BUDGET.min_per_second * (RECOVERS - FAILS) + SAVED
    assert attempts_per_call(down) <= min(1.2, 1 + retries / len(down))
    assert succeeded(between(failure, FAILS + TIMEOUT, RECOVERS - TIMEOUT)) == 0.0
    assert succeeded(between(failure, RECOVERS + 5, RECOVERS + 10)) >= 0.95
    assert max(call.latency for call in failure.calls) <= TIMEOUT + 1e-9


@pytest.mark.parametrize("seed", range(1, 5))
def test_one_that_works_goes_on_being_found_among_three_that_do_not(seed):
    """Whether it was the one that was ejected or not, and after it has been readmitted, too."""
    failure = run(DEFAULT, 100.0, seed=seed, apart=1000.0, until=RECOVERS + 40)
    assert succeeded(between(failure, RECOVERS + 5, RECOVERS + 40)) >= 0.95


@pytest.mark.parametrize(("policy", "seed"), [(DEFAULT, 1), (TIMED, 2)], ids=["default", "timed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_with_little_to_spare_all_is_well_when_the_last_one_is_back(seed, fault, policy):
    """Four that together do 1.4 times the load: nothing is left of the overload after five seconds."""
    failure = run(policy, 200.0, seed=seed, fault=fault, capacity=0.35, apart=5.0, until=75.0)
    last = RECOVERS + 5.0 * (INSTANCES - 1)
    assert succeeded(between(failure, last + 5, 75.0)) >= 0.99


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ours_do_not_collapse(seed):
    """Eight that do 1.2 times the load, attempts that time out: well five seconds after the last is back."""
    failure = collapse(TIMED, seed=seed, until=ALL_BACK + 20)
    assert succeeded(between(failure, ALL_BACK + 5, ALL_BACK + 20)) >= 0.99


def test_naive_retries_do():
    """The same attempts with nothing to hold them back: more than 1.5 times what can be served, for good."""
    failure = collapse(NAIVE, seed=2, until=ALL_BACK + 15)
    assert succeeded(between(failure, ALL_BACK + 5, ALL_BACK + 15)) < 0.75
    late = [came for at, came in failure.arrivals if at >= ALL_BACK + 5]
    assert sum(late) / len(late) > 1.5 * SPARE * COLLAPSE_RATE

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
CASES = [(20.0, 1), (20.0, 2), (20.0, 3), (100.0, 1), (100.0, 2), (100.0, 3), (500.0, 1)]
BUDGET = DEFAULT.retry_budget


def between(failure, start, end):
    return [call for call in failure.calls if start <= call.start < end]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("rate", "seed"), CASES)
def test_attempts_stay_within_the_budget_and_calls_within_their_deadline(rate, seed, fault):
    """10 % of the calls, one a second and ten that were saved: at most 1.2 attempts a call."""
    failure = run(DEFAULT, rate, seed=seed, fault=fault, until=RECOVERS)
    down = between(failure, FAILS, RECOVERS)
    retries = BUDGET.ratio * len(down) + BUDGET.min_per_second * (RECOVERS - FAILS) + SAVED
    assert attempts_per_call(down) <= 1 + retries / len(down)
    assert attempts_per_call(down) <= 1.2
    assert succeeded(between(failure, FAILS + TIMEOUT, RECOVERS - TIMEOUT)) == 0.0
    assert max(call.latency for call in failure.calls) <= TIMEOUT + 1e-9


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("rate", "seed"), CASES)
def test_five_seconds_after_the_first_one_works_all_is_well(rate, seed, fault):
    """It can carry all calls; the next one is back only after that has been seen."""
    failure = run(DEFAULT, rate, seed=seed, fault=fault, until=RECOVERS + 10)
    assert succeeded(between(failure, RECOVERS + 5, RECOVERS + 10)) >= 0.95


@pytest.mark.parametrize("seed", range(1, 6))
def test_one_that_works_goes_on_being_found_among_three_that_do_not(seed):
    """Whether it was the one that was ejected or not, and after it has been readmitted, too."""
    failure = run(DEFAULT, 100.0, seed=seed, apart=1000.0, until=RECOVERS + 40)
    assert succeeded(between(failure, RECOVERS + 5, RECOVERS + 40)) >= 0.95


@pytest.mark.parametrize("policy", [DEFAULT, TIMED], ids=["default", "timed"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_little_to_spare_all_is_well_when_the_last_one_is_back(seed, fault, policy):
    """Four that together do 1.4 times the load: nothing is left of the overload after five seconds."""
    failure = run(policy, 200.0, seed=seed, fault=fault, capacity=0.35, apart=5.0, until=80.0)
    last = RECOVERS + 5.0 * (INSTANCES - 1)
    assert succeeded(between(failure, last + 5, 80.0)) >= 0.99


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ours_do_not_collapse(seed):
    """Eight that do 1.2 times the load, attempts that time out: well five seconds after the last is back."""
    failure = collapse(TIMED, seed=seed, until=ALL_BACK + 20)
    assert succeeded(between(failure, ALL_BACK + 5, ALL_BACK + 20)) >= 0.99


@pytest.mark.parametrize("seed", [1, 2])
def test_naive_retries_do(seed):
    """The same attempts with nothing that holds them back: twice as many as can be served come for good."""
    failure = collapse(NAIVE, seed=seed, until=ALL_BACK + 15)
    assert succeeded(between(failure, ALL_BACK + 5, ALL_BACK + 15)) < 0.5
    late = [came for at, came in failure.arrivals if at >= ALL_BACK + 5]
    assert sum(late) / len(late) > 1.5 * SPARE * COLLAPSE_RATE

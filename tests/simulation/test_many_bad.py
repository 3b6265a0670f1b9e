"""Several of ten instances fail every call: the cap on ejections, and panic."""

import pytest

from tests.simulation.many_bad import (
    DEFAULT,
    INSTANCES,
    NEVER,
    RATE,
    SETTLED,
    UNTIL,
    capped,
    run,
)


@pytest.mark.parametrize(("cap", "most"), [(0.0, 1), (0.1, 1), (0.3, 3), (0.5, 5), (1.0, 9)])
def test_never_more_are_ejected_than_the_cap_and_never_the_last(cap, most):
    """One always may be, and one always stays, whatever the cap; what may be ejected and is bad, is."""
    for bad in (most, most + 1, INSTANCES):
        assert run(capped(cap), bad, seed=1).most_ejected <= min(most, INSTANCES - 1)
    assert run(capped(cap), most, seed=2).most_ejected == most


@pytest.mark.parametrize("bad", range(6))
def test_up_to_half_are_taken_out_and_no_call_fails(bad):
    """With a cap of one half only the probes fail: one for each ejection that ended."""
    out = run(capped(0.5), bad, seed=1)
    # At most two ejections end within the 20 s that are measured, the second or third in a row, for
    # they last 9 s at least.
    assert out.failed <= 100 * bad * 2 / (0.9 * RATE * (UNTIL - SETTLED))
    # The others carry the rest alike: in turns, a tenth of all more for each that is out.
    assert out.busiest == pytest.approx(INSTANCES / (INSTANCES - bad), rel=0.1)


@pytest.mark.parametrize("bad", range(6, INSTANCES))
def test_beyond_half_nobody_is_buried(bad):
    """Panic: everybody is asked again, so that those that work get a tenth each, not all of it."""
    out = run(capped(1.0), bad, seed=1)
    assert out.busiest == pytest.approx(1.0, rel=0.1)
    assert out.failed == pytest.approx(10 * bad, rel=0.1)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("bad", [1, 4, 7])
def test_the_defaults_find_those_that_work(bad, seed):
    """Peak EWMA leaves what fails, and retries do the rest: fewer than one call in a hundred fails."""
    assert run(DEFAULT, bad, seed=seed).failed < 1.0
    assert run(NEVER, bad, seed=seed).failed == pytest.approx(10 * bad, rel=0.1)

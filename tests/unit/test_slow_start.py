"""What share of the calls an endpoint gets that is new or back, and what the others get for it."""

import pytest

from meshrpc.resilience.slow_start import LEAST, least_share, share


def test_the_share_grows_with_time():
    """From a tenth to all of it."""
    assert share(40.0, 10.0, 30.0) == LEAST
    assert share(40.0, 25.0, 30.0) == pytest.approx(0.5)
    assert share(40.0, 40.0, 30.0) == 1.0


def settled_load(active, ready, settled):
    """Return the calls of a settled endpoint, as a multiple of its share with everybody there."""
    warming = ready - settled
    given = warming * (1.0 - max(LEAST, least_share(active, ready, settled)))
    return (1.0 + given / settled) * active / ready


@pytest.mark.parametrize("active", range(2, 40))
def test_slow_start_overloads_nobody(active):
    """A third more than its share, or what one missing endpoint means, or what is so without it."""
    bearable = 1 + max(1 / 3, 1 / (active - 1))
    for ready in range(2, active + 1):
        for settled in range(1, ready):
            assert settled_load(active, ready, settled) <= max(bearable, active / ready) + 1e-9


@pytest.mark.parametrize("active", range(2, 40))
def test_one_that_is_new_is_held_back_as_far_as_ever(active):
    """The others had its calls a moment ago, when it was not there."""
    assert least_share(active, active, active - 1) <= LEAST


def test_with_nobody_else_there_is_no_slow_start():
    """Nor where everybody is settled."""
    assert least_share(4, 4, 0) == 1.0
    assert least_share(4, 4, 4) == 1.0
    assert least_share(1, 1, 1) == 1.0
    assert least_share(0, 0, 0) == 1.0

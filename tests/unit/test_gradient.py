"""How many handlers may run, by how much slower they have become."""

from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.limits.gradient import AT_LEAST, MIN_CALLS, WINDOW, Gradient


def window(gradient, now, in_flight, slowness, calls=MIN_CALLS):
    """Let a window pass with so many in flight; return when it ended."""
    gradient.note(now, in_flight)
    for _ in range(calls - 2):
        assert not gradient.note(now, in_flight)
    now += WINDOW
    assert gradient.note(now, in_flight)
    gradient.end_window(now, slowness)
    return now


def started(most=1000):
    gradient = Gradient(most)
    assert not gradient.note(0.0, 1)  # the first call only starts the first window
    return gradient


def test_a_limit_does_nothing_before_handlers_become_slow():
    """It starts at the top and stays there, whatever is in flight."""
    gradient, now = started(), 0.0
    for in_flight in (1, 50, 900):
        now = window(gradient, now, in_flight, 1.2)
        assert gradient.limit == 1000


def test_it_comes_down_from_what_is_in_flight():
    """Three times as slow as usual, with 200 in flight: half of them and a little, at once."""
    gradient = started()
    window(gradient, 0.0, 200, 3.0)
    assert gradient.limit == 104


def test_it_grows_again_when_it_is_used_and_handlers_are_quick():
    """From 20 to 500 within 16 windows, which are eight seconds."""
    gradient, now = started(), 0.0
    for _ in range(12):
        now = window(gradient, now, min(500, gradient.limit), 4.0)
    assert gradient.limit == AT_LEAST
    for _ in range(16):
        now = window(gradient, now, gradient.limit, 1.0)
    assert gradient.limit >= 500


def test_it_does_not_grow_while_it_is_not_used():
    """With less than half of it in flight nobody knows whether more would do."""
    gradient, now = started(), 0.0
    now = window(gradient, now, 200, 3.0)
    limit = gradient.limit
    for _ in range(5):
        now = window(gradient, now, limit // 2 - 1, 1.0)
    assert gradient.limit == limit


def test_few_calls_say_nothing():
    """Nine within a window, and nothing happens until the tenth."""
    gradient = started()
    for _ in range(MIN_CALLS - 1):
        assert not gradient.note(2 * WINDOW, 200)
    assert gradient.note(2 * WINDOW, 200)


def test_a_long_silence_starts_anew():
    """Ten calls in a minute are no window."""
    gradient = started()
    for at in range(1, 30):
        assert not gradient.note(at * 6.0, 1)


def test_the_upper_bound_can_be_moved():
    """A limit at the old bound goes to the new one, a lower one stays below it."""
    gradient = started(100)
    gradient.set_most(400)
    assert gradient.limit == 400
    window(gradient, 0.0, 300, 3.0)
    assert gradient.limit == 154
    gradient.set_most(50)
    assert gradient.limit == 50
    gradient.set_most(1000)
    assert gradient.limit == 1000


@settings(deadline=None)
@given(
    most=st.integers(1, 500),
    windows=st.lists(st.tuples(st.integers(0, 600), st.floats(0, 100)), max_size=30),
)
def test_the_limit_stays_within_its_bounds(most, windows):
    """Never above the policy's bound, and never below 20 unless that bound is."""
    gradient, now = started(most), 0.0
    for in_flight, slowness in windows:
        now = window(gradient, now, in_flight, slowness)
        assert min(AT_LEAST, most) <= gradient.limit <= most

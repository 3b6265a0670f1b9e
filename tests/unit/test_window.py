"""What a window counts, and when it forgets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrpc.resilience.window import Window


def test_what_is_added_is_counted():
    """Requests and successes are summed apart."""
    window = Window(10.0)
    window.add(1.0, 1, 1)
    window.add(1.0, 2, 0)
    window.add(4.5, 0, 1)
    assert window.counts(4.5) == (3, 2)


def test_an_empty_window_counts_nothing():
    """Whatever the time it is asked at first."""
    assert Window(10.0).counts(123_456.0) == (0, 0)


def test_a_part_is_forgotten_as_a_whole_when_the_window_has_left_it():
    """With parts of one second: second 0 counts until second 10 begins, second 1 one longer."""
    window = Window(10.0)
    window.add(0.0, 1, 1)
    window.add(0.9, 1, 0)
    window.add(1.0, 1, 0)
    assert window.counts(9.999) == (3, 1)
    assert window.counts(10.0) == (1, 0)
    assert window.counts(11.0) == (0, 0)


def test_a_jump_far_ahead_forgets_everything():
    """Nobody asked for a day: nothing of yesterday counts."""
    window = Window(3.0)
    window.add(5.0, 7, 3)
    assert window.counts(86_400.0) == (0, 0)
    window.add(86_400.0, 1, 1)
    assert window.counts(86_400.0) == (1, 1)


def test_a_jump_of_exactly_the_window_forgets_everything():
    """The ring comes round to the same place, which is cleared all the same."""
    window = Window(10.0)
    window.add(5.0, 7, 3)
    assert window.counts(15.0) == (0, 0)


def test_an_older_now_counts_as_the_newest():
    """Time does not go back: what comes late lasts as long as what came last."""
    window = Window(10.0)
    window.add(20.0, 1, 1)
    window.add(3.0, 1, 0)
    assert window.counts(3.0) == (2, 1)
    assert window.counts(29.9) == (2, 1)
    assert window.counts(30.0) == (0, 0)


def test_clear_forgets_everything_and_counts_on():
    """After it the window is as good as new."""
    window = Window(10.0)
    window.add(1.0, 3, 2)
    window.clear()
    assert window.counts(1.0) == (0, 0)
    window.add(1.5, 1, 1)
    assert window.counts(9.0) == (1, 1)
    assert window.counts(11.0) == (0, 0)


@pytest.mark.parametrize(("seconds", "buckets"), [(0.0, 10), (-1.0, 10), (1.0, 0)])
def test_a_window_of_nothing_is_refused(seconds, buckets):
    """The error names what is wrong."""
    with pytest.raises(ValueError, match="seconds above 0 and at least 1 bucket"):
        Window(seconds, buckets)


@given(
    width=st.sampled_from([0.25, 1.0, 2.0]),
    buckets=st.integers(1, 12),
    steps=st.lists(
        st.tuples(st.floats(0.0, 40.0), st.integers(0, 3), st.integers(0, 3)), max_size=40
    ),
)
def test_the_sums_are_those_of_the_parts_in_the_window(width, buckets, steps):
    """However time passes, what is kept along is what counting anew would give."""
    window, log, now = Window(width * buckets, buckets), [], 0.0
    for wait, requests, successes in steps:
        now += wait
        window.add(now, requests, successes)
        part = int(now // width)
        log.append((part, requests, successes))
        recent = [each for each in log if each[0] > part - buckets]
        assert window.counts(now) == (sum(r for _, r, _ in recent), sum(s for _, _, s in recent))

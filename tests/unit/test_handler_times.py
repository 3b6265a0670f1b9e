"""What is known of how long handlers take."""

import pytest

from meshrpc.limits.handler_times import (
    LATELY,
    LONGEST_NAME,
    MOMENT,
    MOST_METHODS,
    HandlerTimes,
)


def note(times, now=0.0, method="/a/A", seconds=0.01, *, count=10, answered=True):
    for _ in range(count):
        times.note(now, method, seconds, answered=answered)


def test_slowness_compares_each_method_with_itself():
    """A change of what is asked for is no change of speed."""
    times = HandlerTimes()
    note(times, method="/a/Quick", seconds=0.001, count=90)
    note(times, method="/a/Slow", seconds=0.1, count=10)
    times.end_window()
    note(times, method="/a/Quick", seconds=0.001, count=10)
    note(times, method="/a/Slow", seconds=0.1, count=90)
    assert times.end_window() == pytest.approx(1.0)
    note(times, method="/a/Slow", seconds=0.3)
    assert times.end_window() == pytest.approx(3.0)


def test_what_is_usual_does_not_follow_an_overload():
    """Ten windows of it at twice the time, after twenty quiet ones, change it by a few percent."""
    times = HandlerTimes()
    for _ in range(20):
        note(times, seconds=0.01)
        times.end_window()
    for _ in range(10):
        note(times, seconds=0.02)
        assert times.end_window() > 1.9


def test_what_is_usual_comes_down_where_it_was_learned_in_bad_times():
    """Within a minute (120 windows) from ten times what it takes now to about twice."""
    times = HandlerTimes()
    for _ in range(20):
        note(times, seconds=0.1)
        times.end_window()
    for _ in range(120):
        note(times, seconds=0.01)
        times.end_window()
    assert times.methods["/a/A"].usual < 0.021


def test_nothing_is_slow_before_anything_is_known():
    """No calls, and the first window, say 1."""
    times = HandlerTimes()
    assert times.end_window() == 1.0
    note(times)
    assert times.end_window() == pytest.approx(1.0)


def admitted(times, now, remaining, count, method="/a/A"):
    return sum(not times.is_too_late(now, method, remaining) for _ in range(count))


def test_a_call_without_the_time_that_even_quick_ones_take_is_too_late():
    """The quickest is what counts, and a call with just as much time is let through."""
    times = HandlerTimes()
    note(times, seconds=0.05)
    note(times, seconds=0.02, count=1)
    admitted(times, 1.0, 9.0, 100)
    assert times.is_too_late(1.0, "/a/A", 0.019)
    assert not times.is_too_late(1.0, "/a/A", 0.02)
    assert not times.is_too_late(1.0, "/a/Unknown", 0.001)


def test_at_most_a_fifth_of_the_calls_is_refused_for_its_deadline():
    """If what is known were wrong, the others would show it."""
    times = HandlerTimes()
    note(times, seconds=0.05)
    assert admitted(times, 1.0, 0.001, 1000) == 800


def test_what_is_known_of_the_quickest_fades():
    """After 20 s nobody knows; a slow deployment's times are not held against the next."""
    times = HandlerTimes()
    note(times, now=0.0, seconds=0.05)
    quickest = times.methods["/a/A"].quickest
    assert quickest(LATELY - 1) == 0.05
    note(times, now=LATELY, seconds=0.2)
    assert quickest(LATELY + 1) == 0.05
    note(times, now=2 * LATELY, seconds=0.2)
    assert quickest(2 * LATELY + 1) == 0.2
    assert quickest(4 * LATELY) == 0.0
    assert not times.is_too_late(4 * LATELY, "/a/A", 0.001)


def test_few_calls_and_failed_ones_do_not_say_what_is_quick():
    """Nine answers are too few, and an error is quick for another reason."""
    times = HandlerTimes()
    note(times, seconds=0.05, count=9)
    note(times, seconds=0.001, count=50, answered=False)
    assert times.methods["/a/A"].quickest(1.0) == 0.0
    note(times, seconds=0.05, count=1)
    assert times.methods["/a/A"].quickest(1.0) == 0.05


def test_a_call_that_did_not_have_to_wait_is_never_hopeless():
    """Else a method that was slow once would refuse for ever all that have less time than it took."""
    times = HandlerTimes()
    note(times, seconds=0.05)
    assert not times.is_hopeless("/a/A", 0.001, MOMENT - 0.001)
    assert times.is_hopeless("/a/A", 0.001, MOMENT)


def test_a_call_that_has_waited_is_begun_only_with_enough_time_left():
    """As much as is usual, and as much as it has waited already, up to a tenth of a second."""
    times = HandlerTimes()
    note(times, seconds=0.02)
    note(times, method="/a/Quick", seconds=0.005)
    assert times.is_hopeless("/a/Quick", 0.039, 0.2)
    assert not times.is_hopeless("/a/Quick", 0.041, 0.2)
    assert times.is_hopeless("/a/A", 0.019, 0.01)
    assert not times.is_hopeless("/a/A", 0.021, 0.01)
    assert times.is_hopeless("/a/A", 0.04, 0.06)
    assert times.is_hopeless("/a/A", 0.09, 1.0)
    assert not times.is_hopeless("/a/A", 0.11, 1.0)


def test_memory_is_bounded():
    """A proxy that answers to any name cannot fill it, nor with long ones."""
    times = HandlerTimes()
    for number in range(MOST_METHODS + 10):
        note(times, method=f"/a/{number}", count=1)
    note(times, method="/a/" + "x" * LONGEST_NAME, count=1)
    assert len(times.methods) == 10


def test_the_typical_time_follows_what_is_called():
    """It says how long a queue of such calls is worth waiting in."""
    times = HandlerTimes()
    note(times, method="/a/Quick", seconds=0.001, count=50)
    assert times.typical == pytest.approx(0.001)
    note(times, method="/a/Slow", seconds=0.1, count=100)
    assert times.typical == pytest.approx(0.1, rel=0.05)

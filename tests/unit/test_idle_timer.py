"""The timer of idle streams, on a loop whose timers come when the test says so."""

from meshrpc.client.idle_timer import IdleTimer
from meshrpc.clock import SystemClock


class Loop(SystemClock):
    """The clock, the loop and the destination of a timer; `due` is what the loop was asked for."""

    def __init__(self):
        self.time, self.due = 1000.0, None
        self.clock = self.loop = self

    def now(self):
        return self.time

    def call_later(self, seconds, call, *args, context):
        self.due = self.time + seconds, call, args

    def wake(self, late=0.0):
        """Call what is due, so many seconds too late."""
        at, call, args = self.due
        self.time, self.due = at + late, None
        call(*args)


class Stream:
    """One that may always be idle."""

    ended = False

    def may_idle(self):
        return True

    def on_idle(self):
        self.ended = True


def test_a_timer_that_comes_in_time_ends_the_stream():
    """Late by as little as a loop always is."""
    loop, stream = Loop(), Stream()
    timer = IdleTimer(1.0, loop, stream)
    timer.begin()
    loop.wake(late=0.01)
    assert stream.ended
    assert loop.due is None


def test_a_loop_that_stood_still_sees_first_what_has_come_meanwhile():
    """The messages wait beside the timer; only if there are none, the stream was idle."""
    loop, stream = Loop(), Stream()
    timer = IdleTimer(1.0, loop, stream)
    timer.begin()
    loop.wake(late=30.0)
    assert not stream.ended
    timer.passed()
    loop.wake()
    assert not stream.ended
    loop.wake(late=30.0)
    assert not stream.ended
    loop.wake()
    assert stream.ended

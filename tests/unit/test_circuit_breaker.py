"""The bound on the calls that one process has under way to one service."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshrpc.policy import model
from meshrpc.resilience.circuit_breaker import CircuitBreaker


def breaker_of(limit: int) -> CircuitBreaker:
    return CircuitBreaker(model.CircuitBreaker(max_requests=limit))


def test_the_limit_is_the_last_call_that_passes():
    """Three pass where three may, and the fourth does not, however often it asks."""
    breaker = breaker_of(3)
    assert [breaker.acquire() for _ in range(6)] == [True] * 3 + [False] * 3
    assert breaker.in_flight == 3


def test_a_call_that_ends_makes_room_for_one():
    """One released, one acquired, and no more."""
    breaker = breaker_of(2)
    assert breaker.acquire()
    assert breaker.acquire()
    breaker.release()
    assert breaker.acquire()
    assert not breaker.acquire()


def test_a_lower_limit_waits_for_what_is_under_way():
    """Calls beyond a new limit go on; the next one starts when fewer than it are left."""
    breaker = breaker_of(4)
    assert all(breaker.acquire() for _ in range(4))
    breaker.configure(model.CircuitBreaker(max_requests=2))
    breaker.release()
    breaker.release()
    assert not breaker.acquire()
    breaker.release()
    assert breaker.acquire()
    breaker.configure(model.CircuitBreaker(max_requests=3))
    assert breaker.acquire()
    assert not breaker.acquire()


def test_counting_a_call_out_twice_is_an_error():
    """The count never goes below nothing: that would raise the limit for good."""
    breaker = breaker_of(1)
    assert breaker.acquire()
    breaker.release()
    with pytest.raises(RuntimeError, match="counted out twice"):
        breaker.release()
    assert breaker.in_flight == 0


def test_by_default_a_thousand_calls_may_be_under_way():
    """1024, as with Envoy."""
    breaker = CircuitBreaker(model.CircuitBreaker())
    assert sum(breaker.acquire() for _ in range(2000)) == 1024


def test_its_repr_is_a_status_line():
    """It says how many calls are under way, and how many may be."""
    breaker = breaker_of(8)
    assert breaker.acquire()
    assert repr(breaker) == "<CircuitBreaker 1 of 8>"


class BreakerModel(RuleBasedStateMachine):
    """Whatever the order of events, it is a list of calls that has a greatest length."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 3
        self.breaker = breaker_of(self.limit)
        self.calls: list[object] = []

    @rule()
    def begin(self):
        may = len(self.calls) < self.limit
        assert self.breaker.acquire() is may
        if may:
            self.calls.append(object())
            assert self.breaker.in_flight <= self.limit

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def end(self, data):
        self.calls.remove(data.draw(st.sampled_from(self.calls)))
        self.breaker.release()

    @rule(limit=st.integers(1, 5))
    def configure(self, limit):
        self.limit = limit
        self.breaker.configure(model.CircuitBreaker(max_requests=limit))

    @rule()
    def quiesce(self):
        for _ in range(len(self.calls)):
            self.breaker.release()
        self.calls.clear()
        assert self.breaker.in_flight == 0

    @invariant()
    def it_counts_what_is_under_way(self):
        assert self.breaker.in_flight == len(self.calls)


BreakerModel.TestCase.settings = settings(max_examples=60, deadline=None, derandomize=True)
TestBreakerModel = BreakerModel.TestCase

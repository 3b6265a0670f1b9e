"""The throttle beside plain sums of everything that happened, in any order of events."""

import math
import random
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshrpc.policy import model
from meshrpc.resilience.throttle import MIN_CALLS, PROBE_EVERY, Throttle

PARTS = 10
"""The window moves on by a tenth of its length at a time."""

RECOVERS_WITHIN = 5
"""Windows until nothing is refused any more when everything is accepted at 100 calls a second."""

policies = st.builds(
    model.Throttle,
    multiplier=st.sampled_from([1.5, 2.0, 3.0]),
    window=st.sampled_from([1.0, 1.5, 4.0]),
    max_rejected=st.sampled_from([0.0, 0.5, 0.8, 0.9]),
)


class Roll(random.Random):
    """A die that shows what it was told to, or is left to chance."""

    shows: float | None = None

    def random(self) -> float:
        return super().random() if self.shows is None else self.shows


class ThrottleModel(RuleBasedStateMachine):
    """It counts per part of the window, and adds them up each time."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = model.Throttle(window=1.5)
        self.roll = Roll(1)
        self.throttle = Throttle(self.policy, self.roll)
        self.now = 1000.0
        self.let_out_at = -math.inf
        self.under_way = 0
        self.requests: Counter[int] = Counter()
        self.accepts: Counter[int] = Counter()

    def part(self) -> int:
        return math.floor(self.now / (self.policy.window / PARTS))

    def count(self, accepted: bool) -> None:
        self.requests[self.part()] += 1
        self.accepts[self.part()] += accepted

    def lately(self) -> tuple[int, int]:
        newest = self.part()
        parts = range(newest - PARTS + 1, newest + 1)
        return sum(self.requests[part] for part in parts), sum(self.accepts[part] for part in parts)

    def probability(self) -> float:
        requests, accepts = self.lately()
        if requests < MIN_CALLS or self.policy.multiplier * accepts >= requests:
            return 0.0
        excess = (requests - self.policy.multiplier * accepts) / (requests + 1)
        return min(excess, self.policy.max_rejected)

    def ask(self) -> bool:
        requests, accepts = self.lately()
        admitted = self.throttle.admit(self.now)
        if admitted:
            self.let_out_at = self.now
            self.under_way += 1
        else:
            self.count(accepted=False)
            assert self.lately() == (requests + 1, accepts), "a refusal is an unaccepted request"
        return admitted

    @rule(shows=st.floats(0, 1, exclude_max=True), calls=st.integers(1, 30))
    def call(self, shows, calls):
        self.roll.shows = shows
        for _ in range(calls):
            idle = self.now - self.let_out_at
            refused = idle < PROBE_EVERY and shows < self.probability()
            assert self.ask() is not refused

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), accepted=st.booleans())
    def answer(self, data, accepted):
        for _ in range(data.draw(st.integers(1, self.under_way))):
            (self.throttle.accepted if accepted else self.throttle.failed)(self.now)
            self.count(accepted)
            self.under_way -= 1

    @precondition(lambda self: self.under_way)
    @rule()
    def abandon(self):
        before = self.throttle.rejection_probability(self.now)
        self.under_way = 0  # nobody tells the throttle
        assert self.throttle.rejection_probability(self.now) == before

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.2, 0.7, PROBE_EVERY, 3.0, 86_400.0]))
    def advance(self, seconds):
        self.now += seconds

    @rule(policy=policies)
    def configure(self, policy):
        if policy.window != self.policy.window:
            requests, accepts = self.lately()
            self.policy = policy
            self.requests = Counter({self.part(): requests})
            self.accepts = Counter({self.part(): accepts})
        self.policy = policy
        self.throttle.configure(policy, self.now)

    @rule()
    def everything_fails(self):
        """The worst die there is refuses all it may for five seconds, and probes still flow."""
        self.roll.shows = 0.0
        last = self.now
        until = self.now + 5
        while self.now < until:
            if self.ask():
                assert self.now - last <= PROBE_EVERY + 0.0201
                last = self.now
                self.throttle.failed(self.now)
                self.count(accepted=False)
                self.under_way -= 1
            self.now += 0.02

    @rule()
    def everything_is_accepted(self):
        """Whatever came before, the calls are all let out after a bounded time."""
        self.roll.shows = None
        until = self.now + RECOVERS_WITHIN * self.policy.window
        while self.now < until:
            if self.ask():
                self.throttle.accepted(self.now)
                self.count(accepted=True)
                self.under_way -= 1
            self.now += 0.01
            if not self.probability():
                break
        assert self.throttle.rejection_probability(self.now) == 0.0

    @invariant()
    def it_refuses_as_the_formula_says(self):
        probability = self.throttle.rejection_probability(self.now)
        assert 0.0 <= probability <= self.policy.max_rejected < 1.0
        assert abs(probability - self.probability()) < 1e-12
        requests, accepts = self.lately()
        if self.policy.multiplier * accepts >= requests:
            assert probability == 0.0


ThrottleModel.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
TestThrottleModel = ThrottleModel.TestCase

"""A state machine over hedging: any calls, latencies, pauses and policies, in any order."""

import math
from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meshrpc.policy.model import EffectivePolicy, Hedge, Retry
from meshrpc.policy.table import PolicyTable
from meshrpc.resilience.hedge import MIN_DELAY, Hedging
from meshrpc.resilience.percentile import ERROR, HALF, MIN_SAMPLES, REFRESH
from meshrpc.resilience.retry_budget import SAVED
from services.payment.v1 import payment_pb2  # noqa: F401 - its descriptors say what is idempotent

ROUNDING = 1e-9

policies = st.builds(
    Hedge,
    percentile=st.sampled_from([0.01, 0.5, 0.9, 0.95, 0.99]),
    max_extra=st.sampled_from([0.0, 0.01, 0.05, 0.1, 1 / 3, 1.0]),
)
# Eighths of a second, which floats hold exactly: the halves of the reference end when the real ones do.
pauses = st.integers(0, 8 * 40).map(lambda eighths: eighths / 8)
METHODS = (
    ("payment.v1.PaymentService/GetPayment", True),
    ("grpc.health.v1.Health/Check", False),
    ("nobody.Knows/This", False),
)
names = st.sampled_from([name for name, _ in METHODS])
latencies = st.floats(0.0, 100.0)


class HedgingMachine(RuleBasedStateMachine):
    """Hedging beside its definition: exact percentiles of a list, and tokens in fractions."""

    @initialize(policy=policies)
    def start(self, policy):
        self.now = 0.0
        self.policy = policy
        self.hedging = Hedging(policy, self.now)
        self.slower = Hedging(policy, self.now)
        self.seen: list[tuple[float, float]] = []
        self.tokens = Fraction(0)
        self.allowed = Fraction(0)
        self.sent = 0

    def count(self):
        ratio = Fraction(self.policy.max_extra)
        self.allowed += ratio
        self.tokens = min(Fraction(SAVED), self.tokens + ratio)

    def known(self):
        """The latencies of the half that now is, and of the one before it."""
        half = math.floor(self.now / HALF)
        return sorted(latency for at, latency in self.seen if math.floor(at / HALF) >= half - 1)

    @rule(pause=pauses)
    def wait(self, pause):
        self.now += pause

    @rule(answers=st.lists(st.tuples(latencies, st.floats(0, 100)), max_size=MIN_SAMPLES))
    def answers_come(self, answers):
        for latency, more in answers:
            self.hedging.observe(latency, self.now)
            self.slower.observe(latency + more, self.now)
            self.seen.append((self.now, latency))

    @rule(calls=st.integers(1, 30))
    def calls_begin(self, calls):
        """The delay is the percentile's, and no shorter where everything is slower."""
        self.now += REFRESH  # what was worked out before is no longer used
        known = self.known()
        for _ in range(calls):
            self.count()
            delay, delay_of_slower = self.hedging.begin(self.now), self.slower.begin(self.now)
            if len(known) < MIN_SAMPLES:
                assert delay is None
                assert delay_of_slower is None
                continue
            true = known[math.ceil(self.policy.percentile * len(known)) - 1]
            assert max(true - ROUNDING, MIN_DELAY) <= delay
            assert delay <= max(MIN_DELAY, true * (1 + ERROR) + ROUNDING)
            assert delay <= delay_of_slower

    @rule()
    def hedge_is_due(self):
        """It is sent if, and only if, there is a token."""
        granted = self.hedging.grant(self.now)
        if abs(self.tokens - 1) > ROUNDING:
            assert granted is (self.tokens > 1)
        if granted:
            self.sent += 1
            self.tokens -= 1

    @rule(policy=policies | st.none(), method=st.sampled_from(METHODS), listed=st.sets(names))
    def call_is_made(self, policy, method, listed):
        """It has a hedge to wait for only if executing it twice is as good as once."""
        name, declared = method
        retry = Retry(non_idempotent=frozenset(listed))
        compiled = (
            PolicyTable(EffectivePolicy("x", retry=retry, hedge=policy)).method(f"/{name}").fixed
        )
        assert compiled.hedge is (policy if declared or name in listed else None)

    @rule(policy=policies)
    def policy_changes(self, policy):
        self.policy = policy
        self.hedging.configure(policy, self.now)
        self.slower.configure(policy, self.now)

    @invariant()
    def hedges_are_within_the_budget(self):
        assert self.sent <= self.allowed + Fraction(ROUNDING)


TestHedging = HedgingMachine.TestCase
TestHedging.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

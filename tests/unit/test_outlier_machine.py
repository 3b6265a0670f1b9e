"""Outlier detection against a plain model, whatever happens in whatever order.

The model keeps every outcome and looks through all of them; it knows nothing of windows, slots or
steps taken back lazily. Beside it stand the promises that must hold at every moment.
"""

import random
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshrpc.policy.model import Outlier
from meshrpc.resilience.health import Admission, Health
from meshrpc.resilience.outcome import Outcome
from meshrpc.resilience.outlier import OutlierDetector

ADMITTED, EJECTED = Admission.ADMITTED, Admission.EJECTED
PROBATION, PROBING = Admission.PROBATION, Admission.PROBING

POLICIES = st.builds(
    Outlier,
    consecutive_failures=st.sampled_from([1, 2, 3, 5, 1000]),
    success_rate_below=st.sampled_from([0.0, 0.5, 0.8]),
    base_ejection=st.sampled_from([2.0, 5.0]),
    max_ejection=st.sampled_from([1.0, 12.0, 300.0]),
    max_ejected=st.sampled_from([0.0, 0.1, 0.34, 0.5, 1.0]),
)
QUARTERS = st.integers(0, 80).map(lambda quarters: quarters / 4)
PICK = st.integers(0, 10_000)
ENDPOINT = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7])
"""Some fail more often than others, so that much happens to one."""
MOST_ENDPOINTS = 8
BURST = 6
"""With at most 50 steps: too few outcomes for five endpoints to be compared with each other."""


@dataclass(eq=False)
class Endpoint:
    """The model of one endpoint, and the real thing beside it."""

    health: Health = field(default_factory=Health)
    admission: Admission = ADMITTED
    generation: int = 0
    by_ejection: bool = False
    outcomes: list = field(default_factory=list)
    """(second, whether it succeeded), since it was admitted."""
    answered: int = 0
    """How many outcomes there were when it last answered with a mistake of the caller's."""
    steps: int = 0
    """Of the last ejection's length, less what was taken back by the last failure."""
    clean_since: float = 0.0
    ends: float | None = None
    """When its ejection, or the patience with its probe, is over."""

    def row(self):
        succeeded = [at for at, (_, success) in enumerate(self.outcomes) if success]
        broken = max(succeeded[-1] + 1 if succeeded else 0, self.answered)
        return max(0, len(self.outcomes) - broken)

    def is_bad(self, policy, now):
        return self.row() >= policy.consecutive_failures or not self.does_well(policy, now)

    def does_well(self, policy, now):
        recent = [ok for second, ok in self.outcomes if second > int(now) - 10]
        return len(recent) < 5 or sum(recent) >= policy.success_rate_below * len(recent)

    def take_steps_back(self, now):
        self.steps = max(0, self.steps - int((now - self.clean_since) // 10))


@dataclass(eq=False)
class Attempt:
    endpoint: Endpoint
    generation: int
    is_probe: bool


class OutlierMachine(RuleBasedStateMachine):
    @initialize(policy=POLICIES, seed=st.integers(0, 99), count=st.integers(1, 5))
    def begin(self, policy, seed, count):
        self.policy = policy
        self.outliers = OutlierDetector(policy, random.Random(seed))
        self.now = 0.0
        self.asked_until, self.well = 0.0, set()
        self.members, self.gone, self.attempts = [], [], []
        self.bereft = False  # by removal, nobody is left who is admitted
        self.ejected_before = 0
        for _ in range(count):
            self.add_one()

    def cap(self):
        return max(1, int(self.policy.max_ejected * len(self.members) + 1e-9))

    def admitted(self):
        return [each for each in self.members if each.admission is ADMITTED]

    def ejected(self):
        return [each for each in self.members if each.by_ejection]

    def others_admitted(self, endpoint):
        return any(each is not endpoint for each in self.admitted())

    def others_do_well(self, endpoint):
        if self.now >= self.asked_until:
            self.asked_until = self.now + 1.0
            self.well = {each for each in self.admitted() if each.does_well(self.policy, self.now)}
        others = sum(each is not endpoint for each in self.admitted())
        return 2 * len(self.well - {endpoint}) >= others

    # What the model expects.

    def expect_ejection(self, endpoint):
        """Take over the real ejection's end, once it is seen to be within its bounds."""
        base = self.policy.base_ejection
        longest = max(base, self.policy.max_ejection)
        if base * endpoint.steps < longest:
            endpoint.steps += 1
        endpoint.admission = EJECTED
        endpoint.generation += 1
        endpoint.by_ejection = True
        endpoint.ends = endpoint.health.ejected_until
        whole = min(base * endpoint.steps, longest)
        assert whole - 0.2 * base - 1e-6 <= endpoint.ends - self.now <= whole + 1e-6

    def expect(self, endpoint, generation, outcome):
        """Do to the model what `record` did; return whether its admission changed."""
        if generation != endpoint.generation or endpoint not in self.members:
            return False
        if endpoint.admission is ADMITTED:
            if outcome is Outcome.IGNORED:
                endpoint.answered = len(endpoint.outcomes)
            if outcome not in (Outcome.SUCCESS, Outcome.FAILURE):
                return False
            endpoint.outcomes.append((int(self.now), outcome is Outcome.SUCCESS))
            if outcome is Outcome.SUCCESS:
                return False
            endpoint.take_steps_back(self.now)
            endpoint.clean_since = self.now
            if (
                not endpoint.is_bad(self.policy, self.now)
                or not self.others_do_well(endpoint)
                or not self.others_admitted(endpoint)
                or len(self.ejected()) >= self.cap()
            ):
                return False
            self.expect_ejection(endpoint)
            return True
        if endpoint.admission is not PROBING:
            return False
        if outcome in (Outcome.UNREACHED, Outcome.ABANDONED):
            endpoint.admission = PROBATION
            endpoint.ends = None
        elif (
            outcome is Outcome.FAILURE
            and self.others_do_well(endpoint)
            and self.others_admitted(endpoint)
            and (endpoint.by_ejection or len(self.ejected()) < self.cap())
        ):
            self.expect_ejection(endpoint)
        else:
            endpoint.admission = ADMITTED
            endpoint.generation += 1
            endpoint.by_ejection = False
            endpoint.outcomes.clear()
            endpoint.answered = 0
            endpoint.clean_since = self.now
            endpoint.ends = None
        return True

    def record(self, endpoint, generation, outcome):
        changed = self.outliers.record(endpoint.health, generation, outcome, self.now)
        assert changed is self.expect(endpoint, generation, outcome)

    # What happens.

    @precondition(lambda self: len(self.members) + len(self.gone) < MOST_ENDPOINTS)
    @rule()
    def add_one(self):
        endpoint = Endpoint()
        self.members.append(endpoint)
        self.outliers.add(endpoint.health)

    @precondition(lambda self: self.members)
    @rule(which=ENDPOINT)
    def remove_one(self, which):
        endpoint = self.members.pop(which % len(self.members))
        self.gone.append(endpoint)
        self.outliers.remove(endpoint.health)
        endpoint.generation += 1
        self.bereft = not self.admitted()
        self.ejected_before = len(self.ejected())

    @precondition(lambda self: self.gone)
    @rule(which=ENDPOINT)
    def add_one_again(self, which):
        endpoint = self.gone.pop(which % len(self.gone))
        self.members.append(endpoint)
        self.outliers.add(endpoint.health)
        self.ejected_before = len(self.ejected())
        self.bereft = not self.admitted()

    @precondition(lambda self: self.members)
    @rule(which=ENDPOINT)
    def begin_attempt(self, which):
        """To any endpoint: in a panic also those that are ejected get calls."""
        endpoint = self.members[which % len(self.members)]
        probes = endpoint.admission is PROBATION
        if probes:
            self.outliers.begin_probe(endpoint.health, self.now)
            endpoint.admission = PROBING
            endpoint.generation += 1
            endpoint.ends = self.now + 10.0
        self.attempts.append(Attempt(endpoint, endpoint.generation, probes))

    @precondition(lambda self: self.attempts)
    @rule(which=PICK, outcome=st.sampled_from(Outcome))
    def end_attempt(self, which, outcome):
        """Any attempt under way, however old."""
        attempt = self.attempts.pop(which % len(self.attempts))
        self.record(attempt.endpoint, attempt.generation, outcome)

    @precondition(lambda self: self.members)
    @rule(which=ENDPOINT, outcomes=st.lists(st.sampled_from(Outcome), min_size=1, max_size=BURST))
    def attempt_and_end(self, which, outcomes):
        """Attempts that begin and end now, at one endpoint."""
        endpoint = self.members[which % len(self.members)]
        for outcome in outcomes:
            self.record(endpoint, endpoint.generation, outcome)

    @rule(which=ENDPOINT, times=st.integers(1, BURST), gone=st.booleans())
    def fail(self, which, times, gone):
        """Those that were removed may fail as well; it is nobody's business any more."""
        among = self.gone if gone and self.gone else self.members
        for _ in range(times if among else 0):
            endpoint = among[which % len(among)]
            self.record(endpoint, endpoint.generation, Outcome.FAILURE)

    @precondition(lambda self: self.members)
    @rule(which=ENDPOINT, outcome=st.sampled_from(Outcome))
    def serve_and_probe(self, which, outcome):
        """Time passes until an ejected endpoint is probed, and the probe ends."""
        endpoint = self.members[which % len(self.members)]
        if endpoint.admission is EJECTED:
            self.now = max(self.now, endpoint.ends)
            self.advance()
        if endpoint.admission is PROBATION:
            self.begin_attempt(self.members.index(endpoint))
            attempt = self.attempts.pop()
            self.record(attempt.endpoint, attempt.generation, outcome)

    @rule(seconds=QUARTERS, advances=st.booleans())
    def pass_time(self, seconds, advances):
        self.now += seconds
        if advances:
            self.advance()

    @rule()
    def advance(self):
        over = [each for each in self.members if each.ends is not None and self.now >= each.ends]
        assert self.outliers.advance(self.now) is bool(over)
        for endpoint in over:
            assert endpoint.admission in (EJECTED, PROBING)
            endpoint.admission = PROBATION
            endpoint.ends = None

    @precondition(lambda self: self.members)
    @rule(which=ENDPOINT)
    def reconnect(self, which):
        endpoint = self.members[which % len(self.members)]
        changes = bool(
            endpoint.admission is ADMITTED and endpoint.row() and self.others_admitted(endpoint)
        )
        assert self.outliers.on_reconnected(endpoint.health, self.now) is changes
        if changes:
            endpoint.take_steps_back(self.now)
            endpoint.admission = PROBATION

    @rule(policy=POLICIES)
    def configure(self, policy):
        self.policy = policy
        self.outliers.configure(policy, self.now)
        latest = self.now + max(policy.base_ejection, policy.max_ejection)
        for endpoint in self.members:
            if endpoint.admission is EJECTED:
                endpoint.ends = min(endpoint.ends, latest)

    # What must hold at every moment.

    @invariant()
    def is_as_the_model_says(self):
        for endpoint in self.members + self.gone:
            health = endpoint.health
            assert health.admission is endpoint.admission
            assert health.generation == endpoint.generation
            assert health.multiplier == endpoint.steps >= 0
            assert (health.ejected_until is not None) is (health.admission is EJECTED)
            assert (health.cause == "") is (health.admission is ADMITTED)
            if health.admission is ADMITTED:
                assert health.consecutive == endpoint.row()

    @invariant()
    def no_more_are_ejected_than_may_be(self):
        """Fewer endpoints or a lower cap may leave too many; then no more are added to them."""
        ejected = len(self.ejected())
        assert ejected <= max(self.cap(), self.ejected_before)
        self.ejected_before = ejected

    @invariant()
    def one_is_admitted(self):
        """Unless it was taken away by others."""
        if self.admitted():
            self.bereft = False
        assert self.admitted() or self.bereft or not self.members

    @invariant()
    def one_probe_at_most_counts_at_each_endpoint(self):
        for endpoint in self.members:
            counting = [
                each
                for each in self.attempts
                if each.endpoint is endpoint
                and each.is_probe
                and each.generation == endpoint.health.generation
            ]
            assert len(counting) <= 1

    @invariant()
    def the_next_change_is_known(self):
        ends = [each.ends for each in self.members if each.ends is not None]
        assert self.outliers.next_change() == min(ends, default=None)

    def teardown(self):
        """As time advances every ejection ends in probation, and answered probes in admission."""
        if not hasattr(self, "outliers"):
            return
        while (at := self.outliers.next_change()) is not None:
            self.now = max(self.now, at)
            assert self.outliers.advance(self.now)
        for endpoint in self.members:
            assert endpoint.health.admission in (ADMITTED, PROBATION)
            if endpoint.health.admission is PROBATION:
                self.outliers.begin_probe(endpoint.health, self.now)
                assert self.outliers.record(
                    endpoint.health, endpoint.health.generation, Outcome.SUCCESS, self.now
                )
            assert endpoint.health.admission is ADMITTED


OutlierMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, derandomize=True
)
TestOutlierMachine = OutlierMachine.TestCase

"""Outlier detection: which endpoints get no calls for a while, and how they come back.

Judged at each failure, not on a sweep: by failures in a row (Envoy), by the success rate of the
last seconds against a floor (Linkerd) and against the other endpoints (gRFC A50); but only while
most others do well. Ejections are capped, never take the last endpoint, grow while it flaps, and
end with one real call as a probe (Linkerd). A result counts only towards the generation it began
in, so that a late answer from before an ejection changes nothing. Who sends the probe and what
panicking means is the caller's.
"""

from __future__ import annotations

import math
import random

from meshrpc.policy import model
from meshrpc.resilience import ejection
from meshrpc.resilience.health import WINDOW, Admission, Health
from meshrpc.resilience.outcome import Outcome
from meshrpc.resilience.success_rates import EVERY, FEWEST_COMPARED, Comparison

FEWEST_OUTCOMES = 5
"""A success rate of fewer says nothing."""

PROBE_WITHIN = 10.0
"""Seconds after which a probe that has not ended is given up, and another one offered."""


# Read at every attempt's end; a global is found faster than a member of an enum.
_ADMITTED = Admission.ADMITTED
_SUCCESS = Outcome.SUCCESS


class OutlierDetector:
    """Admits and ejects the endpoints of one destination."""

    __slots__ = (
        "_asked_until",
        "_away",
        "_comparison",
        "_members",
        "_policy",
        "_rng",
        "_working",
    )

    def __init__(self, policy: model.Outlier, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._members: set[Health] = set()
        self._away: set[Health] = set()  # the members that are not admitted
        self._comparison = Comparison()
        self._working: frozenset[Health] = frozenset()
        self._asked_until = -math.inf

    def configure(self, policy: model.Outlier, now: float) -> None:
        """Change the rules. Who is ejected stays so, but no longer than the new longest time."""
        self._policy = policy
        latest = now + ejection.longest(policy)
        for health in self._away:
            if health.ejected_until is not None:
                health.ejected_until = min(health.ejected_until, latest)

    def add(self, health: Health) -> None:
        """Take in an endpoint, as it is: one that was ejected when it left still is."""
        self._members.add(health)
        if health.admission is not Admission.ADMITTED:
            self._away.add(health)

    def remove(self, health: Health) -> None:
        """Let an endpoint go; what its attempts still bring changes nothing any more."""
        self._members.discard(health)
        self._away.discard(health)
        health.generation += 1

    def record(self, health: Health, generation: int, outcome: Outcome, now: float) -> bool:
        """Take in the end of an attempt that began at `generation`.

        Returns:
            Whether the endpoint's admission changed.
        """
        if generation != health.generation:
            return False
        if health.admission is _ADMITTED:
            if outcome is _SUCCESS:
                health.consecutive = 0
                health.window.add(now, 1, 1)
                return False
            if outcome is Outcome.IGNORED:
                health.consecutive = 0  # it answers: failures among many NOT_FOUND are no row
                return False
            return outcome is Outcome.FAILURE and self._count_failure(health, now)
        return health.admission is Admission.PROBING and self._end_probe(health, outcome, now)

    def on_reconnected(self, health: Health, now: float) -> bool:
        """Take in that the endpoint's connection was lost and is there again.

        With failures unanswered it comes back by a probe, like one that was ejected.

        Returns:
            Whether the endpoint's admission changed.
        """
        if (
            health not in self._members
            or health.admission is not Admission.ADMITTED
            or health.consecutive == 0
            or not self._others_admitted(health)
        ):
            return False
        self._step_back(health, now)
        self._away.add(health)
        health.admission = Admission.PROBATION
        health.cause = f"connected again after {_failures(health.consecutive)}"
        return True

    def advance(self, now: float) -> bool:
        """End the ejections whose time is over, and give up probes that do not end.

        Returns:
            Whether any endpoint's admission changed.
        """
        changed = False
        for health in self._away:
            until = _changes_at(health)
            if until is not None and now >= until:
                _offer_probe(health)
                changed = True
        return changed

    def next_change(self) -> float | None:
        """Return when `advance` would next change something."""
        times = [until for health in self._away if (until := _changes_at(health)) is not None]
        return min(times, default=None)

    def begin_probe(self, health: Health, now: float) -> None:
        """Take in that a call that starts now is the endpoint's probe.

        Raises:
            ValueError: The endpoint is not in probation.
        """
        if health.admission is not Admission.PROBATION:
            raise ValueError(f"{health} cannot be probed: it is not in probation")
        health.generation += 1
        health.admission = Admission.PROBING
        health.probe_until = now + PROBE_WITHIN

    @staticmethod
    def is_panicking(ready_and_admitted: int, active: int) -> bool:
        """Return whether so few are left that ejections are to be ignored: fewer than half."""
        return 2 * ready_and_admitted < active

    def _count_failure(self, health: Health, now: float) -> bool:
        if health not in self._members:
            return False
        self._step_back(health, now)
        health.clean_since = now
        health.consecutive += 1
        health.window.add(now, 1, 0)
        cause = self._find_cause(health, now)
        if cause is None or not self._others_work(health, now) or not self._may_eject(health):
            return False
        self._eject(health, cause, now)
        return True

    def _end_probe(self, health: Health, outcome: Outcome, now: float) -> bool:
        if health not in self._members:
            return False
        if outcome is Outcome.UNREACHED or outcome is Outcome.ABANDONED:
            _offer_probe(health)
        elif (
            outcome is Outcome.FAILURE
            and self._others_work(health, now)
            and self._may_eject(health)
        ):
            self._eject(health, "its probe failed", now)
        else:
            # Also with a failure, where the others do no better or nobody more may be missed. Were
            # it probed again and again instead, every call would begin at the one that fails.
            self._readmit(health, now)
        return True

    def _find_cause(self, health: Health, now: float) -> str | None:
        """Say why the endpoint is to be ejected, if it is."""
        if health.consecutive >= self._policy.consecutive_failures:
            return f"{_failures(health.consecutive)} in a row"
        requests, successes = health.window.counts(now)
        if requests < FEWEST_OUTCOMES:
            return None
        rate = successes / requests
        if rate < self._policy.success_rate_below:
            return (
                f"success rate {_percent(rate)} below {_percent(self._policy.success_rate_below)}"
            )
        if requests >= FEWEST_COMPARED:
            admitted = (each.window.counts(now) for each in self._members if each not in self._away)
            limit = self._comparison.far_below(admitted, now)
            if limit is not None and rate < limit:
                return f"success rate {_percent(rate)} far below that of the others"
        return None

    def _others_work(self, health: Health, now: float) -> bool:
        """Return whether at least half of the others do well: what all do alike is no outlier.

        Without this, an overload would last. Who is overloaded fails, is ejected, and leaves its
        calls to the others, which are overloaded the more (tests/simulation/total_failure.py).
        """
        if now >= self._asked_until:
            self._asked_until = now + EVERY
            admitted = self._members - self._away
            self._working = frozenset(each for each in admitted if self._works(each, now))
        others = len(self._members) - len(self._away) - (health.admission is _ADMITTED)
        return 2 * (len(self._working) - (health in self._working)) >= others

    def _works(self, health: Health, now: float) -> bool:
        requests, successes = health.window.counts(now)
        return requests < FEWEST_OUTCOMES or successes >= self._policy.success_rate_below * requests

    def _may_eject(self, health: Health) -> bool:
        if not self._others_admitted(health):
            return False
        if health.holds_slot:  # ejected again: that takes nobody else away
            return True
        taken = sum(other.holds_slot for other in self._away)
        return taken < ejection.most(self._policy, len(self._members))

    def _others_admitted(self, health: Health) -> bool:
        admitted = len(self._members) - len(self._away)
        return admitted > (health.admission is Admission.ADMITTED)

    def _eject(self, health: Health, cause: str, now: float) -> None:
        self._away.add(health)
        health.generation += 1
        health.admission = Admission.EJECTED
        health.holds_slot = True
        health.cause = cause
        health.multiplier = ejection.next_multiplier(self._policy, health.multiplier)
        health.ejected_until = now + ejection.duration(self._policy, health.multiplier, self._rng)
        health.probe_until = None

    def _readmit(self, health: Health, now: float) -> None:
        self._away.discard(health)
        health.generation += 1
        health.admission = Admission.ADMITTED
        health.holds_slot = False
        health.cause = ""
        health.probe_until = None
        health.consecutive = 0
        health.window.clear()
        health.clean_since = now

    def _step_back(self, health: Health, now: float) -> None:
        """Take back one step of the next ejection's length for each clean interval until now."""
        if health.multiplier:
            clean = int((now - health.clean_since) / WINDOW)
            if clean > 0:
                health.multiplier = max(0, health.multiplier - clean)
                health.clean_since += clean * WINDOW

    def __repr__(self) -> str:
        return f"<OutlierDetector {len(self._away)} of {len(self._members)} away>"


def _offer_probe(health: Health) -> None:
    health.admission = Admission.PROBATION
    health.ejected_until = None
    health.probe_until = None


def _changes_at(health: Health) -> float | None:
    return health.probe_until if health.ejected_until is None else health.ejected_until


def _failures(count: int) -> str:
    return "1 failure" if count == 1 else f"{count} failures"


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"

"""A client as `meshrpc.client` is one, under virtual time instead of asyncio.

What decides is the real thing: the balancer, `Choices` with its probes, panic rule and slow start,
outlier detection, throttle, circuit breaker, retries and their budget. What is simulated is what
carries it out: connections, timers and the way there and back. The steps of a call are those
of `client/destination.py` and `client/logical_call.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc

from meshrpc.client.admission_control import AdmissionControl
from meshrpc.client.aim import ANYWHERE
from meshrpc.client.choices import Choices
from meshrpc.client.endpoint import FAILING, READY
from meshrpc.client.probes import Probes
from meshrpc.client.roster import Group, Roster
from meshrpc.policy.model import EffectivePolicy
from meshrpc.resilience.health import Admission
from meshrpc.resilience.outcome import Outcome
from meshrpc.resilience.outlier import OutlierDetector
from meshrpc.resilience.retry import pause_before_retry, read_failure
from tests.simulation.attempt import Attempt
from tests.simulation.connection import Endpoint
from tests.simulation.engine import Event, Simulation
from tests.simulation.server import Server

OK = grpc.StatusCode.OK
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED


class Ended(NamedTuple):
    """A call that is over."""

    start: float
    end: float
    code: grpc.StatusCode
    attempts: int
    blames: bool
    """A handler that made it asks its own caller not to try again."""

    @property
    def latency(self) -> float:
        """Seconds from its start to its end."""
        return self.end - self.start


class Ejection(NamedTuple):
    """An endpoint that was ejected."""

    id: str
    at: float
    until: float


OnEnd = Callable[[Ended], None]


class Client:
    """One process's destination: all calls that it makes to one service."""

    def __init__(
        self, sim: Simulation, name: str, servers: Sequence[Server], policy: EffectivePolicy
    ) -> None:
        self.sim = sim
        self.policy = policy
        self.rng = sim.rng(f"client {name}")
        self.admission = AdmissionControl(policy, sim.now, self.rng)
        self.outliers = OutlierDetector(policy.outlier, self.rng)
        self.ejections: list[Ejection] = []
        self.attempts = 0
        """Attempts that were begun, those that found no connection included."""
        self.most_ejected = 0
        """Endpoints that were not admitted at the same time."""
        self._choices = Choices(policy, self.rng)
        self._probes = Probes()
        self._waiting: list[Callable[[], None]] = []
        self._advance: Event | None = None
        self.endpoints = tuple(
            Endpoint(sim, server, self, policy.balancer.decay, self.rng) for server in servers
        )
        everybody = frozenset(endpoint.id for endpoint in self.endpoints)
        self._roster = Roster({None: Group(everybody)}, everybody)
        for endpoint in self.endpoints:
            self.outliers.add(endpoint.health)
        self._rebuild()

    def call(self, timeout: float, on_end: OnEnd) -> None:
        """Make a call that may be repeated."""
        now = self.sim.now
        if self.admission.admit(now) is not None:
            on_end(Ended(now, now, UNAVAILABLE, 0, blames=True))
        else:
            Call(self, now + timeout, on_end).begin()

    def pick(self, now: float) -> Endpoint | None:
        """Return an endpoint for a first attempt."""
        probed = self._probes.take(now, lambda _: True, repeatable=self.policy.retry.attempts > 1)
        if probed is not None:
            self.outliers.begin_probe(probed.health, now)
            self._advance_in_time()
            return probed
        return self._choices.pick(now)

    def pick_next(self, tried: Sequence[Endpoint], now: float) -> Endpoint | None:
        """Return an endpoint as `Destination.wait_for_endpoint` does; None: it would wait."""
        found = self._choices.pick_untried(tried, now, ANYWHERE) or self.pick(now)
        if found is not None:
            return found
        if self.is_unreachable():
            untried = [each for each in self.endpoints if each not in tried]
            return self.rng.choice(untried or self.endpoints)
        return None

    def is_unreachable(self) -> bool:
        """Return whether connecting has failed to every server."""
        return all(endpoint.state is FAILING for endpoint in self.endpoints)

    def wait(self, look_again: Callable[[], None]) -> None:
        """Call back once when an endpoint has changed."""
        self._waiting.append(look_again)

    def on_state(self, endpoint: Endpoint, before: grpc.ChannelConnectivity) -> None:
        """Take note that an endpoint's connection changed."""
        if endpoint.state is READY and before is not READY:
            now = self.sim.now
            if self.outliers.on_reconnected(endpoint.health, now) or endpoint.was_unreachable:
                endpoint.warm_up(now, self.policy.slow_start.window)
            endpoint.was_unreachable = False
        self._rebuild()

    def on_admission(self, endpoint: Endpoint) -> None:
        """Take note that an endpoint was ejected, or is back."""
        health, now = endpoint.health, self.sim.now
        if health.admission is Admission.ADMITTED:
            endpoint.warm_up(now, self.policy.slow_start.window)
        elif health.admission is Admission.EJECTED and health.ejected_until is not None:
            self.ejections.append(Ejection(endpoint.id, now, health.ejected_until))
            out = sum(each.health.admission is not Admission.ADMITTED for each in self.endpoints)
            self.most_ejected = max(self.most_ejected, out)
        self._rebuild()
        self._advance_in_time()

    def _advance_in_time(self) -> None:
        if self._advance is not None:
            self._advance.cancel()
            self._advance = None
        at = self.outliers.next_change()
        if at is not None:
            self._advance = self.sim.at(at, self._advance_now)

    def _advance_now(self) -> None:
        self._advance = None
        if self.outliers.advance(self.sim.now):
            self._rebuild()
        self._advance_in_time()

    def _rebuild(self) -> None:
        self._choices.replace(self.endpoints, self._roster, self.sim.now)
        self._probes.offer(
            (each for each in self.endpoints if each.health.admission is Admission.PROBATION),
            self.sim.now,
        )
        waiting, self._waiting = self._waiting, []
        for look_again in waiting:
            # As tasks do: after whatever else changes at this moment.
            self.sim.after(0.0, look_again)


class Call:
    """One call, over as many attempts as it takes."""

    def __init__(self, client: Client, deadline: float, on_end: OnEnd) -> None:
        self._client = client
        self._sim = client.sim
        self._start = client.sim.now
        self._deadline = deadline
        self._on_end = on_end
        self._tried: list[Endpoint] = []
        self._last: Attempt | None = None
        self._expiry: Event | None = None
        self._is_over = False

    def begin(self) -> None:
        """Start: at once on a ready endpoint, else as soon as there is one."""
        endpoint = self._client.pick(self._sim.now)
        if endpoint is not None:
            self._attempt(endpoint)
        else:
            self._go_on()

    def on_attempt_done(self, attempt: Attempt) -> None:
        """Start another attempt where one is due; otherwise the call is over."""
        client, now = self._client, self._sim.now
        if attempt.code is OK:
            self._end(attempt.code)
            return
        failure = read_failure(
            attempt.code, attempt.details, attempt.trailers, timed_out=attempt.timed_out
        )
        wait = pause_before_retry(
            client.policy.retry,
            failure,
            attempts=len(self._tried),
            idempotent=True,
            remaining=self._deadline - now,
            rng=client.rng,
        )
        is_hopeless = failure.not_sent and client.is_unreachable()
        if is_hopeless or wait is None or not client.admission.budget.withdraw(now):
            self._end(attempt.code)
        else:
            self._sim.after(wait, self._go_on)

    def _go_on(self) -> None:
        if self._is_over:
            return
        endpoint = self._client.pick_next(self._tried, self._sim.now)
        if endpoint is not None:
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None
            self._attempt(endpoint)
            return
        self._client.wait(self._go_on)
        if self._expiry is None:
            self._expiry = self._sim.at(self._deadline, self._expire)

    def _expire(self) -> None:
        self._end(DEADLINE_EXCEEDED)

    def _attempt(self, endpoint: Endpoint) -> None:
        if self._deadline <= self._sim.now:
            self._expire()
            return
        self._tried.append(endpoint)
        self._client.attempts += 1
        bound = self._client.policy.retry.per_attempt_timeout
        bounded = bound is not None and self._sim.now + bound < self._deadline
        until = self._sim.now + bound if bound is not None and bounded else self._deadline
        self._last = Attempt(self, endpoint, self._sim, until, bounded=bounded)

    def _end(self, code: grpc.StatusCode) -> None:
        self._is_over = True
        last, now = self._last, self._sim.now
        self._client.admission.call_ended(last, now)
        blames = last is not None and last.outcome is Outcome.FAILURE
        self._on_end(Ended(self._start, now, code, len(self._tried), blames))

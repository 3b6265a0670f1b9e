"""An attempt under virtual time: `meshrpc.client.attempt` and the way to the server and back."""

from __future__ import annotations

from typing import Protocol

import grpc

from meshrpc import wire
from meshrpc.resilience.outcome import CONNECT_FAILED, Outcome, classify
from tests.simulation.connection import TRAVEL, Endpoint
from tests.simulation.engine import Simulation
from tests.simulation.server import Work

_STOP = ((wire.RETRY_PUSHBACK, "-1"),)


class Caller(Protocol):
    """The call that an attempt belongs to."""

    def on_attempt_done(self, attempt: Attempt) -> None:
        """Decide what follows; called exactly once for each attempt."""
        ...


class Attempt:
    """One try at one endpoint."""

    code: grpc.StatusCode
    details = ""
    trailers: wire.Metadata = ()
    outcome: Outcome
    timed_out = False

    def __init__(
        self, call: Caller, endpoint: Endpoint, sim: Simulation, until: float, *, bounded: bool
    ) -> None:
        self._call = call
        self._endpoint = endpoint
        self._sim = sim
        self._started = sim.now
        self._generation = endpoint.health.generation
        self._is_over = False
        self._work = Work(self._answered, until)
        endpoint.start(self, self._started)
        if endpoint.is_ready():
            self._expiry = sim.at(until, self._expire, bounded)
            sim.after(TRAVEL, endpoint.server.receive, self._work)
        else:
            self.details = CONNECT_FAILED
            self._expiry = sim.after(0.0, self._finish, grpc.StatusCode.UNAVAILABLE)

    def broken(self) -> None:
        """End: the connection did."""
        self._work.cancelled = True
        if self._endpoint.is_ready() or not self.details:
            self.details = "Socket closed"
            self._finish(grpc.StatusCode.UNAVAILABLE)

    def _answered(self, code: grpc.StatusCode, stop: bool) -> None:
        self._sim.after(TRAVEL, self._arrived, code, stop)

    def _arrived(self, code: grpc.StatusCode, stop: bool) -> None:
        if stop:
            self.trailers = _STOP
        self._finish(code)

    def _expire(self, bounded: bool) -> None:
        self._work.cancelled = True
        self.timed_out = bounded
        self._finish(grpc.StatusCode.DEADLINE_EXCEEDED)

    def _finish(self, code: grpc.StatusCode) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._expiry.cancel()
        self.code = code
        self.outcome = classify(code, self.details)
        now = self._sim.now
        self._endpoint.finish(self, self.outcome, self._started, now, self._generation)
        self._call.on_attempt_done(self)

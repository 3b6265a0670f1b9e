"""A server as one client holds it: `meshrpc.client.endpoint` under virtual time.

The connection behaves as grpcio's with the mesh's options (`meshrpc/client/options.py`): a process
that dies is noticed at once; one that is frozen two seconds after the first call that it leaves
waiting, by a ping a second and a second for its answer; what is lost is dialed again, after 0.2 to 1
seconds.
"""

from __future__ import annotations

import random
from typing import Protocol

import grpc

from meshrpc.balancer.capacity import Capacity
from meshrpc.balancer.load import Load
from meshrpc.client.endpoint import FAILING, READY
from meshrpc.resilience.health import Health
from meshrpc.resilience.outcome import Outcome
from meshrpc.resilience.outlier import OutlierDetector
from tests.simulation.engine import Event, Simulation
from tests.simulation.server import Server, State

TRAVEL = 0.00025
"""Seconds that a message takes to the other process."""

FOUND_FROZEN = 2.0
"""Seconds until a call that waits finds out that nobody is there: keepalive 1 s + 1 s."""

GIVES_UP_DIALING = 1.0
"""grpc.min_reconnect_backoff_ms"""

FIRST_BACKOFF, LONGEST_BACKOFF = 0.2, 1.0
"""grpc.initial_reconnect_backoff_ms, grpc.max_reconnect_backoff_ms"""

BACKOFF_GROWTH, BACKOFF_JITTER = 1.6, 0.2
"""C-core's own."""

CONNECTING = grpc.ChannelConnectivity.CONNECTING


class Breaking(Protocol):
    """An attempt, as far as the connection that it hangs on is concerned."""

    def broken(self) -> None:
        """End: the connection did."""
        ...


class Keeper(Protocol):
    """The client."""

    outliers: OutlierDetector

    def on_state(self, endpoint: Endpoint, before: grpc.ChannelConnectivity) -> None: ...

    def on_admission(self, endpoint: Endpoint) -> None: ...


class Endpoint:
    """One server: the connection to it, and what calls to it have shown."""

    weight = 1

    def __init__(
        self, sim: Simulation, server: Server, keeper: Keeper, decay: float, rng: random.Random
    ) -> None:
        self.id = server.id
        self.server = server
        self.health = Health()
        self.warm_at = 0.0
        self.was_unreachable = False
        self.state = READY
        self._sim = sim
        self._keeper = keeper
        self._rng = rng
        self.load = Load(decay)
        self.capacity = Capacity()
        self._attempts: dict[Breaking, None] = {}  # in order, for a run to be repeatable
        self._ping: Event | None = None
        self._dialing: Event | None = None
        self._backoff = FIRST_BACKOFF
        server.on_state.append(self._on_server)
        if server.state is State.DEAD:
            self.state = CONNECTING
            self._dial()

    def __repr__(self) -> str:
        return f"<Endpoint {self.id} {self.state.name} pending={self.load.pending}>"

    def is_ready(self) -> bool:
        """Return whether a call started now would go out at once."""
        return self.state is READY

    def start(self, attempt: Breaking, now: float) -> None:
        """Count an attempt as pending; exactly one `finish` follows."""
        self.load.start(now)
        self._attempts[attempt] = None
        if self.server.state is State.FROZEN:
            self._watch_out()

    def finish(
        self, attempt: Breaking, outcome: Outcome, started: float, now: float, generation: int
    ) -> None:
        """Count an attempt as over and learn from it."""
        self.load.finish(started)
        del self._attempts[attempt]
        self.load.learn(outcome, now - started, now)
        if self._keeper.outliers.record(self.health, generation, outcome, now):
            self._keeper.on_admission(self)

    def warm_up(self, now: float, window: float) -> None:
        """Begin a slow start; what was learned of its latency before is forgotten."""
        self.warm_at = now + window
        self.load.forget()

    def _on_server(self, state: State) -> None:
        if state is State.FROZEN:
            if self._attempts:
                self._watch_out()
            return
        if self._ping is not None:
            self._ping.cancel()
            self._ping = None
        if state is State.DEAD:
            if self.state is READY:
                self._break()
        elif self._dialing is not None and self.state is CONNECTING:
            self._dialing.cancel()  # it waited for an answer that comes now
            self._dial()

    def _watch_out(self) -> None:
        if self._ping is None and self.state is READY:
            self._ping = self._sim.after(FOUND_FROZEN, self._break)

    def _break(self) -> None:
        self._ping = None
        self._turn(CONNECTING)
        for attempt in tuple(self._attempts):
            attempt.broken()
        self._dial()

    def _dial(self) -> None:
        self._dialing = None
        self._turn(CONNECTING)
        if self.server.state is State.DEAD:
            self._dialing = self._sim.after(2 * TRAVEL, self._refused)
        elif self.server.state is State.FROZEN:
            self._dialing = self._sim.after(GIVES_UP_DIALING, self._refused)
        else:
            self._dialing = self._sim.after(2 * TRAVEL, self._connected)

    def _refused(self) -> None:
        if self.server.state not in (State.DEAD, State.FROZEN):
            self._connected()
            return
        self.was_unreachable = True
        self._turn(FAILING)
        jitter = self._rng.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)
        self._dialing = self._sim.after(self._backoff * jitter, self._dial)
        self._backoff = min(self._backoff * BACKOFF_GROWTH, LONGEST_BACKOFF)

    def _connected(self) -> None:
        if self.server.state in (State.DEAD, State.FROZEN):
            self._refused()
            return
        self._dialing = None
        self._backoff = FIRST_BACKOFF
        self._turn(READY)

    def _turn(self, state: grpc.ChannelConnectivity) -> None:
        before, self.state = self.state, state
        if state is not before:
            self._keeper.on_state(self, before)

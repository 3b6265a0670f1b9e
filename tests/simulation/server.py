"""A server as its callers see it: a queue, a few slots that work, and faults.

Calls wait in one queue without an end, as in grpcio, and `slots` of them are worked on at a time,
each for a random time with a gamma distribution (k = 4: half as spread as an exponential one), times
`slowness`. What is cancelled while it waits is not worked on; what is being worked on is finished
whether anybody still wants it or not, as CPU work is.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from tests.simulation.engine import Simulation

_SHAPE = 4.0
"""Of the gamma distribution of service times: standard deviation = mean / 2."""

FAILS_WITHIN = 0.001
"""Seconds that a handler which fails at once takes to do so."""

OK = grpc.StatusCode.OK
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class State(enum.Enum):
    """What is wrong with a server, if anything."""

    UP = "up"
    FAILING = "failing"
    """Its handlers answer UNAVAILABLE at once."""
    FROZEN = "frozen"
    """Nothing comes out of it, pings included; the kernel still takes connections and bytes in."""
    DEAD = "dead"
    """The process is gone: connections break, new ones are refused, its work is lost."""


@dataclass(eq=False, slots=True)
class Work:
    """One attempt as the server has it; `answer(code, stop)` is called once, or never."""

    answer: Callable[[grpc.StatusCode, bool], None]
    """`stop`: the answer carries `grpc-retry-pushback-ms: -1`."""
    deadline: float
    cancelled: bool = False
    """Its caller has left."""


Finish = Callable[[grpc.StatusCode, bool], None]
Handler = Callable[[Work, Finish], None]


@dataclass(eq=False)
class Server:
    """One process. `arrived` counts the calls that came in, `worked` those it worked on."""

    sim: Simulation
    id: str
    service_time: float
    """Mean seconds of work per call."""
    slots: int = 1
    handler: Handler | None = None
    """What follows the work, such as a call of its own; it holds no slot. None: the answer is OK."""
    state: State = State.UP
    slowness: Callable[[], float] | None = None
    """What service times are multiplied with just now."""
    arrived: int = 0
    worked: int = 0
    busy: int = 0
    queue: deque[Work] = field(default_factory=deque)
    on_state: list[Callable[[State], None]] = field(default_factory=list)
    _life: int = 0
    _held: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = self.sim.rng(f"server {self.id}")

    def __repr__(self) -> str:
        return f"<Server {self.id} {self.state.value} busy={self.busy} queue={len(self.queue)}>"

    @property
    def capacity(self) -> float:
        """Calls per second that it can do."""
        return self.slots / self.service_time

    def set_state(self, state: State) -> None:
        """Break or mend it; those who are connected see of it what the network shows."""
        if state is self.state:
            return
        self.state = state
        if state is State.DEAD:
            self._life += 1
            self.queue.clear()
            self._held.clear()
            self.busy = 0
        elif state is not State.FROZEN:
            held, self._held = self._held, []
            for step in held:
                step()
        for callback in self.on_state:
            callback(state)

    def receive(self, work: Work) -> None:
        """Take in a call."""
        if self.state is State.FROZEN:
            self._held.append(lambda: self.receive(work))
            return
        self.arrived += 1
        if self.state is State.FAILING:
            self.sim.after(FAILS_WITHIN, self._answer, self._life, work, UNAVAILABLE, False)
            return
        self.queue.append(work)
        self._work()

    def _work(self) -> None:
        while self.queue and self.busy < self.slots:
            work = self.queue.popleft()
            if work.cancelled or work.deadline <= self.sim.now:
                continue
            self.busy += 1
            self.worked += 1
            seconds = self._rng.gammavariate(_SHAPE, self.service_time / _SHAPE)
            if self.slowness is not None:
                seconds *= self.slowness()
            self.sim.after(seconds, self._worked, self._life, work)

    def _worked(self, life: int, work: Work) -> None:
        if life != self._life:
            return
        if self.state is State.FROZEN:
            self._held.append(lambda: self._worked(life, work))
            return
        self.busy -= 1
        if self.handler is None:
            self._answer(life, work, OK, False)
        else:
            self.handler(work, lambda code, stop: self._answer(life, work, code, stop))
        self._work()

    def _answer(self, life: int, work: Work, code: grpc.StatusCode, stop: bool) -> None:
        if life != self._life:
            return
        if self.state is State.FROZEN:
            self._held.append(lambda: self._answer(life, work, code, stop))
        else:
            work.answer(code, stop)

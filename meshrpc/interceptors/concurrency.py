"""Overload protection: a process answers what it can, and says at once what it cannot.

Calls wait for their turn at an `AdmissionGate`, or go straight through it. How many handlers may
run is fixed, or follows how much slower they have become (`limits/gradient.py`). A call that has
waited for too long is refused with RESOURCE_EXHAUSTED, before it is decoded, with `mesh-not-executed`
and with when to come back: the mesh's callers hold back as many (`resilience/throttle.py`), and
count it against no instance. One that came with less time than even a quick call takes gets
DEADLINE_EXCEEDED, which its caller would be told by its own clock a little later. A stream waits
to begin as other calls do; after that it counts in a fixed limit, and in an adaptive one it does not.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from functools import partial

import grpc

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.interceptors.admission_gate import Intake
from meshrpc.interceptors.admission_lane import AdmissionLane
from meshrpc.interceptors.compose import Refused, ServerInterceptor
from meshrpc.interceptors.method_handler import is_infrastructure
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.policy.model import Concurrency, ConcurrencyMode
from meshrpc.wire import NOT_EXECUTED, OVERLOADED, RETRY_PUSHBACK

LEAST_PUSHBACK = 0.1
"""Seconds after which a refused caller may come back, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyCounts:
    """What became of calls, and how it is now."""

    admitted: int
    refused: Mapping[str, int]
    """By reason: `waited` too long, `full` queue, `too_late` on arrival, `hopeless` after a wait."""
    dropped: int
    """Calls let go of unanswered, because even looking at all of them was too much."""
    waiting: int
    running: int
    limit: int
    """Handlers that may run at a time on the event loop."""


class ConcurrencyInterceptor(ServerInterceptor):
    """Admits calls as this process can serve them. Usable alone on a bare server, in one loop."""

    def __init__(self, policy: Concurrency | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self._policy = Concurrency() if policy is None else policy
        self.restart(clock)

    def __repr__(self) -> str:
        return f"<ConcurrencyInterceptor {self._policy.mode} {self._loop.gate!r}>"

    @property
    def counts(self) -> ConcurrencyCounts:
        """What became of calls since the start."""
        return ConcurrencyCounts(
            admitted=self._admitted,
            refused=dict(self._refused),
            dropped=sum(intake.dropped for intake in self._intakes),
            waiting=sum(len(lane.gate.queue) for lane in self._lanes.values()),
            running=sum(lane.gate.running for lane in self._lanes.values()),
            limit=self._loop.gate.limit,
        )

    def restart(self, clock: Clock) -> None:
        """Forget what was learned and counted, and go by `clock`, in another event loop perhaps."""
        self._clock = clock
        self._intakes: list[Intake] = []
        self._lanes: dict[int, AdmissionLane] = {}
        self._loop = self._open_lane(0)
        self._admitted = 0
        self._refused = {"waited": 0, "full": 0, "too_late": 0, "hopeless": 0}

    def configure(self, policy: Concurrency) -> None:
        """Go by another policy from now on; who runs and who waits stays."""
        self._policy = policy
        for lane in self._lanes.values():
            lane.follow(policy)

    def watch_intake(self, intake: Intake) -> None:
        """Have a look, before a handler is begun, at the calls that are on their way here."""
        self._intakes.append(intake)
        for lane in self._lanes.values():
            lane.gate.intakes.append(intake)

    def applies_to(self, method: str) -> bool:
        """Every method but those of health checks and reflection, which never wait."""
        return not is_infrastructure(method)

    def begin(self, call: ServerCall) -> Awaitable[None] | None:
        """Let a call through, or have it wait; refuse it if it cannot be answered in time."""
        if self._policy.mode is ConcurrencyMode.OFF:
            return None
        now = self._clock.now()
        lane = self._loop
        # A fixed limit is one for all, and whoever gives it knows how many threads there are.
        if call.threads and self._policy.mode is ConcurrencyMode.ADAPTIVE:
            lane = self._lanes.get(call.threads) or self._open_lane(call.threads)
        deadline = call.deadline
        if deadline is not None and lane.times.is_too_late(now, call.method, deadline - now):
            self._refused["too_late"] += 1
            left = max(0.0, deadline - now) * 1000
            raise _too_late(f"{left:.0f} ms are left, and even quick calls take longer")
        call.lane = lane
        if lane.gate.enter(call, now):
            self._admitted += 1
            return None
        return lane.gate.wait(call, now)

    def end(self, call: ServerCall, code: grpc.StatusCode) -> None:
        """Make room for the next one, and learn how long this one took."""
        started, call.started_at = call.started_at, None
        lane = call.lane
        if started is None or not isinstance(lane, AdmissionLane):
            return
        if not call.is_refused and not call.is_stream:
            now = self._clock.now()
            lane.note(now, call.method, now - started, answered=code is grpc.StatusCode.OK)
        lane.gate.release()

    def _open_lane(self, threads: int) -> AdmissionLane:
        lane = self._lanes[threads] = AdmissionLane(self._policy, self._clock, threads)
        lane.gate.on_turn = partial(self._on_turn, lane)
        lane.gate.on_late = partial(self._on_late, lane)
        lane.gate.intakes.extend(self._intakes)
        return lane

    def _on_turn(
        self, lane: AdmissionLane, call: ServerCall, now: float, waited: float
    ) -> Refused | None:
        remaining = math.inf if call.deadline is None else call.deadline - now
        if remaining <= 0:
            # Its caller's own clock says the same at this moment: whoever is first, it is one status.
            self._refused["hopeless"] += 1
            return _too_late("deadline passed before its turn came")
        if lane.times.is_hopeless(call.method, remaining, waited):
            self._refused["hopeless"] += 1
            return self._overloaded(lane, "waited until too little time was left")
        self._admitted += 1
        return None

    def _on_late(self, lane: AdmissionLane, waited: float | None) -> Refused:
        if waited is None:
            self._refused["full"] += 1
            return self._overloaded(lane, f"{len(lane.gate.queue)} calls wait already")
        self._refused["waited"] += 1
        return self._overloaded(lane, f"waited {waited * 1000:.0f} ms")

    def _overloaded(self, lane: AdmissionLane, why: str) -> Refused:
        wait = max(LEAST_PUSHBACK, 2 * lane.gate.queue.longest_wait(self._clock.now()))
        return Refused(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"{OVERLOADED}: {why}",
            ((NOT_EXECUTED, "1"), (RETRY_PUSHBACK, str(math.ceil(wait * 1000)))),
        )


def _too_late(why: str) -> Refused:
    return Refused(grpc.StatusCode.DEADLINE_EXCEEDED, why, ((NOT_EXECUTED, "1"),))

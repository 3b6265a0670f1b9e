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

import grpc

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.interceptors.admission_gate import AdmissionGate, Intake
from meshrpc.interceptors.compose import Refused, ServerInterceptor
from meshrpc.interceptors.method_handler import is_infrastructure
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.limits.gradient import Gradient
from meshrpc.limits.handler_times import HandlerTimes
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
    """Handlers that may run at a time."""


class ConcurrencyInterceptor(ServerInterceptor):
    """Admits calls as this process can serve them. Usable alone on a bare server, in one loop."""

    def __init__(self, policy: Concurrency | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self._policy = Concurrency() if policy is None else policy
        self.restart(clock)

    def __repr__(self) -> str:
        return f"<ConcurrencyInterceptor {self._policy.mode} {self._gate!r}>"

    @property
    def counts(self) -> ConcurrencyCounts:
        """What became of calls since the start."""
        return ConcurrencyCounts(
            admitted=self._admitted,
            refused=dict(self._refused),
            dropped=sum(intake.dropped for intake in self._intakes),
            waiting=len(self._gate.queue),
            running=self._gate.running,
            limit=self._gate.limit,
        )

    def restart(self, clock: Clock) -> None:
        """Forget what was learned and counted, and go by `clock`, in another event loop perhaps."""
        self._clock = clock
        self._intakes: list[Intake] = []
        self._times = HandlerTimes()
        self._gradient = Gradient(self._policy.limit)
        self._gate = AdmissionGate(self._policy.limit, clock)
        self._gate.on_turn = self._on_turn
        self._gate.on_late = self._on_late
        self._gate.counts_streams = self._policy.mode is ConcurrencyMode.FIXED
        self._admitted = 0
        self._refused = {"waited": 0, "full": 0, "too_late": 0, "hopeless": 0}

    def configure(self, policy: Concurrency) -> None:
        """Go by another policy from now on; who runs and who waits stays."""
        self._policy = policy
        self._gradient.set_most(policy.limit)
        self._gate.limit = self._limit()
        self._gate.counts_streams = policy.mode is ConcurrencyMode.FIXED

    def watch_intake(self, intake: Intake) -> None:
        """Have a look, before a handler is begun, at the calls that are on their way here."""
        self._intakes.append(intake)
        self._gate.intakes.append(intake)

    def applies_to(self, method: str) -> bool:
        """Every method but those of health checks and reflection, which never wait."""
        return not is_infrastructure(method)

    def begin(self, call: ServerCall) -> Awaitable[None] | None:
        """Let a call through, or have it wait; refuse it if it cannot be answered in time."""
        if self._policy.mode is ConcurrencyMode.OFF:
            return None
        now = self._clock.now()
        deadline = call.deadline
        if deadline is not None and self._times.is_too_late(now, call.method, deadline - now):
            self._refused["too_late"] += 1
            raise Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"{max(0.0, deadline - now) * 1000:.0f} ms are left, and even quick calls take longer",
                ((NOT_EXECUTED, "1"),),
            )
        if self._gate.enter(call, now):
            self._admitted += 1
            return None
        return self._gate.wait(call, now)

    def end(self, call: ServerCall, code: grpc.StatusCode) -> None:
        """Make room for the next one, and learn how long this one took."""
        started, call.started_at = call.started_at, None
        if started is None:
            return
        if not call.is_refused and not call.is_stream:
            now = self._clock.now()
            is_ok = code is grpc.StatusCode.OK
            self._times.note(now, call.method, now - started, answered=is_ok)
            if self._gradient.note(now, self._gate.running):
                self._end_window(now)
        self._gate.release()

    def _end_window(self, now: float) -> None:
        self._gradient.end_window(now, self._times.end_window())
        self._gate.queue.note_handler_time(self._times.typical)
        self._gate.limit = self._limit()

    def _limit(self) -> int:
        is_adaptive = self._policy.mode is ConcurrencyMode.ADAPTIVE
        return self._gradient.limit if is_adaptive else self._policy.limit

    def _on_turn(self, call: ServerCall, now: float, waited: float) -> Refused | None:
        deadline = call.deadline
        if waited > .1: open("/tmp/why.log", "a").write(f"slow {call.caller} waited={waited:.3f} left={deadline-now:.3f}\n")
        if deadline is None or not self._times.is_hopeless(call.method, deadline - now, waited):
            self._admitted += 1
            return None
        self._refused["hopeless"] += 1
        return self._overloaded("waited until too little time was left")

    def _on_late(self, waited: float | None) -> Refused:
        if waited is None:
            self._refused["full"] += 1
            return self._overloaded(f"{len(self._gate.queue)} calls wait already")
        self._refused["waited"] += 1
        return self._overloaded(f"waited {waited * 1000:.0f} ms")

    def _overloaded(self, why: str) -> Refused:
        with open("/tmp/why.log", "a") as f: f.write(f"{self._clock.now():.3f} {why} q={len(self._gate.queue)} lines={ {k: (v.count, round(self._clock.now()-v.first().since,3)) for t in self._gate.queue._classes.values() for k, v in t._callers.items()} } ht={self._gate.queue._handler_time*1000:.1f}\n")
        wait = max(LEAST_PUSHBACK, 2 * self._gate.queue.longest_wait(self._clock.now()))
        return Refused(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"{OVERLOADED}: {why}",
            ((NOT_EXECUTED, "1"), (RETRY_PUSHBACK, str(math.ceil(wait * 1000)))),
        )

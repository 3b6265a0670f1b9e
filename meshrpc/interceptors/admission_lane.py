"""Admission lane: a gate, and what is learned of the handlers that run behind it.

The event loop is one, the threads of plain `def` handlers are another: what is slow in one says
nothing of the other, and a call that waits for a thread must not stand before one that needs none.
In the threads an adaptive limit may go down to a few, because those that compute share one core.
"""

from __future__ import annotations

from typing import Final

from meshrpc.clock import Clock
from meshrpc.interceptors.admission_gate import AdmissionGate
from meshrpc.limits.gradient import Gradient
from meshrpc.limits.handler_times import HandlerTimes
from meshrpc.policy.model import Concurrency, ConcurrencyMode

FEW_THREADS: Final = 2
"""Handlers in threads that an adaptive limit leaves in any case."""
IN_RESERVE: Final = 2
"""More handlers than threads, so that no thread waits for its next one."""


class AdmissionLane:
    """The gate of one event loop, or before its `threads`."""

    def __init__(self, policy: Concurrency, clock: Clock, threads: int = 0) -> None:
        self._threads = threads
        self._policy = policy
        most = self._most()
        self.times = HandlerTimes()
        self.gate = AdmissionGate(most, clock)
        self._gradient = Gradient(most, FEW_THREADS, headroom=1) if threads else Gradient(most)
        self.follow(policy)

    def __repr__(self) -> str:
        return f"<AdmissionLane threads={self._threads} {self.gate!r}>"

    def follow(self, policy: Concurrency) -> None:
        """Go by another policy from now on; who runs and who waits stays."""
        self._policy = policy
        self._gradient.set_most(self._most())
        self.gate.counts_streams = policy.mode is ConcurrencyMode.FIXED
        self._set_limit()

    def note(self, now: float, method: str, seconds: float, *, answered: bool) -> None:
        """Learn how long one handler took."""
        self.times.note(now, method, seconds, answered=answered)
        if self._gradient.note(now, self.gate.running):
            self._gradient.end_window(now, self.times.end_window())
            self._set_limit()
            # Threads run side by side: for the next of them nobody waits as long as one takes.
            abreast = self.gate.limit if self._threads else 1
            self.gate.queue.note_handler_time(self.times.typical / abreast)

    def _most(self) -> int:
        if not self._threads:
            return self._policy.limit
        return min(self._policy.limit, self._threads + IN_RESERVE)

    def _set_limit(self) -> None:
        is_adaptive = self._policy.mode is ConcurrencyMode.ADAPTIVE
        self.gate.limit = self._gradient.limit if is_adaptive else self._most()

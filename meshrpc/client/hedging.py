"""Hedging: a unary call that is sent to a second instance when the first is slow to answer.

Two attempts may run side by side. One of them is the call's attempt, which is what its user waits
for (`_attempt`), the other one its hedge (`_hedge`). A hedge that answers takes the place of the
call's attempt, which is cancelled; one that fails changes nothing. A call's attempt that fails
leaves its place to the hedge. When and how often is decided in `resilience/hedge.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from meshrpc.client.attempt import Attempt
from meshrpc.client.call import UnaryUnaryCall
from meshrpc.client.endpoint import Endpoint
from meshrpc.resilience.hedge import Hedging
from meshrpc.resilience.outcome import Outcome
from meshrpc.telemetry import tracing

_OK = grpc.StatusCode.OK
_CANCELLED = grpc.StatusCode.CANCELLED

T = TypeVar("T")

_log = logging.getLogger("meshrpc.client")


class HedgedCall(UnaryUnaryCall):
    """One request, one answer: the first one of two attempts."""

    _hedge: Attempt | None = None
    """The other attempt, while two run."""
    _due: asyncio.Task[None] | None = None
    """What waits until a hedge is due, until it is."""
    _hedging: Hedging
    _started = 0.0

    def _start_attempt(self, endpoint: Endpoint, now: float) -> None:
        is_first = not self._tried
        super()._start_attempt(endpoint, now)
        policy = self._policy.hedge
        if not is_first or policy is None:
            return  # whoever was tried again has waited already, and a retry is due when it fails
        self._started = now
        self._hedging = self._destination.hedges.method(self._method.path, policy, now)
        delay = self._hedging.begin(now)
        if delay is not None and (self._deadline is None or now + delay < self._deadline):
            self._due = self._destination.wait(self._hedge_after(delay), self._context.copy())

    async def _hedge_after(self, delay: float) -> None:
        """Start the hedge, if there is somebody to send it to and the budget allows."""
        destination = self._destination
        await destination.clock.sleep(delay)
        self._due = None
        now = destination.clock.now()
        endpoint = destination.pick_untried(self._tried, now, self._aim)
        if endpoint is None or not self._hedging.grant(now):
            return
        attempt = self._attempt
        try:
            super()._start_attempt(endpoint, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, the first attempt goes on
            _log.warning("%s cannot be hedged: %r", self._method.path, error)
            return
        self._hedge, self._attempt = self._attempt, attempt

    def on_attempt_done(self, attempt: Attempt) -> None:
        """Let the first answer win, and the other attempt go on where one has failed."""
        is_hedge = attempt is self._hedge
        if attempt is self._attempt:
            other = self._hedge
            if other is not None and self._leaves_hope(attempt):
                self._attempt, self._hedge = other, None
                self._record(attempt)
                return
        elif is_hedge and attempt.code is _OK:
            other, self._attempt = self._attempt, attempt
        else:  # a hedge that failed, or the one that was too late
            if is_hedge:
                self._hedge = None
            self._record(attempt)
            return
        self._hedge = None
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if other is not None:
            other.cancel()
        if attempt.code is _OK:
            now = self._destination.clock.now()
            self._hedging.observe(now - self._started, now)
        super().on_attempt_done(attempt)

    def cancel(self) -> bool:
        """End the call now, whichever attempt would answer; False when it is over already."""
        hedge, was_running = self._hedge, super().cancel()
        if was_running and hedge is not None:
            hedge.cancel()
        return was_running

    async def _follow(self, step: Callable[[Any], Awaitable[T]], *, owns: bool = True) -> T:
        async def take(inner: Any) -> T:
            try:
                return await step(inner)
            except grpc.aio.AioRpcError:
                raise
            except Exception:
                if self._attempt is None or self._attempt.inner is inner:
                    raise
                # An interceptor made it of the cancellation of the attempt that was too late.
                raise asyncio.CancelledError from None

        return await super()._follow(take, owns=owns)

    def _leaves_hope(self, attempt: Attempt) -> bool:
        """Return whether the call, whose attempt has ended, is to wait for its hedge.

        A mistake of the caller's own (INVALID_ARGUMENT and its like) is an answer: the hedge would
        bring the same one. That of a hedge is not, for it may be there only because two are at it.
        """
        if attempt.raised or (attempt.cancelled and not attempt.interrupted):
            return False
        if attempt.code is _CANCELLED or attempt.code in self._policy.retry.codes:
            return True  # a server that stops says CANCELLED
        return attempt.outcome not in (Outcome.SUCCESS, Outcome.IGNORED)

    def _record(self, attempt: Attempt) -> None:
        assert attempt.code is not None  # noqa: S101 - it is over
        tracing.record_attempt(self._span, attempt.endpoint.id, attempt.code)

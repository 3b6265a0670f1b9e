"""The end of a logical call: how it ended, and who is told.

A call ends once, with the status of its last attempt or an error of this client's own. Then its
span ends, it is counted out, the handler that made it may learn of it, and so does whoever asked
for a callback. Here is also what grpcio's `RpcContext` says of that, and the end that a user asks
for: `cancel`. What leads to an end is `logical_call`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from opentelemetry.trace import Span

from meshrpc.client.attempt import Attempt
from meshrpc.client.destination import Destination
from meshrpc.client.local_error import cancelled_here
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.resilience.outcome import Outcome
from meshrpc.telemetry import tracing

_CANCELLED = grpc.StatusCode.CANCELLED


class EndingCall:
    """A call, as far as its end is concerned. `LogicalCall` sets it up."""

    _destination: Destination
    _span: Span
    _deadline: float | None
    _serving: ServerCall | None
    _attempt: Attempt | None
    """The one that counts just now; None before the first."""
    _next: asyncio.Task[None] | None
    """What waits for the next attempt, while there is none under way."""
    _error: grpc.aio.AioRpcError | None
    """What the call ended with, where that is not its last attempt's status."""
    _cancel_asked: bool
    _cancelled: bool
    _done: bool
    _is_counted: bool
    """Whether admission control has counted it in, and not out yet."""
    _callbacks: list[Callable[[Any], None]]

    def on_attempt_done(self, attempt: Attempt) -> None:
        """Decide what follows; called exactly once for each attempt."""
        raise NotImplementedError

    def _close_requests(self) -> None:
        """Stop asking the user for messages to send."""

    def _fail(self, error: grpc.aio.AioRpcError) -> None:
        """End the call with an error of this client's own."""
        self._error = error = self._explain(error)
        self._settle(error.code(), error.details())

    def _explain(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """Return an error of this client's own as its user is told it."""
        return error

    def _break_off(self, error: grpc.aio.AioRpcError) -> None:
        """End a call that is under way with an error of this client's own."""
        if not self._done and self._attempt is not None:
            self._fail(error)
            self._attempt.cancel()

    def _count_out(self) -> None:
        """Tell, once, how the call ended to those who count."""
        if not self._is_counted:
            return
        self._is_counted = False
        # Of a call that was cancelled between two attempts nobody knows how it would have ended.
        last = None if self._cancelled else self._attempt
        self._destination.control.call_ended(last, self._destination.clock.now())
        if last is not None and last.outcome is Outcome.FAILURE:
            self._blame_dependency()

    def _blame_dependency(self) -> None:
        """Let the handler that made this call ask its own caller not to try again."""
        if self._serving is not None:
            self._serving.dependency_failed = True

    def _settle(self, code: grpc.StatusCode, details: str | None = None) -> None:
        self._done = True
        self._count_out()
        instance = self._attempt.endpoint.id if self._attempt is not None else None
        tracing.end_client_span(self._span, code, instance, details)
        self._close_requests()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception as error:  # noqa: BLE001 - grpcio would fail the call with it
                self._destination.loop.call_exception_handler(
                    {"message": f"a done callback of {self!r} failed", "exception": error}
                )

    # grpc.aio.RpcContext.

    def cancelled(self) -> bool:
        """Return whether the call ended with CANCELLED, whichever side said so."""
        status = self._status()
        return status is not None and status.code() is _CANCELLED

    def _status(self) -> grpc.aio.AioRpcError | None:
        """Return how the call ended; None while it runs, or with nothing to say but OK."""
        if not self._done or self._error is not None:
            return self._error
        return self._attempt.status if self._attempt is not None else None

    def done(self) -> bool:
        """Return whether the call is over, its last attempt included."""
        return self._done

    def time_remaining(self) -> float | None:
        """Return the seconds left until the deadline; None without one."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - self._destination.clock.now())

    def cancel(self) -> bool:
        """End the call now; False when it is over already."""
        if self._done:
            return False
        self._cancel_asked = True
        if self._next is not None:
            task, self._next = self._next, None
            task.cancel()
            self._cancelled = True
            self._fail(cancelled_here())
        elif self._attempt is not None:
            self._attempt.cancel()
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(call)` when the call is over; at once when it is."""
        if not callable(callback):
            raise TypeError("a done callback must be callable")
        if self._done:
            callback(self)
            return
        self._callbacks.append(callback)
        if self._next is not None:
            self._next.add_done_callback(lambda _: self)  # it is held by whoever waits for it
        if self._attempt is not None:
            self._attempt.keep(self)

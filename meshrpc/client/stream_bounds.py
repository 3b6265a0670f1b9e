"""Stream bounds: calls whose policy has `stream: {idle, max}`.

`max` is the deadline of a stream that its caller gave none; grpc and the server know it, as they
do the `max_stream_duration` of gRFC A31. Here it gets a name and is held against nobody. `idle` is
Envoy's `idle_timeout` of a route. Envoy sees bytes; this side sees a message only when its user
asks for one, and so a stream of answers that nobody reads just now is not idle. Neither ends in
another attempt. Streams whose policy has no bounds are none of these calls.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from meshrpc.client.attempt import Attempt, known
from meshrpc.client.call import StreamStreamCall, StreamUnaryCall, UnaryStreamCall
from meshrpc.client.endpoint import Endpoint
from meshrpc.client.idle_timer import IdleTimer
from meshrpc.client.local_error import local_error
from meshrpc.client.receiving import StreamResponse
from meshrpc.client.sending import StreamRequest
from meshrpc.client.waiting import AwaitableCall
from meshrpc.resilience.outcome import Outcome

_DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED


class _Bounded(AwaitableCall):
    """A stream that ends by itself when a bound of its policy is reached."""

    _idle: IdleTimer | None = None
    _is_limited = False
    """Whether its deadline is `max`, and not what is left to the handler that makes the call."""

    def _begin(self) -> None:
        bounds, serving = self._policy.stream, self._serving
        assert bounds is not None  # noqa: S101 - looked at by whoever makes the call
        if bounds.idle is not None:
            self._idle = IdleTimer(bounds.idle, self._destination, self)
        self._is_limited = bounds.max is not None and (
            serving is None or serving.deadline != self._deadline
        )
        super()._begin()

    def may_idle(self) -> bool:
        """Return whether time counts: not while the call waits for somebody to send it to."""
        return self._next is None and not (self._cancel_asked or self._done)

    def on_idle(self) -> None:
        """End the call, because nothing has passed for too long."""
        attempt, bounds = self._attempt, self._policy.stream
        assert attempt is not None and bounds is not None  # noqa: S101, PT018 - it was started
        said = grpc.aio.Metadata()
        if self._received:
            with contextlib.suppress(Exception):  # an interceptor has its own
                said = known(attempt.inner.initial_metadata())
        why = f"no message has passed for too long ({self._bound('idle')})"
        attempt.outcome = Outcome.ABANDONED  # for those who count the call before it is cancelled
        self._break_off(
            grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, said, grpc.aio.Metadata(), why, why)
        )

    def on_attempt_done(self, attempt: Attempt) -> None:
        """Tell the user which bound it was, if it was one."""
        said = attempt.error
        if said is None or not attempt.outlived or self._done or self._cancel_asked:
            super().on_attempt_done(attempt)
            return
        details = f"{attempt.details} ({self._bound('max')})"
        self._error = grpc.aio.AioRpcError(
            _DEADLINE_EXCEEDED,
            said.initial_metadata(),
            said.trailing_metadata(),
            details,
            said.debug_error_string(),
        )
        self._settle(_DEADLINE_EXCEEDED, details)

    def _explain(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        if self._is_limited and error.code() is _DEADLINE_EXCEEDED and not self.time_remaining():
            return local_error(_DEADLINE_EXCEEDED, f"{error.details()} ({self._bound('max')})")
        return error

    def _bound(self, name: str) -> str:
        seconds = getattr(self._policy.stream, name)
        return f"stream.{name}: {seconds:g} s, by the policy for {self._destination.service!r}"

    def _start_attempt(self, endpoint: Endpoint, now: float) -> None:
        super()._start_attempt(endpoint, now)
        assert self._attempt is not None  # noqa: S101 - just started
        self._attempt.limit = self._deadline if self._is_limited else None
        if self._idle is not None:
            self._idle.begin()

    def _settle(self, code: grpc.StatusCode, details: str | None = None) -> None:
        if self._idle is not None:
            self._idle.stop()
        super()._settle(code, details)


class _BoundedRequests(_Bounded, StreamRequest):
    """One with messages to send, which count when they are pulled from the user's iterator."""

    def _serializer(self) -> Callable[[Any], bytes]:
        # Grpc holds what pulls them, which must not hold the call: its user may forget it.
        serialize, who = super()._serializer(), weakref.ref(self)

        def pass_on(message: Any) -> bytes:
            call = who()
            if call is not None and call._idle is not None:  # noqa: SLF001 - its own
                call._idle.passed()  # noqa: SLF001 - its own
            return serialize(message)

        return pass_on

    async def _send(self, step: Callable[[Any], Awaitable[None]]) -> None:
        await super()._send(step)
        if self._idle is not None:
            self._idle.passed()


class _BoundedAnswers(_Bounded, StreamResponse):
    """One with messages to read: unless it is being read, one may have come."""

    def may_idle(self) -> bool:
        """Return whether time counts: not while the user asks for nothing."""
        return self._receiving and super().may_idle()

    async def receive(self) -> Any:
        """Return the next message, and count the time until it comes."""
        if self._idle is None or self._receiving or self._done:
            return await super().receive()
        self._idle.begin()
        message = await super().receive()
        self._idle.passed()
        return message


class BoundedUnaryStreamCall(_BoundedAnswers, UnaryStreamCall):
    """One request, a stream of answers, with bounds."""


class BoundedStreamUnaryCall(_BoundedRequests, StreamUnaryCall):
    """A stream of requests, one answer, with bounds."""


class BoundedStreamStreamCall(_BoundedRequests, _BoundedAnswers, StreamStreamCall):
    """A stream of requests, a stream of answers, with bounds."""

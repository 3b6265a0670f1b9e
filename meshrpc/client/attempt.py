"""An attempt: one try of a call at one endpoint, and what its end means.

Every attempt is finished exactly once, from grpc's own done callback, whatever ended it:
an answer, an error, a cancellation, a lost connection. The status is read from the call inside
that callback (`code().send(None)` returns at once, for it is known), so that a call which
succeeds costs no task.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from meshrpc.client.endpoint import Endpoint
from meshrpc.client.local_error import CANCELLED_HERE
from meshrpc.clock import Clock
from meshrpc.resilience.outcome import Outcome, classify
from meshrpc.resilience.retry import has_broken
from meshrpc.wire import DRAIN, LOAD_REPORT, Metadata

_WRITE_BROKE = 'Failed "execute_batch"'
"""How grpcio explains the INTERNAL that it reports when a message could not be written: before it
knows the status that the call really ended with, or over it."""

_EARLY = 0.05
"""Seconds by which grpc's clock may be ahead of this one when it ends an attempt."""

_LOOK_EVERY = 0.005
_LOOKS = 200
"""Seconds between looks for the real status, and how many; grpcio need not call back again."""

T = TypeVar("T")


class Caller(Protocol):
    """The logical call that an attempt belongs to."""

    def on_attempt_done(self, attempt: Attempt) -> None:
        """Decide what follows; called exactly once for each attempt."""
        ...


def known(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that needs not wait for it."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("the call is not over yet")


class Attempt:
    """One try at one endpoint.

    `code` and `details` are its status, once it is over, `outcome` what that says of the endpoint,
    and `error` the same as grpcio raises it, if it is one. `status` is all that grpcio said of the
    end, good or bad, where it may say something else later. Then one of these may hold:
    `cancelled`, this side ended it; `interrupted`, it did so without being asked, because its
    endpoint was closed or it has `expired`; `raised`, an interceptor raised something that is no
    status; `outlived`, it lasted to its `limit`, until when the policy lets a stream last, which is
    nobody's fault.
    """

    __slots__ = (
        "_caller",
        "_clock",
        "_ended",
        "_keep",
        "_sampled",
        "_started",
        "bounded",
        "cancelled",
        "code",
        "details",
        "endpoint",
        "error",
        "expired",
        "generation",
        "inner",
        "interrupted",
        "limit",
        "outcome",
        "outlived",
        "raised",
        "status",
    )

    def __init__(
        self, endpoint: Endpoint, caller: Caller, clock: Clock, *, sampled: bool, bounded: bool
    ) -> None:
        """`sampled`: its duration is a latency; `bounded`: by `per_attempt_timeout`."""
        self.endpoint = endpoint
        self.bounded = bounded
        self.inner: Any = None
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.outcome: Outcome | None = None
        self.generation = endpoint.health.generation
        self.error: grpc.aio.AioRpcError | None = None
        self.status: grpc.aio.AioRpcError | None = None
        self.cancelled = False
        self.expired = False
        self.interrupted = False
        self.limit: float | None = None
        self.outlived = False
        self.raised = False
        self._clock = clock
        self._sampled = sampled
        self._started = clock.now()
        # Grpc holds the done callback until the call is over. Were the caller held with it, a
        # stream that its user forgot could never be collected, nor be cancelled for that.
        self._caller = weakref.ref(caller)
        self._keep: Caller | None = None
        self._ended: asyncio.Event | None = None

    def keep(self, caller: Caller) -> None:
        """Hold the caller until the attempt is over: somebody waits for it by callback."""
        if self.code is None:
            self._keep = caller

    def start(self, inner: Any) -> None:
        """Count the attempt as pending at its endpoint until `inner` is over."""
        self.inner = inner
        self.endpoint.start(inner, self._started, timed=self._sampled)
        inner.add_done_callback(self._on_done)

    async def expire_after(self, seconds: float) -> None:
        """End the attempt with DEADLINE_EXCEEDED when `seconds` have passed on its clock.

        Grpc does so by itself, but only by the system's clock.
        """
        await self._clock.sleep(seconds)
        self.expired = True
        self.cancel()

    async def over(self) -> None:
        """Return when the status is known."""
        if self.code is None:
            self._ended = self._ended or asyncio.Event()
            await self._ended.wait()

    def answered(self) -> None:
        """Take note that the first message of a stream has come."""
        self.endpoint.answered(self._clock.now(), self.generation)

    def cancel(self) -> None:
        """End the attempt: this side gave it up."""
        try:
            self.inner.cancel()
            over = self.inner.done()
        except Exception as error:  # noqa: BLE001 - an interceptor answered by itself: no call
            self.break_off(error)
            return
        if over and self.code is None:  # only its real status is still looked for
            self._on_done(self.inner, looks=0)

    def trailers(self) -> Metadata:
        """Return the trailing metadata of an attempt that is over."""
        error = self.error
        return () if error is None else tuple(error.trailing_metadata() or ())

    def _on_done(self, inner: Any, looks: int = _LOOKS) -> None:
        if self.code is not None:
            return  # grpcio may call back once more for a message that could not be written
        code = self._read_status(inner)
        if code is grpc.StatusCode.INTERNAL and self._is_premature() and looks:
            loop = asyncio.get_running_loop()
            loop.call_later(_LOOK_EVERY, self._on_done, inner, looks - 1)
            return
        self._finish(code)

    def check(self) -> None:
        """End the attempt if it has no call that ever will: an interceptor answered by itself."""
        try:
            self.inner.done()
        except Exception as error:  # noqa: BLE001 - grpcio's, which asks the call that is not there
            self.break_off(error)

    def break_off(self, error: Exception) -> None:
        """End the attempt for something that was raised in it without ending it."""
        if self.code is not None:
            return
        self._blame(error)
        self._finish(grpc.StatusCode.UNKNOWN)
        with contextlib.suppress(Exception):  # grpcio before 1.83 raises the same once more
            self.inner.cancel()

    def _finish(self, code: grpc.StatusCode) -> None:
        self.code = code
        now = self._clock.now()
        if self.limit is not None and code is grpc.StatusCode.DEADLINE_EXCEEDED:
            # By the time, not the text: handlers pass on what a call of their own ended with.
            self.outlived = now >= self.limit - _EARLY
        answered = not (self.cancelled or self.raised or self.outlived)
        self.outcome = classify(code, self.details) if answered else Outcome.ABANDONED
        latency = now - self._started if self._sampled and not self.raised else None
        if self.endpoint.reads_reports and answered:
            self._read_report(now)
        self.endpoint.finish(
            self.inner,
            self.outcome,
            now,
            started=self._started,
            timed=self._sampled,
            latency=latency,
            generation=self.generation,
        )
        if self._ended is not None:
            self._ended.set()
        caller, self._keep = self._caller(), None
        if caller is not None:
            caller.on_attempt_done(self)

    def _read_status(self, inner: Any) -> grpc.StatusCode:
        self.error, self.status, self.details = None, None, ""  # those of an earlier look
        try:
            code: grpc.StatusCode = known(inner.code())
            if code is grpc.StatusCode.OK and self._sampled:
                return code  # of a unary call: it has nothing left that could fail
            details, trailers = known(inner.details()) or "", known(inner.trailing_metadata())
            if self.endpoint.is_leaving and has_broken(code, details):
                # A server that hangs up while it is written to resets the connection, and then its
                # last words are lost.
                trailers = grpc.aio.Metadata(*(trailers or ()), (DRAIN, "1"))
            self.status = grpc.aio.AioRpcError(
                code,
                known(inner.initial_metadata()),
                trailers,
                details,
                known(inner.debug_error_string()),
            )
            if code is grpc.StatusCode.OK:
                return code
            self.error, self.details = self.status, self.status.details() or ""
        except Exception as error:  # noqa: BLE001 - the interceptor's; whoever awaits gets it
            self._blame(error)
            return grpc.StatusCode.UNKNOWN
        self.cancelled = code is grpc.StatusCode.CANCELLED and self.details == CANCELLED_HERE
        if self.cancelled and self.expired:
            self.cancelled, self.interrupted = False, True
            self.details = "Deadline Exceeded"
            return grpc.StatusCode.DEADLINE_EXCEEDED
        if self.cancelled and self.endpoint.closing:
            self.interrupted = True
            self.details = f"the connection to {self.endpoint.instance.id} was closed"
            return grpc.StatusCode.UNAVAILABLE
        return code

    def _read_report(self, now: float) -> None:
        """Hand on what the instance reports of its load, if it does."""
        with contextlib.suppress(Exception):  # an interceptor answered by itself: no trailers
            for key, value in known(self.inner.trailing_metadata()) or ():
                if key == LOAD_REPORT and isinstance(value, bytes):
                    self.endpoint.reported(value, now)

    def _blame(self, error: Exception) -> None:
        self.raised = True
        self.details = f"{type(error).__name__} was raised: {error}"

    def _is_premature(self) -> bool:
        return self.error is not None and (self.error.debug_error_string() or "").startswith(
            _WRITE_BROKE
        )

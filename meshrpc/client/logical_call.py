"""A logical call: what its user started, over as many attempts as it takes.

A call is started when it is made. With an endpoint ready, its first attempt goes out at once
and nothing else happens until that is over: no task, no lock. Only when there is no endpoint
yet, or an attempt failed and another is due, a task (`_next`) waits for what is missing and
starts the attempt. Whoever awaits the call waits for `_next`, then for the attempt, and starts
over if meanwhile another one was due.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from opentelemetry.trace import Span

from meshrpc import wire
from meshrpc.client.attempt import Attempt
from meshrpc.client.destination import Destination, local_error
from meshrpc.client.endpoint import Endpoint
from meshrpc.policy.table import MethodPolicy
from meshrpc.registry.instance import Instance
from meshrpc.resilience.retry import backoff, may_retry, read_failure
from meshrpc.telemetry import tracing

if TYPE_CHECKING:
    from meshrpc.client.channel import Method

_CANCELLED_DETAILS = "Locally cancelled by application!"
_OK = grpc.StatusCode.OK
_CANCELLED = grpc.StatusCode.CANCELLED

T = TypeVar("T")


class LogicalCall:
    """What the four kinds of call share: one call, its attempts one after another."""

    _kind: str
    _sampled = False
    _held = False
    """Whether the call lives on without anybody holding it, as grpcio's unary calls do."""

    def __init__(
        self,
        destination: Destination,
        method: Method,
        policy: MethodPolicy,
        span: Span,
        *,
        deadline: float | None,
        metadata: wire.Metadata,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> None:
        self._destination = destination
        self._method = method
        self._policy = policy
        self._span = span
        self._deadline = deadline
        self._metadata = metadata
        self._options = {
            "credentials": credentials,
            "wait_for_ready": wait_for_ready,
            "compression": compression,
        }
        self._attempt: Attempt | None = None
        self._next: asyncio.Task[None] | None = None
        self._error: grpc.aio.AioRpcError | None = None
        self._tried: list[Endpoint] = []
        self._cancel_asked = False
        self._done = False
        self._callbacks: list[Callable[[Any], None]] = []
        destination.budget.deposit()

    def _begin(self) -> None:
        """Start: at once on a ready endpoint, else as soon as there is one."""
        now = self._destination.clock.now()
        if self._deadline is not None and self._deadline <= now:
            self._fail(
                local_error(
                    grpc.StatusCode.DEADLINE_EXCEEDED, "deadline passed before the call was sent"
                )
            )
            return
        endpoint = self._destination.pick(now)
        if endpoint is None:
            self._schedule(0.0)
            return
        try:
            self._start_attempt(endpoint, now)
        except BaseException:
            tracing.end_client_span(self._span, grpc.StatusCode.INTERNAL)
            raise

    def __repr__(self) -> str:
        state = "done" if self._done else "running"
        return f"<{type(self).__name__} {self._method.path} {state} attempts={len(self._tried)}>"

    # What the four kinds fill in.

    def _invoke(self, endpoint: Endpoint, **options: Any) -> Any:
        raise NotImplementedError

    def _repeatable(self) -> bool:
        """Return whether another attempt could send, and its user see, the same again."""
        return True

    def _raise_request_error(self) -> None:
        """Raise what the user's request iterator raised, if it did."""

    # Attempts.

    def _start_attempt(self, endpoint: Endpoint, now: float) -> None:
        timeout = None if self._deadline is None else self._deadline - now
        bound = self._policy.retry.per_attempt_timeout
        bounded = bound is not None and self._sampled and (timeout is None or bound < timeout)
        attempt = Attempt(
            endpoint, self, self._destination.clock, sampled=self._sampled, bounded=bounded
        )
        inner = self._invoke(
            endpoint,
            timeout=bound if bounded else timeout,
            metadata=self._metadata + endpoint.metadata,
            **self._options,
        )
        self._tried.append(endpoint)
        self._attempt = attempt
        if self._held or self._callbacks:
            attempt.keep(self)
        attempt.start(inner)

    def on_attempt_done(self, attempt: Attempt, code: grpc.StatusCode) -> None:
        """Start another attempt where one is due; otherwise the call is over."""
        if code is _OK:
            self._settle(code)
            return
        if self._cancel_asked or (attempt.inner.cancelled() and not attempt.interrupted):
            self._settle(_CANCELLED)
            return
        details, trailers = attempt.details(), attempt.trailers()
        if attempt.interrupted:
            details = f"the connection to {attempt.endpoint.instance.id} was closed"
        if not self._retry(attempt, code, details, trailers):
            if attempt.interrupted:
                self._error = local_error(code, details)
            self._settle(code, details)

    def _retry(
        self, attempt: Attempt, code: grpc.StatusCode, details: str, trailers: wire.Metadata
    ) -> bool:
        destination, retry = self._destination, self._policy.retry
        now = destination.clock.now()
        timed_out = attempt.bounded and code is grpc.StatusCode.DEADLINE_EXCEEDED
        # A server that stops drops what waits in its accept queue with CANCELLED; nobody here
        # cancelled, so it means the same as UNAVAILABLE.
        effective = grpc.StatusCode.UNAVAILABLE if code is _CANCELLED else code
        failure = read_failure(effective, details, trailers, timed_out=timed_out)
        attempts = len(self._tried)
        if not self._repeatable() or not may_retry(
            retry, failure, attempts=attempts, idempotent=self._policy.idempotent
        ):
            return False
        wait = backoff(retry.backoff, failure, retry=attempts, rng=destination.rng)
        if self._deadline is not None and now + wait >= self._deadline:
            return False
        if not destination.budget.withdraw(now):
            return False
        tracing.record_attempt(self._span, attempt.endpoint.instance.id, code)
        self._schedule(wait)
        return True

    def _schedule(self, wait: float) -> None:
        self._next = asyncio.get_running_loop().create_task(
            self._start_next(wait), context=contextvars.Context()
        )

    async def _start_next(self, wait: float) -> None:
        destination = self._destination
        try:
            if wait > 0:
                await destination.clock.sleep(wait)
            endpoint = await destination.wait_for_endpoint(
                self._deadline,
                wait_for_ready=bool(self._options["wait_for_ready"]),
                tried=self._tried,
            )
            self._next = None
            self._start_attempt(endpoint, destination.clock.now())
        except grpc.aio.AioRpcError as error:
            self._next = None
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must learn it
            self._next = None
            self._fail(local_error(grpc.StatusCode.INTERNAL, f"cannot start the call: {error}"))
        except asyncio.CancelledError:
            self._next = None
            self._fail(
                local_error(_CANCELLED, _CANCELLED_DETAILS)
                if self._cancel_asked
                else local_error(grpc.StatusCode.UNAVAILABLE, "the mesh was left")
            )

    def _fail(self, error: grpc.aio.AioRpcError) -> None:
        """End the call with an error of this client's own."""
        self._error = error
        self._settle(error.code(), error.details())

    def _settle(self, code: grpc.StatusCode, details: str | None = None) -> None:
        self._done = True
        instance = self._tried[-1].instance.id if self._tried else None
        tracing.end_client_span(self._span, code, instance, details)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    async def _current(self) -> Any:
        """Return grpc's call of the attempt that counts now, waiting until there is one."""
        while self._next is not None:
            await asyncio.wait((self._next,))
        if self._error is not None:
            if self._cancel_asked:
                raise asyncio.CancelledError
            raise self._error
        assert self._attempt is not None  # noqa: S101 - begun, and not failed
        return self._attempt.inner

    def _superseded(self, inner: Any) -> bool:
        """Return whether an error of `inner` is not the call's last word."""
        if self._next is not None or self._attempt is None or self._attempt.inner is not inner:
            return True
        return self._error is not None

    # grpc.aio.RpcContext and grpc.aio.Call.

    def cancelled(self) -> bool:
        """Return whether this side cancelled the call."""
        return self._done and self._cancel_asked

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
            self._next.cancel()
        elif self._attempt is not None:
            self._attempt.inner.cancel()
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(call)` when the call is over; at once when it is."""
        if self._done:
            callback(self)
            return
        self._callbacks.append(callback)
        if self._attempt is not None:
            self._attempt.keep(self)

    def peer(self) -> Instance | None:
        """Return the instance of the last attempt; None before the first."""
        return self._attempt.endpoint.instance if self._attempt is not None else None

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Return what the server sent ahead of its answer."""
        return await self._ask(
            lambda inner: inner.initial_metadata(), lambda error: error.initial_metadata()
        )

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Return what the server sent after its answer."""
        return await self._ask(
            lambda inner: inner.trailing_metadata(), lambda error: error.trailing_metadata()
        )

    async def code(self) -> grpc.StatusCode:
        """Return the status code, when the call is over."""
        return await self._ask(lambda inner: inner.code(), lambda error: error.code())

    async def details(self) -> str:
        """Return the status details, when the call is over."""
        return await self._ask(lambda inner: inner.details(), lambda error: error.details())

    async def debug_error_string(self) -> str:
        """Return grpcio's own account of an error, when the call is over."""
        return await self._ask(
            lambda inner: inner.debug_error_string(), lambda error: error.debug_error_string()
        )

    async def wait_for_connection(self) -> None:
        """Wait until the call is on its way to an instance."""
        inner = await self._current()
        await inner.wait_for_connection()

    async def _ask(
        self, ask: Callable[[Any], Awaitable[T]], recall: Callable[[grpc.aio.AioRpcError], Any]
    ) -> T:
        while True:
            while self._next is not None:
                await asyncio.wait((self._next,))
            if self._error is not None:
                recalled: T = recall(self._error)
                return recalled
            assert self._attempt is not None  # noqa: S101 - begun, and not failed
            inner = self._attempt.inner
            answer = await ask(inner)
            if not self._superseded(inner):
                return answer

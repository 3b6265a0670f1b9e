"""A logical call: what its user started, over as many attempts as it takes.

A call is started when it is made. With an endpoint ready, its first attempt goes out at once
and nothing else happens until that is over: no task, no lock. Only when there is no endpoint
yet, or an attempt failed and another is due, a task (`_next`) waits for what is missing and
starts the attempt. How it ends is in `ending.py`, how a user waits for all that in `waiting.py`.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import grpc
import grpc.aio
from opentelemetry.trace import Span

from meshrpc import wire
from meshrpc.client.aim import Aim
from meshrpc.client.attempt import Attempt
from meshrpc.client.destination import Destination
from meshrpc.client.ending import EndingCall
from meshrpc.client.endpoint import Endpoint
from meshrpc.client.intercepted import adding
from meshrpc.client.local_error import (
    broken,
    cancelled_here,
    cannot_start,
    left,
    local_error,
    refused,
)
from meshrpc.client.method import Method
from meshrpc.client.next_attempt import Reference, after_wait, fail_with, wait_for_next
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.policy.model import Fault
from meshrpc.policy.table import MethodPolicy
from meshrpc.registry.instance import Instance
from meshrpc.resilience.retry import Failure, pause_before_retry, read_failure
from meshrpc.telemetry import tracing

_OK = grpc.StatusCode.OK
_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
_CANCELLED = grpc.StatusCode.CANCELLED


class LogicalCall(EndingCall):
    """What the four kinds of call share: one call, its attempts one after another."""

    _kind: str
    _sampled = False
    _received = False
    """Whether a message has come; only streams receive one before they are over."""
    _held = False
    """Whether the call lives on without anybody holding it, as grpcio's unary calls do."""
    owner: Any = None
    """The channel: it stays open as long as any call of it is held."""
    _channel: ClassVar[None] = None
    """Grpcio before 1.83, when it closes a channel, asks each call that any task is in for its
    channel, and stumbles over those that have none."""

    def __init__(
        self,
        destination: Destination,
        method: Method,
        policy: MethodPolicy,
        span: Span,
        *,
        deadline: float | None,
        metadata: wire.Metadata,
        added: wire.Metadata,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
        aim: Aim,
        serving: ServerCall | None,
    ) -> None:
        self._destination = destination
        self._method = method
        self._policy = policy
        self._span = span
        self._deadline = deadline
        self._metadata = metadata
        self._added = added
        self._aim = aim
        self._serving = serving
        self._wait_for_ready = wait_for_ready
        self._options = {"credentials": credentials, "compression": compression}
        self._attempt: Attempt | None = None
        self._next: asyncio.Task[None] | None = None
        self._error: grpc.aio.AioRpcError | None = None
        self._tried: list[Endpoint] = []
        self._cancel_asked = False
        self._cancelled = False
        self._done = False
        self._is_counted = False
        # A later attempt is as much the request's as the first: what interceptors and request
        # iterators read from the context must be there.
        self._context = contextvars.copy_context()
        self._callbacks: list[Callable[[Any], None]] = []

    def _begin(self) -> None:
        """Start: at once on a ready endpoint, else as soon as there is one."""
        now = self._destination.clock.now()
        if self._is_too_late(now) or self._is_refused(now):
            return
        policy = self._policy
        if policy.fault is not None and self._is_faulted(policy.fault):
            return
        repeatable = self._sampled and policy.idempotent and policy.retry.attempts > 1
        endpoint = self._destination.pick(now, self._aim, repeatable=repeatable)
        if endpoint is None:
            self._schedule(0.0)
            return
        try:
            self._start_attempt(endpoint, now)
        except BaseException:
            self._done = True
            self._count_out()
            tracing.end_client_span(self._span, grpc.StatusCode.INTERNAL)
            raise

    def _is_too_late(self, now: float) -> bool:
        """Fail if the deadline has passed: an endpoint is not asked, and not blamed, for that."""
        if self._deadline is None or self._deadline > now:
            return False
        self._fail(
            local_error(
                grpc.StatusCode.DEADLINE_EXCEEDED, "deadline passed before the call was sent"
            )
        )
        return True

    def _is_refused(self, now: float) -> bool:
        """Fail if the service has too much to do already, or more than this process may ask of it."""
        destination = self._destination
        refusal = destination.control.admit(now)
        if refusal is None:
            self._is_counted = True
            return False
        self._blame_dependency()
        self._fail(refused(destination.service, refusal))
        return True

    def _is_faulted(self, fault: Fault) -> bool:
        """Delay the call or fail it, or both, if its route's fault says so."""
        destination = self._destination
        injection = destination.faults.draw(fault, destination.rng)
        if injection is None:
            return False
        error = None
        if injection.abort is not None:
            why = f"aborted by the fault of route {self._policy.route!r}"
            error = local_error(injection.abort, why)
        if error is not None and not injection.delay:
            destination.faults.end()
            self._fail(error)
            return True
        delay, left = injection.delay, self.time_remaining()
        if left is not None and left <= delay:
            delay, error = left, None  # its deadline is looked at when the wait is over
        self._schedule(delay, error)
        assert self._next is not None  # noqa: S101 - it waits
        self._next.add_done_callback(lambda _: destination.faults.end())
        return True

    def __repr__(self) -> str:
        state = "done" if self._done else "running"
        return f"<{type(self).__name__} {self._method.path} {state} attempts={len(self._tried)}>"

    # What the four kinds fill in.

    def _invoke(self, endpoint: Endpoint, **options: Any) -> Any:
        raise NotImplementedError

    def _repeatable(self, attempt: Attempt) -> bool:  # noqa: ARG002 - for those that need it
        """Return whether an attempt after this one could send, and its user see, the same."""
        return True

    def _raise_cause(self) -> None:
        """Raise what grpcio cancelled the call for by itself, if it did."""

    def _offer_copy(self) -> None:
        """Let the route's mirror have a copy of the call, which has gone out."""

    # Attempts.

    def _start_attempt(self, endpoint: Endpoint, now: float) -> None:
        timeout = None if self._deadline is None else self._deadline - now
        bound = self._policy.retry.per_attempt_timeout
        bounded = bound is not None and self._sampled and (timeout is None or bound < timeout)
        attempt = Attempt(
            endpoint, self, self._destination.clock, sampled=self._sampled, bounded=bounded
        )
        if bounded:
            timeout = bound
        try:
            inner = self._launch(endpoint, timeout)
        except BaseException:
            endpoint.spare(now)
            raise
        self._tried.append(endpoint)
        self._attempt = attempt
        if self._held or self._callbacks:
            attempt.keep(self)
        attempt.start(inner)
        if self._policy.mirror is not None and len(self._tried) == 1:
            self._offer_copy()
        if timeout is not None:
            self._destination.expire(attempt, timeout)

    def _launch(self, endpoint: Endpoint, timeout: float | None) -> Any:
        """Start grpc's call at an endpoint, with the metadata of all parties.

        Grpc is not told of `wait_for_ready`: it would wait for the one endpoint it was given,
        whoever else is ready. Interceptors are, and `intercepted` keeps it from going further.
        """
        if self._method.intercepted:
            with adding(self._added + endpoint.metadata):
                return self._invoke(
                    endpoint,
                    timeout=timeout,
                    metadata=self._metadata,
                    wait_for_ready=self._wait_for_ready,
                    **self._options,
                )
        own = self._metadata + self._added
        metadata = own + endpoint.metadata if own else endpoint.grpc_metadata
        return self._invoke(endpoint, timeout=timeout, metadata=metadata, **self._options)

    def on_attempt_done(self, attempt: Attempt) -> None:
        """Start another attempt where one is due; otherwise the call is over."""
        code = attempt.code
        assert code is not None  # noqa: S101 - it is over
        if self._done:
            return  # a stream that was collected
        if code is _OK or attempt.raised:
            self._settle(code, attempt.details)
        elif self._cancel_asked or (attempt.cancelled and not attempt.interrupted):
            self._cancelled = True
            if not attempt.cancelled:  # something else ended it, and was not the call's end
                self._error = cancelled_here()
            self._settle(_CANCELLED)
        elif attempt.interrupted and self._destination.closed:
            self._fail(left() if self._received else left(attempt.endpoint.id))
        else:
            timed_out = attempt.bounded and code is grpc.StatusCode.DEADLINE_EXCEEDED
            failure = read_failure(code, attempt.details, attempt.trailers(), timed_out=timed_out)
            if not self._retry(attempt, code, failure):
                self._fail_for_good(attempt, code, failure)

    def _fail_for_good(self, attempt: Attempt, code: grpc.StatusCode, failure: Failure) -> None:
        is_closed = attempt.interrupted and code is _UNAVAILABLE
        if (failure.broken or is_closed) and not self._received:
            said = None if attempt.interrupted else attempt.error
            self._fail(broken(code, attempt.details, attempt.endpoint.id, said))
            return
        if attempt.interrupted:
            self._error = local_error(code, attempt.details)
        self._settle(code, attempt.details)

    def _retry(self, attempt: Attempt, code: grpc.StatusCode, failure: Failure) -> bool:
        destination = self._destination
        if destination.closed:
            return False
        now = destination.clock.now()
        if failure.untrusted:
            attempt.endpoint.distrust(attempt.details)
        if not self._repeatable(attempt):
            return False
        if failure.not_sent and self._wait_for_ready:
            self._schedule(0.0)  # it goes on waiting for whoever is ready
            return True
        if failure.not_sent and destination.is_unreachable(self._aim):
            return False  # the others could only say the same
        wait = pause_before_retry(
            self._policy.retry,
            failure,
            attempts=len(self._tried),
            idempotent=self._policy.idempotent,
            remaining=None if self._deadline is None else self._deadline - now,
            rng=destination.rng,
        )
        if wait is None:
            return False
        # Nobody is overloaded by a call that came to the wrong address: the first time it goes on for
        # nothing, as what was never sent does in gRFC A6.
        is_free = failure.misdirected and len(self._tried) == 1
        if not is_free and not destination.control.budget.withdraw(now):
            return False
        tracing.record_attempt(self._span, attempt.endpoint.instance.id, code)
        self._schedule(wait)
        return True

    def _schedule(self, pause: float, error: grpc.aio.AioRpcError | None = None) -> None:
        """Go on after a pause: with an attempt as soon as there is an endpoint, or with an error."""
        destination = self._destination
        find = partial(
            destination.wait_for_endpoint,
            self._deadline,
            wait_for_ready=bool(self._wait_for_ready),
            tried=self._tried,
            aim=self._aim,
        )
        if error is not None:
            find = partial(fail_with, error)
        # Like an attempt, the wait does not hold a stream that its user may forget.
        who: Reference = (lambda: self) if self._held or self._callbacks else weakref.ref(self)
        waiting = wait_for_next(who, partial(destination.clock.sleep, pause), find)
        self._next = destination.wait(waiting, self._context.copy())
        self._next.add_done_callback(partial(after_wait, who))

    def go_on(self, found: Endpoint | grpc.aio.AioRpcError) -> None:
        """Start an attempt on the endpoint that was waited for, or fail for want of one."""
        self._next = None
        if isinstance(found, grpc.aio.AioRpcError):
            self._fail(found)
            return
        now = self._destination.clock.now()
        try:
            if self._is_too_late(now):
                found.spare(now)
            else:
                self._start_attempt(found, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must learn it
            self._fail(cannot_start(error))

    def on_wait_ended(self, task: asyncio.Task[None]) -> None:
        """Fail if the wait ended without a word to the call."""
        if self._next is not task:
            return
        self._next = None
        error = None if task.cancelled() else task.exception()
        # It was cancelled by whoever ends the destination or the loop.
        self._fail(left() if error is None else cannot_start(error))

    def peer(self) -> Instance | None:
        """Return the instance of the last attempt; None before the first."""
        return self._attempt.endpoint.instance if self._attempt is not None else None

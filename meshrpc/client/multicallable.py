"""Multicallables: what a stub's methods are, one class for each of gRPC's four kinds.

Each turns its arguments into a call that has started: it finds the policy of its method, works
out the deadline, starts the span, and leaves the rest to the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from meshrpc.client.aim import take_aim
from meshrpc.client.call import (
    StreamStreamCall,
    StreamUnaryCall,
    UnaryStreamCall,
    UnaryUnaryCall,
)
from meshrpc.client.call_options import CALL_OPTIONS
from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import Dialing
from meshrpc.client.hedging import HedgedCall
from meshrpc.client.method import Method
from meshrpc.client.stream_bounds import (
    BoundedStreamStreamCall,
    BoundedStreamUnaryCall,
    BoundedUnaryStreamCall,
)
from meshrpc.client.waiting import AwaitableCall
from meshrpc.interceptors.server_call import CURRENT, ServerCall
from meshrpc.metadata import checked
from meshrpc.policy.table import MethodRoutes, PolicyTable
from meshrpc.telemetry import tracing
from meshrpc.wire import CRITICALITY, Criticality, Metadata

_LONGEST = 8760 * 3600.0
"""A year, as in policies: grpcio turns much longer timeouts into ones that have already passed."""


class Caller(Protocol):
    """The channel, as its multicallables need it."""

    dialing: Dialing

    def bound(self) -> Destination:
        """Return the destination that calls go to."""
        ...

    def track(self, call: AwaitableCall) -> None:
        """Remember a call, so that closing the channel can wait for it."""
        ...


class _MultiCallable:
    """What makes calls of one method."""

    _call: Callable[..., AwaitableCall]
    _special: Callable[..., AwaitableCall]
    """Makes a call whose policy has `hedge`, if it is unary, or `stream`, if it is not."""
    _unary = False
    """One request, one answer: it has the policy's timeout."""

    def __init__(self, channel: Caller, method: Method) -> None:
        self._channel = channel
        self._method = method
        self._table: PolicyTable | None = None
        self._routes: MethodRoutes

    def _start(
        self,
        request: Any,
        message: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> Any:
        """Start a call. `request` is what is sent, `message` what it was made of."""
        if credentials is not None and self._channel.dialing.credentials is None:
            raise grpc.aio.UsageError("Call credentials are only valid on secure channels")
        destination = self._channel.bound()
        table = destination.table
        if table is not self._table:
            self._routes, self._table = table.method(self._method.path), table
        pairs = checked(metadata) if metadata else ()
        policy = self._routes.fixed or self._routes.choose(pairs)
        serving, options = CURRENT.get(), CALL_OPTIONS.get()
        make = self._call
        if self._unary:
            if timeout is None:
                timeout = policy.timeout
            if policy.hedge is not None and options.retry:
                make = self._special
        elif policy.stream is not None:
            make = self._special
            if timeout is None:
                timeout = policy.stream.max
            else:
                policy = policy.timed
        deadline = _deadline(timeout, destination.clock.now(), serving)
        aim = take_aim(options, policy, table, message, pairs)
        added: Metadata = ()
        criticality = options.criticality or (serving and serving.criticality)
        if criticality and criticality is not Criticality.DEFAULT:
            added = ((CRITICALITY, criticality.value),)
        # Nothing fails between here and the call, which ends the span.
        span = tracing.start_client_span(self._method.path, destination.service)
        added += tracing.inject(span)
        if not options.retry:
            policy = policy.once
        call = make(
            request,
            destination,
            self._method,
            policy,
            span,
            deadline=deadline,
            metadata=pairs,
            added=added,
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
            aim=aim,
            serving=serving,
        )
        self._channel.track(call)
        return call


def _deadline(timeout: float | None, now: float, serving: ServerCall | None) -> float | None:
    """A call's own timeout, or the policy's; the handler's deadline caps both."""
    deadline = None if timeout is None else now + min(timeout, _LONGEST)
    if serving is not None and serving.deadline is not None:
        return serving.deadline if deadline is None else min(deadline, serving.deadline)
    return deadline


class _UnaryRequest(_MultiCallable):
    """Called with one request."""

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """Start a call; `timeout` in seconds."""
        data = self._method.serialize(request)
        return self._start(
            data, request, timeout, metadata, credentials, wait_for_ready, compression
        )


class _StreamRequest(_MultiCallable):
    """Called with an iterator of requests, or with none to write them one by one."""

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """Start a call; `timeout` in seconds."""
        return self._start(
            request_iterator, None, timeout, metadata, credentials, wait_for_ready, compression
        )


class UnaryUnary(_UnaryRequest, grpc.aio.UnaryUnaryMultiCallable):
    """Calls a method with one request and one answer."""

    _call = UnaryUnaryCall
    _special = HedgedCall
    _unary = True


class UnaryStream(_UnaryRequest, grpc.aio.UnaryStreamMultiCallable):
    """Calls a method with one request and a stream of answers."""

    _call, _special = UnaryStreamCall, BoundedUnaryStreamCall


class StreamUnary(_StreamRequest, grpc.aio.StreamUnaryMultiCallable):
    """Calls a method with a stream of requests and one answer."""

    _call, _special = StreamUnaryCall, BoundedStreamUnaryCall


class StreamStream(_StreamRequest, grpc.aio.StreamStreamMultiCallable):
    """Calls a method with streams both ways."""

    _call, _special = StreamStreamCall, BoundedStreamStreamCall

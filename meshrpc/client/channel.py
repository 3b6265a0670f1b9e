"""The channel: a `grpc.aio.Channel` to a service instead of to an address.

Read this first. One call goes: deadline, span, pick, start on the endpoint's own grpc channel,
finish. `Channel` makes multicallables; a multicallable turns a request into a call object
(`call.py`, `waiting.py`), which carries out its attempts (`logical_call.py`, `attempt.py`) at
endpoints (`endpoint.py`) that the destination (`destination.py`) offers. The channel may be made
before an event loop runs: it is bound to the mesh's destination by its first call.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any, Protocol, Self

import grpc
import grpc.aio

from meshrpc.client.call import (
    StreamStreamCall,
    StreamUnaryCall,
    UnaryStreamCall,
    UnaryUnaryCall,
)
from meshrpc.client.destination import Destination, local_error
from meshrpc.client.endpoint import READY, Dialing
from meshrpc.client.waiting import AwaitableCall
from meshrpc.interceptors.server_call import CURRENT
from meshrpc.metadata import checked
from meshrpc.policy.table import MethodPolicy, PolicyTable
from meshrpc.telemetry import tracing

_LONGEST = 86_400.0
"""A day: grpcio turns much longer timeouts into ones that have already passed."""


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise grpc.aio.UsageError(
            "a call needs a running event loop: make it in an async function (a synchronous "
            "handler runs in a thread, which has none)"
        ) from None


class Binding(Protocol):
    """The mesh, as a channel needs it."""

    def destination(self, channel: Channel) -> Destination:
        """Return the live destination of the channel's target, in the running loop.

        Raises:
            grpc.aio.UsageError: the mesh is not entered, or in another event loop.
        """
        ...

    async def release(self, channel: Channel) -> None:
        """Take note that the channel needs its destination no more."""
        ...


class Channel(grpc.aio.Channel):
    """A channel to a service of the mesh; generated stubs take it as it is."""

    def __init__(self, target: str, dialing: Dialing, binding: Binding) -> None:
        """Used by `Mesh.channel`."""
        self.target = target
        self.dialing = dialing
        self._binding = binding
        self._destination: Destination | None = None
        self._closed = False
        self._calls: weakref.WeakSet[AwaitableCall] = weakref.WeakSet()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Channel to {self.target!r} {state}>"

    def bound(self) -> Destination:
        """Return the destination that calls go to."""
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        destination = self._destination
        if destination is None or destination.loop is not _running_loop():
            # In another loop than the mesh's, this says so.
            destination = self._destination = self._binding.destination(self)
        return destination

    def unbind(self) -> None:
        """Forget the destination: the mesh was left."""
        self._destination = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Refuse further calls, and give those under way `grace` seconds to end."""
        if grace is not None and grace < 0:
            raise ValueError(f"grace must be non-negative, got {grace}")
        if self._closed:
            return
        self._closed = True
        running = [call for call in self._calls if not call.done()]
        if running and grace:
            waits = [asyncio.ensure_future(call.code()) for call in running]
            _, late = await asyncio.wait(waits, timeout=grace)
            for wait in late:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for call in running:
            call.cancel()
        if self._destination is not None:
            self._destination.wake()  # those who wait for the channel's state
            await self._binding.release(self)
            self._destination = None

    def track(self, call: AwaitableCall) -> None:
        """Remember a call, so that closing can wait for it."""
        self._calls.add(call)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return READY with any endpoint ready, else the most hopeful state among them."""
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        if self._destination is None and not try_to_connect:
            return grpc.ChannelConnectivity.IDLE
        return (self._destination or self.bound()).state()

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return once the state is another one."""
        while self.get_state() is last_observed_state:
            await self.bound().changed()

    async def channel_ready(self) -> None:
        """Return once an endpoint is ready."""
        # Bound anew each time: the channel may be closed, or the mesh left, meanwhile.
        while (destination := self.bound()).state() is not READY:
            await destination.changed()

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> UnaryUnary:
        """Return the multicallable of a method with one request and one answer."""
        return UnaryUnary(self, Method(method, request_serializer, response_deserializer))

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> UnaryStream:
        """Return the multicallable of a method with one request and a stream of answers."""
        return UnaryStream(self, Method(method, request_serializer, response_deserializer))

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> StreamUnary:
        """Return the multicallable of a method with a stream of requests and one answer."""
        return StreamUnary(self, Method(method, request_serializer, response_deserializer))

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> StreamStream:
        """Return the multicallable of a method with streams both ways."""
        return StreamStream(self, Method(method, request_serializer, response_deserializer))


class Method:
    """A method as a stub calls it: its path, and how its messages become bytes.

    Serialising is done here because grpcio's own fails silently: a serialiser that raises sends
    an empty message, a deserialiser that raises makes the call return None.
    """

    __slots__ = ("_deserializer", "_serializer", "path")

    def __init__(
        self,
        path: str,
        serializer: Callable[[Any], bytes] | None,
        deserializer: Callable[[bytes], Any] | None,
    ) -> None:
        self.path = path
        self._serializer = serializer
        self._deserializer = deserializer

    def serialize(self, message: Any) -> bytes:
        """Return the message as bytes; what the serialiser raises, this raises."""
        data = message if self._serializer is None else self._serializer(message)
        if not isinstance(data, bytes):
            raise TypeError(f"{self.path} sends bytes, not {type(data).__name__}")
        return data

    def deserialize(self, data: bytes) -> Any:
        """Return the message in `data`.

        Raises:
            grpc.aio.AioRpcError: INTERNAL, as in grpc's other languages, when it is none.
        """
        if self._deserializer is None:
            return data
        try:
            return self._deserializer(data)
        except Exception as error:
            raise local_error(
                grpc.StatusCode.INTERNAL, f"cannot read the answer of {self.path}: {error}"
            ) from error


class _MultiCallable:
    """What makes calls of one method."""

    _call: Callable[..., AwaitableCall]
    _unary = False

    def __init__(self, channel: Channel, method: Method) -> None:
        self._channel = channel
        self._method = method
        self._table: PolicyTable | None = None
        self._policy: MethodPolicy

    def _start(
        self,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> Any:
        destination = self._channel.bound()
        table = destination.table
        if table is not self._table:
            self._policy, self._table = table.method(self._method.path), table
        pairs = checked(metadata) if metadata else ()
        deadline = self._deadline(timeout, destination.clock.now())
        # Nothing fails between here and the call, which ends the span.
        span = tracing.start_client_span(self._method.path, destination.service)
        call = self._call(
            request,
            destination,
            self._method,
            self._policy,
            span,
            deadline=deadline,
            metadata=(*pairs, *tracing.inject(span)),
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )
        self._channel.track(call)
        return call

    def _deadline(self, timeout: float | None, now: float) -> float | None:
        """The caller's timeout wins over the policy's; the handler's deadline caps both."""
        if timeout is None and self._unary:
            timeout = self._policy.timeout
        deadline = None if timeout is None else now + min(timeout, _LONGEST)
        serving = CURRENT.get()
        if serving is not None and serving.deadline is not None:
            return serving.deadline if deadline is None else min(deadline, serving.deadline)
        return deadline


class UnaryUnary(_MultiCallable, grpc.aio.UnaryUnaryMultiCallable):
    """Calls a method with one request and one answer."""

    _call = UnaryUnaryCall
    _unary = True

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> UnaryUnaryCall:
        """Start a call; `timeout` in seconds."""
        data = self._method.serialize(request)
        call: UnaryUnaryCall = self._start(
            data, timeout, metadata, credentials, wait_for_ready, compression
        )
        return call


class UnaryStream(_MultiCallable, grpc.aio.UnaryStreamMultiCallable):
    """Calls a method with one request and a stream of answers."""

    _call = UnaryStreamCall

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> UnaryStreamCall:
        """Start a call; `timeout` in seconds."""
        data = self._method.serialize(request)
        call: UnaryStreamCall = self._start(
            data, timeout, metadata, credentials, wait_for_ready, compression
        )
        return call


class StreamUnary(_MultiCallable, grpc.aio.StreamUnaryMultiCallable):
    """Calls a method with a stream of requests and one answer."""

    _call = StreamUnaryCall

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> StreamUnaryCall:
        """Start a call; `timeout` in seconds."""
        call: StreamUnaryCall = self._start(
            request_iterator, timeout, metadata, credentials, wait_for_ready, compression
        )
        return call


class StreamStream(_MultiCallable, grpc.aio.StreamStreamMultiCallable):
    """Calls a method with streams both ways."""

    _call = StreamStreamCall

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> StreamStreamCall:
        """Start a call; `timeout` in seconds."""
        call: StreamStreamCall = self._start(
            request_iterator, timeout, metadata, credentials, wait_for_ready, compression
        )
        return call

"""The channel: a `grpc.aio.Channel` to a service instead of to an address.

Read this first. One call goes: deadline, span, pick, start on the endpoint's own grpc channel,
finish. `Channel` makes multicallables (`multicallable.py`); one turns a request into a call
object (`call.py`), which carries out its attempts (`logical_call.py`, `attempt.py`) at endpoints
(`endpoint.py`) that the destination (`destination.py`) offers. The channel may be made
before an event loop runs: it is bound to the mesh's destination by its first call.
"""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from typing import Any, Protocol, Self

import grpc
import grpc.aio

from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import READY, Dialing
from meshrpc.client.intercepted import InterceptedMethod, intercepted_kinds
from meshrpc.client.method import Method
from meshrpc.client.multicallable import StreamStream, StreamUnary, UnaryStream, UnaryUnary
from meshrpc.client.waiting import AwaitableCall


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise grpc.aio.UsageError(
            "a call needs a running event loop: make it in an async function (a synchronous "
            "handler runs in a thread, which has none)"
        ) from None


def _check(dialing: Dialing) -> None:
    """Raise what grpcio would, but only once an endpoint is dialled."""
    for key, value in dialing.options:
        if not isinstance(key, str) or not (
            isinstance(value, (str, bytes)) or hasattr(value, "__int__")
        ):
            raise TypeError(
                f"a channel option is a name with a number or text, not {(key, value)!r}"
            )
    if dialing.compression is not None and not isinstance(dialing.compression, int):
        raise ValueError(f"compression is one of grpc.Compression, not {dialing.compression!r}")


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

    def forget(self, target: str, dialing: Dialing, destination: Destination) -> None:
        """Take note that a channel that had this destination was dropped without closing it."""
        ...


class Channel(grpc.aio.Channel):
    """A channel to a service of the mesh; generated stubs take it as it is."""

    _destination: Destination | None = None

    def __init__(self, target: str, dialing: Dialing, binding: Binding) -> None:
        """Used by `Mesh.channel`."""
        _check(dialing)
        self.target = target
        self.dialing = dialing
        self._intercepted = intercepted_kinds(dialing.interceptors)
        self._binding = binding
        self._closing = False
        self._closed = False
        self._in_grace = False
        self._calls: weakref.WeakSet[AwaitableCall] = weakref.WeakSet()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Channel to {self.target!r} {state}>"

    def __del__(self) -> None:
        # As in grpcio. No call is under way: its stub and every call of it hold the channel. The
        # last reference may go in any thread, and in the middle of anything.
        destination = self._destination
        if destination is not None:
            with suppress(RuntimeError):  # the loop is closed, and all connections with it
                destination.loop.call_soon_threadsafe(
                    self._binding.forget, self.target, self.dialing, destination
                )

    def bound(self) -> Destination:
        """Return the destination that calls go to."""
        if self._closing:
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
        if self._closed or self._in_grace:
            return
        self._closing = True
        running = [call for call in self._calls if not call.done()]
        if running and grace:
            waits = [asyncio.ensure_future(call.code()) for call in running]
            self._in_grace = True
            try:
                await asyncio.wait(waits, timeout=grace)
            finally:
                self._in_grace = False  # whoever gave up waiting may close once more
                for wait in waits:
                    wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for call in running:
            call.cancel()
        self._closed = True
        destination, self._destination = self._destination, None
        if destination is not None:
            destination.wake()  # those who wait for the channel's state
            await asyncio.shield(self._binding.release(self))

    def track(self, call: AwaitableCall) -> None:
        """Remember a call, so that closing can wait for it; the call remembers the channel."""
        call.owner = self
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
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        if self._destination is None:
            self.bound()  # first: what it is bound to may be connected already, for another channel
        while self.get_state() is last_observed_state:
            await (self._destination or self.bound()).changed()

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
        made = self._method("unary_unary", method, request_serializer, response_deserializer)
        return UnaryUnary(self, made)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> UnaryStream:
        """Return the multicallable of a method with one request and a stream of answers."""
        made = self._method("unary_stream", method, request_serializer, response_deserializer)
        return UnaryStream(self, made)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> StreamUnary:
        """Return the multicallable of a method with a stream of requests and one answer."""
        made = self._method("stream_unary", method, request_serializer, response_deserializer)
        return StreamUnary(self, made)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> StreamStream:
        """Return the multicallable of a method with streams both ways."""
        made = self._method("stream_stream", method, request_serializer, response_deserializer)
        return StreamStream(self, made)

    def _method(self, kind: str, path: str | bytes, serializer: Any, deserializer: Any) -> Method:
        path = path.decode() if isinstance(path, bytes) else path
        made = InterceptedMethod if kind in self._intercepted else Method
        return made(path, serializer, deserializer)

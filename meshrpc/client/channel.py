"""The channel: a `grpc.aio.Channel` to a service instead of to an address.

Read this first. One call goes: deadline, span, pick, start on the endpoint's own grpc channel,
finish. `Channel` makes multicallables (`multicallable.py`); one turns a request into a call
object (`call.py`, `waiting.py`), which carries out its attempts (`logical_call.py`, `attempt.py`) at
endpoints (`endpoint.py`) that the destination (`destination.py`) offers. The channel may be made
before an event loop runs: it is bound to the mesh's destination by its first call.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, Protocol, Self

import grpc
import grpc.aio

from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import READY, Dialing
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

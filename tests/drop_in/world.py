"""The world of a scenario: a server, and channels to it as one of the two sides makes them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partialmethod
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from meshrpc import Mesh, Service
from meshrpc.clock import SystemClock
from meshrpc.registry.memory import MemoryRegistry
from tests.drop_in.handlers import KINDS, Behaviour, answering
from tests.drop_in.observations import begin

SERVICE = "drop.In"

T = TypeVar("T")


class World:
    """A server, and the means to make channels to it as one side does."""

    def __init__(self, side: str, *, warm: bool = False) -> None:
        """`warm`: `channel` is connected from the start; a scenario that makes its own is not."""
        self._side = side
        self._warm = warm
        self._exits = AsyncExitStack()
        self._handlers = Handlers()
        self._channel: grpc.aio.Channel | None = None
        self._mesh: Mesh
        self.server: grpc.aio.Server
        self.port = 0
        self.events: list[Any] = []
        """What happened, in order; part of the observations."""

    async def __aenter__(self) -> Self:
        self._reserved: socket.socket | None = None
        await self.start_server()
        if self._side == "meshrpc":
            self._mesh = Mesh("battery", control="none", registry=MemoryRegistry())
            await self._exits.enter_async_context(self._mesh)
        if self._warm:
            await self.channel.channel_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()
        if self._reserved is not None:
            self._reserved.close()

    async def start_server(self, *, options: Sequence[tuple[str, Any]] = ()) -> None:
        """Start the server, or another one in its place: on the same port, with what it answers."""
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *options])
        self.server.add_generic_rpc_handlers((self._handlers,))
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()
        self._exits.push_async_callback(self.server.stop, None)

    async def stop_server(self, grace: float | None = None) -> None:
        """Stop the server; until one is started again, connections to its port are refused."""
        await self.server.stop(grace)
        self._reserved = await _reserved(self.port)

    def closed_port(self) -> int:
        """Return a port where nobody listens, nor will as long as the world is there."""
        holder = self._exits.enter_context(socket.socket())
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        return port

    async def secure_server(self, credentials: grpc.ServerCredentials) -> int:
        """Start one more server with the same answers; return its port."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((self._handlers,))
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        self._exits.push_async_callback(server.stop, None)
        return port

    async def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter a context that is left with the world, after the channels made from now on."""
        return await self._exits.enter_async_context(context)

    async def serve(
        self,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        options: Sequence[tuple[str, Any]] = (),
        generic: grpc.GenericRpcHandler | None = None,
        **handlers: Any,
    ) -> Served:
        """Serve with a server that is the side's own, and return what calls it.

        `handlers` are one for each kind of call that is wanted: a function, or what grpcio's
        `..._rpc_method_handler` makes of one. The channel to it is grpcio's on both sides.
        """
        made = {
            kind: handler
            if isinstance(handler, grpc.RpcMethodHandler)
            else getattr(grpc, f"{kind}_rpc_method_handler")(handler)
            for kind, handler in handlers.items()
        }
        answers = generic or grpc.method_handlers_generic_handler(SERVICE, made)
        if self._side == "meshrpc":
            service = Service(
                "drop-in",
                control="none",
                registry=MemoryRegistry(),
                clock=_HastyClock(),
                interceptors=interceptors,
                options=options,
                grace=0.0,
            )
            service.add_generic_rpc_handlers((answers,))
            address = (await self._exits.enter_async_context(service)).address
        else:
            server = grpc.aio.server(
                interceptors=interceptors, options=[("grpc.so_reuseport", 0), *options]
            )
            server.add_generic_rpc_handlers((answers,))
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await server.start()
            self._exits.push_async_callback(server.stop, None)
        channel = grpc.aio.insecure_channel(address)
        return Served(await self._exits.enter_async_context(channel))

    async def served(self, behave: Behaviour, kind: str = "unary_unary", /, **options: Any) -> Any:
        """Call a server that is the side's own and answers as `answering` makes it; see `serve`."""
        server = await self.serve(**{kind: answering(kind, behave)})
        return server.start(kind, **options)

    @property
    def channel(self) -> grpc.aio.Channel:
        """A channel to the server, with nothing special about it."""
        if self._channel is None:
            self._channel = self.make_channel()
        return self._channel

    @property
    def channel_used(self) -> bool:
        """Whether anybody has asked for `channel`."""
        return self._channel is not None

    def make_channel(self, port: int | None = None, **arguments: Any) -> grpc.aio.Channel:
        """Make a channel to the server, or to another port; `arguments` as `insecure_channel` has.

        With `credentials` it is what `secure_channel` makes.
        """
        address = f"127.0.0.1:{self.port if port is None else port}"
        if self._side == "meshrpc":
            channel: grpc.aio.Channel = self._mesh.channel(f"static:{address}", **arguments)
        elif "credentials" in arguments:
            channel = grpc.aio.secure_channel(address, **arguments)
        else:
            channel = grpc.aio.insecure_channel(address, **arguments)
        self._exits.push_async_callback(channel.close)
        return channel

    def method(
        self,
        kind: str,
        behave: Behaviour,
        channel: grpc.aio.Channel | None = None,
        *,
        at_start: bool = False,
    ) -> Any:
        """Let the server answer a method of `kind` as `answering` makes it; see `unary_unary`."""
        return self._method(kind, answering(kind, behave, at_start=at_start), channel)

    def start(
        self, kind: str, behave: Behaviour, channel: grpc.aio.Channel | None = None, **options: Any
    ) -> Any:
        """Start a call of `kind` with the request b"request"; see `method`."""
        return begin(kind, self.method(kind, behave, channel), **options)

    def _method(
        self, kind: str, handler: Any, channel: grpc.aio.Channel | None = None, **codec: Any
    ) -> Any:
        path = self._handlers.add(kind, handler)
        return getattr(channel or self.channel, kind)(path, **codec)

    unary_unary = partialmethod(_method, "unary_unary")
    """Let the server answer a method with a handler; return the method as a stub has it.

    Over another channel if one is given, and with its serialiser and deserialiser, by keyword.
    """
    unary_stream = partialmethod(_method, "unary_stream")
    stream_unary = partialmethod(_method, "stream_unary")
    stream_stream = partialmethod(_method, "stream_stream")

    def note(self, event: Any) -> None:
        """Remember that something happened."""
        self.events.append(event)


class Served:
    """A server that is the side's own, as a plain channel of grpcio's calls it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        for kind in KINDS:
            setattr(self, kind, getattr(channel, kind)(f"/{SERVICE}/{kind}"))

    unary_unary: Any
    unary_stream: Any
    stream_unary: Any
    stream_stream: Any

    def start(self, kind: str, *requests: Any, **options: Any) -> Any:
        """Start a call of `kind`; see `begin`."""
        return begin(kind, getattr(self, kind), *requests, **options)


class _HastyClock(SystemClock):
    """The real time, without the waits of draining: nobody else calls the services here."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01) if seconds <= 3 else seconds)


async def _reserved(port: int) -> socket.socket:
    """Return a socket that keeps a port from others, and on which nobody listens."""
    while True:
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", port))
        except OSError:  # the server lets go of it a moment after it has stopped
            holder.close()
            await asyncio.sleep(0.01)
        else:
            return holder


class Handlers(grpc.GenericRpcHandler):
    """What the server answers; scenarios add to it while it serves."""

    def __init__(self) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add(self, kind: str, handler: Any) -> str:
        """Answer a new method with `handler`; return its path."""
        path = f"/{SERVICE}/Method{len(self._handlers)}"
        self._handlers[path] = getattr(grpc, f"{kind}_rpc_method_handler")(handler)
        return path

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""
        return self._handlers.get(details.method)

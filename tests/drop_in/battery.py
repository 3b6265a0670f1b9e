"""The side-by-side battery: what a user does with a grpc.aio channel, done with a mesh's too.

A scenario is an async function of a `World`. It is run twice, on a bare grpcio channel and on
`mesh.channel(...)`, against the same kind of server, and returns what it observed: values, codes,
the order of events, what the server saw. Both observations must be equal, or the scenario says
which deliberate difference of `docs/drop-in.md` it shows, and what either side observes.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from meshrpc import Mesh, Service
from meshrpc.clock import SystemClock
from meshrpc.registry.memory import MemoryRegistry

SIDES = ("grpcio", "meshrpc")
SERVICE = "drop.In"

T = TypeVar("T")

_ADDED = re.compile(r"mesh-.*|traceparent|tracestate|baggage|user-agent")
"""Metadata that grpcio or the mesh adds by itself; the battery has one scenario that looks at it."""
_GRPCIO = tuple(int(part) for part in grpc.__version__.split(".")[:2])
_ADDRESS = re.compile(r"(ipv4:)?127\.0\.0\.1:\d+")


@dataclass(frozen=True, slots=True)
class Difference:
    """A deliberate difference: its heading in docs/drop-in.md, and what either side observes."""

    heading: str
    grpcio: Any
    meshrpc: Any


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that users do."""

    name: str
    run: Callable[[World], Awaitable[Any]]
    differs: Difference | None


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *, differs: Difference | None = None, since: tuple[int, int] = (0, 0)
) -> Callable[[Callable[[World], Awaitable[Any]]], Callable[[World], Awaitable[Any]]]:
    """Put an async function of a `World` into the battery.

    `since`: the version of grpcio that does it right; with an older one it is left out.
    """

    def add(function: Callable[[World], Awaitable[Any]]) -> Callable[[World], Awaitable[Any]]:
        name = function.__name__
        if name in SCENARIOS:
            raise ValueError(f"two scenarios are called {name}")
        if not function.__doc__:
            raise ValueError(f"scenario {name} does not say what it claims")
        if since <= _GRPCIO:
            SCENARIOS[name] = Scenario(name, function, differs)
        return function

    return add


KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def scenario_of_each_kind(
    *kinds: str, differs: Difference | None = None
) -> Callable[[Callable[[World, str], Awaitable[Any]]], None]:
    """Put an async function of a `World` and a kind of call into the battery: it is run for each.

    `kinds`: the kinds where its claim says something; all four if none is given. `differs` is what
    either side observes for every one of them.
    """
    asked = kinds or KINDS

    def add(function: Callable[[World, str], Awaitable[Any]]) -> None:
        async def run(world: World) -> Any:
            return {kind: await function(world, kind) for kind in asked}

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__module__ = function.__module__
        scenario(differs=differs and _for_each(asked, differs))(run)

    return add


def each_kind(
    make: Callable[[str], tuple[Callable[[World], Awaitable[Any]], str, str]] | None = None,
    *,
    differs: Difference | None = None,
    since: tuple[int, int] = (0, 0),
) -> Any:
    """Put what `make` returns for each kind into the battery: a scenario, its name, its claim.

    For claims that need a world for each kind; where one will do there is `scenario_of_each_kind`.
    """
    if make is None:
        return partial(each_kind, differs=differs, since=since)
    for kind in KINDS:
        run, run.__name__, run.__doc__ = make(kind)
        scenario(differs=differs, since=since)(run)
    return make


def _for_each(kinds: tuple[str, ...], one: Difference) -> Difference:
    return Difference(
        one.heading, dict.fromkeys(kinds, one.grpcio), dict.fromkeys(kinds, one.meshrpc)
    )


class World:
    """A server, and the means to make channels to it as one side does."""

    def __init__(self, side: str, *, warm: bool = False) -> None:
        """`warm`: `channel` is connected from the start."""
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

    @property
    def channel(self) -> grpc.aio.Channel:
        """A channel to the server, with nothing special about it."""
        if self._channel is None:
            self._channel = self.make_channel()
        return self._channel

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

    def unary_unary(
        self, handler: Any, channel: grpc.aio.Channel | None = None, **codec: Any
    ) -> Any:
        """Let the server answer a method with `handler`; return the method as a stub has it."""
        return self._method("unary_unary", handler, channel, codec)

    def unary_stream(
        self, handler: Any, channel: grpc.aio.Channel | None = None, **codec: Any
    ) -> Any:
        """The same for one request and a stream of answers."""
        return self._method("unary_stream", handler, channel, codec)

    def stream_unary(
        self, handler: Any, channel: grpc.aio.Channel | None = None, **codec: Any
    ) -> Any:
        """The same for a stream of requests and one answer."""
        return self._method("stream_unary", handler, channel, codec)

    def stream_stream(
        self, handler: Any, channel: grpc.aio.Channel | None = None, **codec: Any
    ) -> Any:
        """The same for streams both ways."""
        return self._method("stream_stream", handler, channel, codec)

    def _method(
        self, kind: str, handler: Any, channel: grpc.aio.Channel | None, codec: dict[str, Any]
    ) -> Any:
        path = self._handlers.add(kind, handler)
        return getattr(channel or self.channel, kind)(path, **codec)

    def method(
        self,
        kind: str,
        behave: Behaviour,
        channel: grpc.aio.Channel | None = None,
        *,
        at_start: bool = False,
        **codec: Any,
    ) -> Any:
        """Let the server answer a method of `kind` with its requests, after `behave(context)`.

        That is awaited when all requests have come, or `at_start` before any.
        """
        return self._method(kind, _HANDLERS[kind](behave, at_start), channel, codec)

    def start(self, kind: str, behave: Behaviour, **options: Any) -> Any:
        """Start a call of `kind` with the request b"request"; see `method`."""
        return begin(kind, self.method(kind, behave), **options)

    def note(self, event: Any) -> None:
        """Remember that something happened."""
        self.events.append(event)


class Served:
    """A server that is the side's own, as a plain channel of grpcio's calls it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            setattr(self, kind, getattr(channel, kind)(f"/{SERVICE}/{kind}"))

    unary_unary: Any
    unary_stream: Any
    stream_unary: Any
    stream_stream: Any


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


# Handlers of the four kinds that differ in nothing else.

Behaviour = Callable[[Any], Awaitable[Any]]


async def at_once(context: Any) -> None:
    """Let a handler answer at once."""


def _unary_unary(behave: Behaviour, _: bool) -> Any:
    async def handler(request: bytes, context: Any) -> bytes:
        await behave(context)
        return request

    return handler


def _unary_stream(behave: Behaviour, _: bool) -> Any:
    async def handler(request: bytes, context: Any) -> Any:
        await behave(context)
        yield request

    return handler


def _stream_unary(behave: Behaviour, at_start: bool) -> Any:
    async def handler(requests: Any, context: Any) -> bytes:
        if at_start:
            await behave(context)
        received = [request async for request in requests]
        if not at_start:
            await behave(context)
        return b" ".join(received)

    return handler


def _stream_stream(behave: Behaviour, at_start: bool) -> Any:
    async def handler(requests: Any, context: Any) -> Any:
        if at_start:
            await behave(context)
        received = [request async for request in requests]
        if not at_start:
            await behave(context)
        for request in received:
            yield request

    return handler


_HANDLERS = {
    "unary_unary": _unary_unary,
    "unary_stream": _unary_stream,
    "stream_unary": _stream_unary,
    "stream_stream": _stream_stream,
}


# What scenarios observe with.


def begin(kind: str, multicallable: Any, **options: Any) -> Any:
    """Start a call of `kind` with the request b"request"."""
    if kind.startswith("unary"):
        return multicallable(b"request", **options)
    return multicallable(iter([b"request"]), **options)


async def answer(kind: str, call: Any) -> Any:
    """Await the answer of a call of `kind`; a list if it is a stream."""
    if kind.endswith("unary"):
        return await call
    return [message async for message in call]


def plain(metadata: Any) -> list[tuple[str, Any]] | None:
    """Return metadata without what grpcio and the mesh add by themselves."""
    if metadata is None:
        return None
    return [(key, value) for key, value in metadata if not _ADDED.fullmatch(key)]


def text(details: str | None) -> str | None:
    """Return details without what is another one each time.

    That is the address of the server, and which part of gRPC noticed a deadline first.
    """
    if details == "Stream removed (Deadline Exceeded)":
        return "Deadline Exceeded"
    return None if details is None else _ADDRESS.sub("ADDRESS", details)


async def raised(awaitable: Awaitable[Any]) -> Any:
    """Return what awaiting raises, as plain values; ("returned", value) when nothing."""
    try:
        return ("returned", await awaitable)
    except grpc.aio.AioRpcError as error:
        return (
            "AioRpcError",
            error.code(),
            text(error.details()),
            plain(error.initial_metadata()),
            plain(error.trailing_metadata()),
        )
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - that is the question
        return (type(error).__name__, text(str(error)))


async def status(call: Any) -> dict[str, Any]:
    """Return all that a call says of itself once it is over."""
    return {
        "code": await call.code(),
        "details": text(await call.details()),
        "initial_metadata": plain(await call.initial_metadata()),
        "trailing_metadata": plain(await call.trailing_metadata()),
        "cancelled": call.cancelled(),
        "done": call.done(),
    }

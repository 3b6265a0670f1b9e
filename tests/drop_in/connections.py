"""Scenarios: the connection under a channel, as both of its ends see it."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, World, raised, scenario, status

QUICK = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100)]
PINGS = [
    ("grpc.keepalive_time_ms", 200),
    ("grpc.keepalive_timeout_ms", 200),
    ("grpc.http2.ping_timeout_ms", 200),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
ALLOWS_PINGS = [
    ("grpc.http2.min_ping_interval_without_data_ms", 10),
    ("grpc.keepalive_permit_without_calls", 1),
]


async def echo(request, context):
    return request


async def hold(request, context):
    await asyncio.Event().wait()


async def changed(channel, state):
    """Return once a channel's state is another one."""
    while channel.get_state() is state:
        await channel.wait_for_state_change(state)


class Wire:
    """Stands between channel and server: can be cut, or swallow what comes from then on."""

    def __init__(self, port):
        self.server_port = port
        self.port = 0
        self.connections = 0
        self.frozen = False
        self.ended = asyncio.Event()
        """Set when a connection was closed from the channel's end."""
        self._writers = []
        self._connected = set()

    async def __aenter__(self):
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._listener.close()
        for _ in range(10):
            await asyncio.sleep(0)  # what was accepted before becomes a task
        self.cut()
        while self._connected:
            await asyncio.wait(self._connected)

    def cut(self):
        """Close every connection without a word."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader, writer):
        self._connected.add(asyncio.current_task())
        self.connections += 1
        self._writers.append(writer)
        try:
            onward = await asyncio.open_connection("127.0.0.1", self.server_port)
            self._writers.append(onward[1])
            back = asyncio.ensure_future(self._copy(onward[0], writer))
            await self._copy(reader, onward[1])
            self.ended.set()
            onward[1].close()
            await back
        finally:
            writer.transport.abort()
            self._connected.discard(asyncio.current_task())

    async def _copy(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not self.frozen:
                    writer.write(data)
        writer.close()


# --- One connection -----------------------------------------------------------------------


@scenario()
async def calls_share_one_connection(world: World):
    """One after the other or together, they come from one address."""
    peers = set()

    async def handler(request, context):
        peers.add(context.peer())
        return request

    method = world.unary_unary(handler)
    await method(b"a")
    calls = [method(b"b") for _ in range(20)]
    for call in calls:
        await call
    return len(peers)


@scenario()
async def nothing_is_connected_before_the_first_call(world: World):
    """Making a channel and its methods opens no connection."""
    wire = await world.enter(Wire(world.port))
    channel = world.make_channel(wire.port)
    method = world.unary_unary(echo, channel)
    await asyncio.sleep(0.05)
    before = wire.connections
    return [before, await method(b"a"), wire.connections]


@scenario()
async def closing_a_channel_closes_its_connection(world: World):
    """The server's end hears of it at once."""
    wire = await world.enter(Wire(world.port))
    channel = world.make_channel(wire.port)
    await world.unary_unary(echo, channel)(b"a")
    before = wire.ended.is_set()
    await channel.close()
    gc.collect()  # a call of grpcio before 1.83 may wait for that, and its connection too
    async with asyncio.timeout(10):
        await wire.ended.wait()
    return before


@scenario()
async def a_cancelled_call_keeps_the_connection(world: World):
    """The next call goes over the same one."""
    peers, arrived = set(), asyncio.Event()

    async def handler(request, context):
        peers.add(context.peer())
        arrived.set()
        if request == b"hold":
            await asyncio.Event().wait()
        return request

    method = world.unary_unary(handler)
    call = method(b"hold")
    await arrived.wait()
    call.cancel()
    await raised(call)
    return [await method(b"a"), len(peers), world.channel.get_state()]


# --- Connections that end -----------------------------------------------------------------


@scenario()
async def a_cut_connection_ends_a_call_under_way(world: World):
    """UNAVAILABLE, and the handler is cancelled."""
    arrived, over = asyncio.Event(), asyncio.Event()

    async def handler(request, context):
        arrived.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            world.note("handler cancelled")
            raise
        finally:
            over.set()

    wire = await world.enter(Wire(world.port))
    channel = world.make_channel(wire.port, options=QUICK)
    call = world.unary_unary(handler, channel)(b"a")
    await arrived.wait()
    wire.cut()
    seen = await raised(call)
    await over.wait()
    return [seen[:2], (await status(call))["cancelled"]]


@scenario()
async def a_cut_connection_ends_a_stream(world: World):
    """What came before was read; then UNAVAILABLE."""

    async def handler(request, context):
        yield b"first"
        await asyncio.Event().wait()

    wire = await world.enter(Wire(world.port))
    channel = world.make_channel(wire.port, options=QUICK)
    call = world.unary_stream(handler, channel)(b"a")
    first = await call.read()
    wire.cut()
    return [first, (await raised(call.read()))[:2]]


@scenario()
async def after_a_cut_connection_the_next_one_is_used(world: World):
    """A call that waits for it succeeds."""
    wire = await world.enter(Wire(world.port))
    channel = world.make_channel(wire.port, options=QUICK)
    method = world.unary_unary(echo, channel)
    first = await method(b"a")
    wire.cut()
    await changed(channel, grpc.ChannelConnectivity.READY)
    return [first, await method(b"b", wait_for_ready=True), wire.connections]


@scenario()
async def a_server_that_stops_with_grace_lets_calls_end(world: World):
    """The call under way ends well; new ones are refused."""
    arrived, go = asyncio.Event(), asyncio.Event()

    async def handler(request, context):
        arrived.set()
        await go.wait()
        return request

    channel = world.make_channel(options=QUICK)
    method = world.unary_unary(handler, channel)
    call = method(b"a")
    await arrived.wait()
    stopping = asyncio.ensure_future(world.stop_server(grace=30))
    await changed(channel, grpc.ChannelConnectivity.READY)
    refused = await raised(method(b"b"))
    go.set()
    return [await call, refused[:2], await stopping]


@scenario()
async def a_server_that_stops_cuts_calls_after_its_grace(world: World):
    """They end with the status that the server gives."""
    arrived = asyncio.Event()

    async def handler(request, context):
        arrived.set()
        await asyncio.Event().wait()

    call = world.unary_unary(handler)(b"a")
    await arrived.wait()
    await world.stop_server(grace=0.05)
    return await raised(call)


@scenario()
async def calls_go_on_over_connections_that_grow_old(world: World):
    """The server sends GOAWAY again and again; no call fails for it."""
    peers = set()

    async def handler(request, context):
        peers.add(context.peer())
        return request

    await world.stop_server()
    options = [("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 5000)]
    await world.start_server(options=options)
    method = world.unary_unary(handler, world.make_channel(options=QUICK))
    answers = set()
    async with asyncio.timeout(15):
        while len(peers) < 4:
            answers.add(await method(b"a", wait_for_ready=True))
    return answers


@scenario()
async def a_call_outlives_the_age_of_its_connection(world: World):
    """GOAWAY leaves it alone within the server's grace."""

    async def handler(request, context):
        await asyncio.sleep(0.4)
        return request

    await world.stop_server()
    options = [("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 10000)]
    await world.start_server(options=options)
    return await world.unary_unary(handler, world.make_channel())(b"a", wait_for_ready=True)


@scenario()
async def calls_go_on_after_the_server_closed_an_idle_connection(world: World):
    """grpc.max_connection_idle_ms of the server."""
    await world.stop_server()
    await world.start_server(options=[("grpc.max_connection_idle_ms", 100)])
    channel = world.make_channel(options=QUICK)
    method = world.unary_unary(echo, channel)
    first = await method(b"a")
    await changed(channel, grpc.ChannelConnectivity.READY)
    return [first, await method(b"b", wait_for_ready=True)]


@scenario(
    differs=Difference(
        "A connection that takes long to make is given up",
        grpcio=grpc.StatusCode.DEADLINE_EXCEEDED,
        meshrpc=grpc.StatusCode.UNAVAILABLE,
    )
)
async def a_server_that_takes_a_connection_and_says_nothing(world: World):
    """How a call ends whose connection is never ready."""
    wire = await world.enter(Wire(world.port))
    wire.frozen = True
    method = world.unary_unary(echo, world.make_channel(wire.port))
    return (await raised(method(b"a", timeout=2.5)))[1]


@scenario()
async def a_connection_may_take_as_long_as_the_channel_says(world: World):
    """grpc.min_reconnect_backoff_ms is the time that making one may take."""
    options = [("grpc.min_reconnect_backoff_ms", 20_000)]
    wire = await world.enter(Wire(world.port))
    wire.frozen = True
    method = world.unary_unary(echo, world.make_channel(wire.port, options=options))
    return (await raised(method(b"a", timeout=1.5)))[1]


# --- Keepalive ----------------------------------------------------------------------------


@scenario()
async def keepalive_finds_a_dead_connection(world: World):
    """Pings that nobody answers end a call that would wait for ever."""
    arrived = asyncio.Event()

    async def handler(request, context):
        arrived.set()
        await asyncio.Event().wait()

    await world.stop_server()
    await world.start_server(options=ALLOWS_PINGS)
    wire = await world.enter(Wire(world.port))
    channel = world.make_channel(wire.port, options=[*QUICK, *PINGS])
    call = world.unary_unary(handler, channel)(b"a")
    await arrived.wait()
    wire.frozen = True
    return (await raised(call))[:2]


@scenario()
async def keepalive_keeps_a_silent_connection(world: World):
    """A call that takes many pings' time ends well where they are answered."""

    async def handler(request, context):
        await asyncio.sleep(0.7)
        return request

    await world.stop_server()
    await world.start_server(options=ALLOWS_PINGS)
    wire = await world.enter(Wire(world.port))
    channel = world.make_channel(wire.port, options=[*QUICK, *PINGS])
    method = world.unary_unary(handler, channel)
    return [await method(b"a"), await method(b"b"), wire.connections]


@scenario()
async def keepalive_finds_a_dead_connection_without_calls(world: World):
    """With grpc.keepalive_permit_without_calls the channel notices by itself."""
    await world.stop_server()
    await world.start_server(options=ALLOWS_PINGS)
    wire = await world.enter(Wire(world.port))
    channel = world.make_channel(wire.port, options=[*QUICK, *PINGS])
    await world.unary_unary(echo, channel)(b"a")
    wire.frozen = True
    async with asyncio.timeout(15):
        await changed(channel, grpc.ChannelConnectivity.READY)
    return channel.get_state() is not grpc.ChannelConnectivity.READY


@scenario()
async def two_channels_with_different_options_have_their_own_connections(world: World):
    """What one is told does not hold for the other."""
    peers = []

    async def handler(request, context):
        peers.append(context.peer())
        return request

    for options in ([("grpc.max_send_message_length", 10)], [("grpc.max_send_message_length", 20)]):
        await world.unary_unary(handler, world.make_channel(options=options))(b"a")
    return len(set(peers))

"""Scenarios: the connection under a channel, as both of its ends see it."""

from __future__ import annotations

import asyncio
import gc

import grpc

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.connectivity import QUICK, changed
from tests.drop_in.handlers import Held, echo
from tests.drop_in.observations import answer, outcome, raised
from tests.drop_in.wire import Wire
from tests.drop_in.world import World

PINGS = [
    ("grpc.keepalive_time_ms", 200),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
IMPATIENT = [("grpc.keepalive_timeout_ms", 200), ("grpc.http2.ping_timeout_ms", 200)]
PATIENT = [("grpc.keepalive_timeout_ms", 5000), ("grpc.http2.ping_timeout_ms", 5000)]
ALLOWS_PINGS = [
    ("grpc.http2.min_ping_interval_without_data_ms", 10),
    ("grpc.keepalive_permit_without_calls", 1),
]
AGES = [("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 10_000)]


async def wired(world, **arguments):
    """Return a wire to the server, and a channel over it."""
    wire = await world.enter(Wire(world.port))
    return wire, world.make_channel(wire.port, **arguments)


async def restarted(world, options):
    """Start the server again, with options."""
    await world.stop_server()
    await world.start_server(options=options)


class Peers:
    """A behaviour that remembers where its calls came from."""

    def __init__(self):
        self.seen = set()

    async def __call__(self, context):
        self.seen.add(context.peer())


# --- One connection -----------------------------------------------------------------------


@scenario()
async def calls_share_one_connection(world: World):
    """One after the other or together, they come from one address."""
    peers = Peers()
    method = world.method("unary_unary", peers)
    await method(b"a")
    calls = [method(b"b") for _ in range(20)]
    for call in calls:
        await call
    return len(peers.seen)


@scenario()
async def nothing_is_connected_before_the_first_call(world: World):
    """Making a channel and its methods opens no connection."""
    wire, channel = await wired(world)
    method = world.unary_unary(echo, channel)
    await asyncio.sleep(0.05)
    before = wire.connections
    return [before, await method(b"a"), wire.connections]


@scenario()
async def closing_a_channel_closes_its_connection(world: World):
    """The server's end hears of it at once."""
    wire, channel = await wired(world)
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
    peers, held = Peers(), Held()

    async def behave(context):
        await peers(context)
        await held(context)

    call = world.start("unary_unary", behave)
    await held.started.wait()
    call.cancel()
    await raised(call)
    return [
        await world.start("unary_unary", peers),
        len(peers.seen),
        world.channel.get_state(),
    ]


@scenario()
async def two_channels_with_different_options_have_their_own_connections(world: World):
    """What one is told does not hold for the other."""
    peers = Peers()
    for length in (10, 20):
        channel = world.make_channel(options=[("grpc.max_send_message_length", length)])
        await world.start("unary_unary", peers, channel)
    return len(peers.seen)


# --- Connections that end -----------------------------------------------------------------


@scenario_of_each_kind()
async def a_cut_connection_ends_a_call_under_way(world: World, kind: str):
    """UNAVAILABLE, and the handler is cancelled."""
    wire, channel = await wired(world, options=QUICK)
    held = Held()
    call = world.start(kind, held, channel)
    await held.started.wait()
    wire.cut()
    seen = await raised(answer(call))
    await held.cancelled.wait()
    return [seen[:2], call.cancelled()]


@scenario()
async def a_cut_connection_ends_a_stream(world: World):
    """What came before was read; then UNAVAILABLE."""

    async def handler(request, context):
        yield b"first"
        await asyncio.Event().wait()

    wire, channel = await wired(world, options=QUICK)
    call = world.unary_stream(handler, channel)(b"a")
    first = await call.read()
    wire.cut()
    return [first, (await raised(call.read()))[:2]]


@scenario()
async def after_a_cut_connection_the_next_one_is_used(world: World):
    """A call that waits for it succeeds."""
    wire, channel = await wired(world, options=QUICK)
    method = world.unary_unary(echo, channel)
    first = await method(b"a")
    wire.cut()
    await changed(channel, grpc.ChannelConnectivity.READY)
    return [first, await method(b"b", wait_for_ready=True), wire.connections]


@scenario()
async def a_server_that_stops_with_grace_lets_calls_end(world: World):
    """The call under way ends well; new ones are refused."""
    held, channel = Held(), world.make_channel(options=QUICK)
    method = world.method("unary_unary", held, channel)
    call = method(b"a")
    await held.started.wait()
    stopping = asyncio.ensure_future(world.stop_server(grace=30))
    await changed(channel, grpc.ChannelConnectivity.READY)
    refusal = await raised(method(b"b"))
    held.go_on.set()
    return [await call, refusal[:2], await stopping]


@scenario_of_each_kind()
async def a_server_that_stops_cuts_calls_after_its_grace(world: World, kind: str):
    """They end with the status that the server gives."""
    held = Held()
    call = world.start(kind, held)
    await held.started.wait()
    await world.stop_server(grace=0.05)
    return await outcome(call)


@scenario()
async def calls_go_on_over_connections_that_grow_old(world: World):
    """The server sends GOAWAY again and again; no call fails for it."""
    await restarted(world, AGES)
    peers, answers = Peers(), set()
    method = world.method("unary_unary", peers, world.make_channel(options=QUICK))
    async with asyncio.timeout(15):
        while len(peers.seen) < 4:
            answers.add(await method(b"a", wait_for_ready=True))
    return answers


@scenario()
async def a_call_outlives_the_age_of_its_connection(world: World):
    """GOAWAY leaves it alone within the server's grace."""
    await restarted(world, AGES)
    held, channel = Held(), world.make_channel()
    call = world.start("unary_unary", held, channel, wait_for_ready=True)
    await held.started.wait()
    await changed(channel, grpc.ChannelConnectivity.READY)
    held.go_on.set()
    return await call


@scenario()
async def calls_go_on_after_the_server_closed_an_idle_connection(world: World):
    """grpc.max_connection_idle_ms of the server."""
    await restarted(world, [("grpc.max_connection_idle_ms", 100)])
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
    wire, channel = await wired(world)
    wire.frozen = True
    return (await raised(world.unary_unary(echo, channel)(b"a", timeout=3)))[1]


@scenario()
async def a_connection_may_take_as_long_as_the_channel_says(world: World):
    """grpc.min_reconnect_backoff_ms is the time that making one may take."""
    wire, channel = await wired(world, options=[("grpc.min_reconnect_backoff_ms", 20_000)])
    wire.frozen = True
    return (await raised(world.unary_unary(echo, channel)(b"a", timeout=1.2)))[1]


# --- Keepalive ----------------------------------------------------------------------------


@scenario()
async def keepalive_finds_a_dead_connection(world: World):
    """Pings that nobody answers end a call that would wait for ever."""
    await restarted(world, ALLOWS_PINGS)
    wire, channel = await wired(world, options=[*QUICK, *PINGS, *IMPATIENT])
    held = Held()
    call = world.start("unary_unary", held, channel)
    await held.started.wait()
    wire.frozen = True
    return (await raised(call))[:2]


@scenario()
async def keepalive_keeps_a_silent_connection(world: World):
    """A call that takes many pings' time ends well where they are answered."""

    async def handler(request, context):
        await asyncio.sleep(0.7)
        return request

    await restarted(world, ALLOWS_PINGS)
    wire, channel = await wired(world, options=[*QUICK, *PINGS, *PATIENT])
    method = world.unary_unary(handler, channel)
    return [await method(b"a"), wire.connections]


@scenario()
async def keepalive_finds_a_dead_connection_without_calls(world: World):
    """With grpc.keepalive_permit_without_calls the channel notices by itself."""
    await restarted(world, ALLOWS_PINGS)
    wire, channel = await wired(world, options=[*QUICK, *PINGS, *IMPATIENT])
    await world.unary_unary(echo, channel)(b"a")
    wire.frozen = True
    async with asyncio.timeout(15):
        await changed(channel, grpc.ChannelConnectivity.READY)
    return channel.get_state() is not grpc.ChannelConnectivity.READY

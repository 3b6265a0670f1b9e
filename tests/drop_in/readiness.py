"""Scenarios: calls while there is no server, not yet, or no more."""

from __future__ import annotations

import asyncio

import grpc

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.connectivity import QUICK, failing
from tests.drop_in.handlers import HANDLERS, Held, at_once, echo, echo_twice, join
from tests.drop_in.observations import answer, begin, outcome, plain, raised, status
from tests.drop_in.world import World


async def waiting(world, handler=echo, kind="unary_unary", **options):
    """Return the channel to a server that is not there, and a call that waits for it."""
    await world.stop_server()
    channel = world.make_channel(options=QUICK)
    method = getattr(world, kind)(handler, channel)
    return channel, begin(kind, method, wait_for_ready=True, **options)


# --- Calls that do not wait ---------------------------------------------------------------


@scenario_of_each_kind()
async def a_call_that_says_it_does_not_wait_fails_at_once(world: World, kind: str):
    """wait_for_ready=False is the default."""
    channel = world.make_channel(world.closed_port())
    return await raised(answer(world.start(kind, at_once, channel, wait_for_ready=False)))


@scenario_of_each_kind()
async def waiting_for_the_connection_of_a_call_to_nobody(world: World, kind: str):
    """It raises the call's error."""
    call = world.start(kind, at_once, world.make_channel(world.closed_port()))
    return [await raised(call.wait_for_connection()), await call.code()]


@scenario_of_each_kind()
async def a_call_whose_server_stops(world: World, kind: str):
    """It ends with the status that a server that stops without grace gives."""
    held = Held()
    call = world.start(kind, held)
    await held.started.wait()
    await world.stop_server()
    return await outcome(call)


@scenario_of_each_kind(
    differs=Difference("A connection that breaks under a call", grpcio=False, meshrpc=True)
)
async def the_error_of_a_call_whose_server_stops_says_where_it_was(world: World, kind: str):
    """Whether it was executed, nobody can know."""
    held = Held()
    call = world.start(kind, held)
    await held.started.wait()
    await world.stop_server()
    return "may have executed the call" in await call.details()


@scenario_of_each_kind("unary_stream", "stream_stream")
async def a_stream_whose_server_stops(world: World, kind: str):
    """The same after the messages that came before."""

    async def behave(context):
        await context.write(b"first")
        await asyncio.Event().wait()

    call = world.start(kind, behave)
    first = await call.read()
    await world.stop_server()
    return [first, await raised(call.read()), await status(call)]


@scenario()
async def calls_go_to_a_server_started_again(world: World):
    """After its server was away, a channel is used as before."""
    channel = world.make_channel(options=QUICK)
    method = world.unary_unary(echo, channel)
    first = await method(b"a")
    await world.stop_server()
    await failing(channel)  # until then a call may still go out, and break
    between = await raised(method(b"b"))
    await world.start_server()
    return [first, between, await method(b"c", wait_for_ready=True), await method(b"d")]


# --- Calls that wait ----------------------------------------------------------------------


@scenario_of_each_kind()
async def a_call_waits_for_a_server_that_comes_later(world: World, kind: str):
    """With wait_for_ready=True it goes out once the server is there."""
    channel, call = await waiting(world, HANDLERS[kind], kind)
    await failing(channel)
    world.note(("done", call.done()))
    await world.start_server()
    return await outcome(call)


@scenario_of_each_kind()
async def waiting_for_the_connection_of_a_call_until_a_server_comes(world: World, kind: str):
    """With wait_for_ready=True it waits along."""
    channel, call = await waiting(world, HANDLERS[kind], kind)
    connection = asyncio.ensure_future(raised(call.wait_for_connection()))
    await failing(channel)
    world.note(("connected", connection.done()))
    await world.start_server()
    return [await connection, await answer(call)]


@scenario_of_each_kind()
async def a_call_is_cancelled_while_it_waits_for_a_server(world: World, kind: str):
    """At once, and as any other."""
    channel, call = await waiting(world, HANDLERS[kind], kind)
    await failing(channel)
    return [call.cancel(), await outcome(call)]


@scenario()
async def many_calls_wait_for_one_server(world: World):
    """Each of them goes out, once."""
    arrived = []

    async def handler(request, context):
        arrived.append(request)
        return request

    await world.stop_server()
    channel = world.make_channel(options=QUICK)
    method = world.unary_unary(handler, channel)
    calls = [method(bytes([number]), wait_for_ready=True) for number in range(20)]
    await failing(channel)
    await world.start_server()
    return [[await call for call in calls], sorted(arrived)]


@scenario()
async def a_call_that_waits_keeps_what_it_was_made_with(world: World):
    """Metadata and timeout arrive although the server came later."""

    async def handler(request, context):
        world.note(plain(context.invocation_metadata()))
        world.note(0 < context.time_remaining() <= 30)
        return request

    channel, call = await waiting(world, handler, metadata=(("k", "v"),), timeout=30)
    await failing(channel)
    await world.start_server()
    return [await call, call.time_remaining() > 0]


@scenario()
async def a_done_callback_waits_for_the_server_too(world: World):
    """It is called when the call is over, not before."""
    channel, call = await waiting(world)
    call.add_done_callback(lambda over: world.note(("done", over is call)))
    await failing(channel)
    world.note("starting")
    await world.start_server()
    return await call


@scenario()
async def cancelling_the_task_that_waits_for_a_server_cancels_the_call(world: World):
    """Nothing is left waiting."""
    channel, call = await waiting(world)
    task = asyncio.create_task(answer(call))
    await failing(channel)
    task.cancel()
    await asyncio.wait([task])
    return [task.cancelled(), call.done(), call.cancelled(), await call.code()]


@scenario()
async def writing_waits_for_the_server(world: World):
    """write() returns once the call is on its way."""
    await world.stop_server()
    channel = world.make_channel(options=QUICK)
    call = world.stream_unary(join, channel)(wait_for_ready=True)
    writing = asyncio.ensure_future(call.write(b"a"))
    await failing(channel)
    world.note(("written", writing.done()))
    await world.start_server()
    await writing
    await call.write(b"b")
    await call.done_writing()
    return await call


@scenario()
async def reading_waits_for_the_server(world: World):
    """read() as well."""
    channel, call = await waiting(world, echo_twice, "unary_stream")
    reading = asyncio.ensure_future(call.read())
    await failing(channel)
    world.note(("read", reading.done()))
    await world.start_server()
    return [await reading, await call.read(), await call.read() is grpc.aio.EOF]


@scenario()
async def closing_a_channel_ends_a_call_that_waits_for_a_server(world: World):
    """It is cancelled."""
    channel, call = await waiting(world)
    await failing(channel)
    await channel.close()
    return [await raised(call), await call.code()]

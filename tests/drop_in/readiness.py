"""Scenarios: calls while there is no server, not yet, or no more."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import KINDS, World, each_kind, raised, scenario, status

QUICK = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100)]


async def echo(request, context):
    return request


async def echo_twice(request, context):
    yield request
    yield request


async def join(requests, context):
    return b"".join([request async for request in requests])


async def echo_each(requests, context):
    async for request in requests:
        yield request


HANDLERS = dict(zip(KINDS, (echo, echo_twice, join, echo_each), strict=True))


def method_of(world, kind, **arguments):
    channel = world.make_channel(options=QUICK, **arguments)
    return getattr(world, kind)(HANDLERS[kind], channel)


def request_of(kind):
    return b"a" if kind.startswith("unary") else [b"a", b"b"]


async def answers(call, kind):
    if kind.endswith("unary"):
        return await call
    return [message async for message in call]


async def failing(channel):
    """Return once a connection was refused."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


@each_kind
def _fails_fast(kind):
    async def run(world: World):
        await world.stop_server()
        call = method_of(world, kind)(request_of(kind))
        return [await raised(answers(call, kind)), await status(call)]

    return (
        run,
        f"a_{kind}_call_to_nobody_fails_at_once",
        "UNAVAILABLE, with grpc's own account of the refused connection.",
    )


@each_kind
def _says_no(kind):
    async def run(world: World):
        await world.stop_server()
        call = method_of(world, kind)(request_of(kind), wait_for_ready=False)
        return await raised(answers(call, kind))

    return (
        run,
        f"a_{kind}_call_that_says_it_does_not_wait_fails_at_once",
        "wait_for_ready=False is the default.",
    )


@each_kind
def _waits(kind):
    async def run(world: World):
        await world.stop_server()
        channel = world.make_channel(options=QUICK)
        method = getattr(world, kind)(HANDLERS[kind], channel)
        call = method(request_of(kind), wait_for_ready=True)
        await failing(channel)
        world.note(("done", call.done()))
        await world.start_server()
        return [await answers(call, kind), await status(call)]

    return (
        run,
        f"a_{kind}_call_waits_for_a_server_that_comes_later",
        "With wait_for_ready=True it goes out once the server is there.",
    )


@each_kind
def _waits_in_vain(kind):
    async def run(world: World):
        await world.stop_server()
        call = method_of(world, kind)(request_of(kind), wait_for_ready=True, timeout=0.3)
        seen = await raised(answers(call, kind))
        return [seen[:2], await call.code(), call.done(), call.cancelled()]

    return (
        run,
        f"a_{kind}_call_waits_for_a_server_no_longer_than_its_timeout",
        "DEADLINE_EXCEEDED when nobody comes.",
    )


@each_kind
def _waits_cancelled(kind):
    async def run(world: World):
        await world.stop_server()
        channel = world.make_channel(options=QUICK)
        method = getattr(world, kind)(HANDLERS[kind], channel)
        call = method(request_of(kind), wait_for_ready=True)
        await failing(channel)
        cancelled = call.cancel()
        return [cancelled, await raised(answers(call, kind)), await status(call)]

    return (
        run,
        f"a_{kind}_call_is_cancelled_while_it_waits_for_a_server",
        "At once, and as any other.",
    )


@each_kind
def _connection(kind):
    async def run(world: World):
        call = method_of(world, kind)(request_of(kind))
        connected = await raised(call.wait_for_connection())
        return [connected, await answers(call, kind), await raised(call.wait_for_connection())]

    return (
        run,
        f"waiting_for_the_connection_of_a_{kind}_call",
        "Returns once the call is on its way, and again when it is over.",
    )


@each_kind
def _connection_fails(kind):
    async def run(world: World):
        await world.stop_server()
        call = method_of(world, kind)(request_of(kind))
        return [await raised(call.wait_for_connection()), await call.code()]

    return (
        run,
        f"waiting_for_the_connection_of_a_{kind}_call_to_nobody",
        "It raises the call's error.",
    )


@each_kind
def _connection_late(kind):
    async def run(world: World):
        await world.stop_server()
        channel = world.make_channel(options=QUICK)
        method = getattr(world, kind)(HANDLERS[kind], channel)
        call = method(request_of(kind), wait_for_ready=True)
        waiting = asyncio.ensure_future(raised(call.wait_for_connection()))
        await failing(channel)
        world.note(("connected", waiting.done()))
        await world.start_server()
        return [await waiting, await answers(call, kind)]

    return (
        run,
        f"waiting_for_the_connection_of_a_{kind}_call_until_a_server_comes",
        "With wait_for_ready=True it waits along.",
    )


@each_kind
def _dies(kind):
    async def run(world: World):
        arrived = asyncio.Event()

        async def hold():
            arrived.set()
            await asyncio.Event().wait()

        if kind.endswith("stream"):

            async def handler(request, context):
                yield b"first"
                await hold()
        else:

            async def handler(request, context):
                await hold()

        channel = world.make_channel()
        call = getattr(world, kind)(handler, channel)(request_of(kind))
        await arrived.wait()
        first = await call.read() if kind.endswith("stream") else None
        await world.stop_server()
        rest = call.read() if kind.endswith("stream") else call
        return [first, await raised(rest), await status(call)]

    return (
        run,
        f"a_{kind}_call_whose_server_stops",
        "It ends with the status that a server that stops without grace gives.",
    )


@scenario()
async def calls_go_to_a_server_started_again(world: World):
    """After its server was away, a channel is used as before."""
    channel = world.make_channel(options=QUICK)
    method = world.unary_unary(echo, channel)
    first = await method(b"a")
    await world.stop_server()
    between = await raised(method(b"b"))
    await world.start_server()
    return [first, between, await method(b"c", wait_for_ready=True), await method(b"d")]


@scenario()
async def many_calls_wait_for_one_server(world: World):
    """Each of them goes out, once."""
    calls = []

    async def handler(request, context):
        calls.append(request)
        return request

    await world.stop_server()
    channel = world.make_channel(options=QUICK)
    method = world.unary_unary(handler, channel)
    waiting = [method(bytes([number]), wait_for_ready=True) for number in range(20)]
    await failing(channel)
    await world.start_server()
    return [[await call for call in waiting], sorted(calls)]


@scenario()
async def a_call_that_waits_keeps_what_it_was_made_with(world: World):
    """Metadata and timeout arrive although the server came later."""

    async def handler(request, context):
        world.note([each for each in context.invocation_metadata() if each[0] == "k"])
        world.note(0 < context.time_remaining() <= 30)
        return request

    await world.stop_server()
    channel = world.make_channel(options=QUICK)
    method = world.unary_unary(handler, channel)
    call = method(b"a", metadata=(("k", "v"),), timeout=30, wait_for_ready=True)
    await failing(channel)
    await world.start_server()
    return [await call, call.time_remaining() > 0]


@scenario()
async def a_done_callback_waits_for_the_server_too(world: World):
    """It is called when the call is over, not before."""
    await world.stop_server()
    channel = world.make_channel(options=QUICK)
    call = world.unary_unary(echo, channel)(b"a", wait_for_ready=True)
    call.add_done_callback(lambda over: world.note(("done", over is call)))
    await failing(channel)
    world.note("starting")
    await world.start_server()
    return await call


@scenario()
async def cancelling_the_task_that_waits_for_a_server_cancels_the_call(world: World):
    """Nothing is left waiting."""
    await world.stop_server()
    channel = world.make_channel(options=QUICK)
    call = world.unary_unary(echo, channel)(b"a", wait_for_ready=True)

    async def use():
        return await call

    task = asyncio.ensure_future(use())
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
    await world.stop_server()
    channel = world.make_channel(options=QUICK)
    call = world.unary_stream(echo_twice, channel)(b"a", wait_for_ready=True)
    reading = asyncio.ensure_future(call.read())
    await failing(channel)
    world.note(("read", reading.done()))
    await world.start_server()
    return [await reading, await call.read(), await call.read() is grpc.aio.EOF]


@scenario()
async def closing_a_channel_ends_a_call_that_waits_for_a_server(world: World):
    """It is cancelled."""
    await world.stop_server()
    channel = world.make_channel(options=QUICK)
    call = world.unary_unary(echo, channel)(b"a", wait_for_ready=True)
    await failing(channel)
    await channel.close()
    return [await raised(call), await call.code()]

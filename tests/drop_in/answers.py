"""Scenarios: a stream of answers, iterated and read."""

from __future__ import annotations

import asyncio
import gc

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.handlers import Held, echo_each
from tests.drop_in.observations import answer, is_soon_over, raised, status
from tests.drop_in.streams import EOF, count
from tests.drop_in.world import World


@scenario()
async def a_stream_can_be_iterated(world: World):
    """All messages in order, then OK."""
    call = world.unary_stream(count)(b"3")
    return await answer(call), await status(call)


@scenario()
async def a_stream_can_be_read(world: World):
    """Message by message, then EOF as often as it is asked for."""
    call = world.unary_stream(count)(b"2")
    return [await call.read() for _ in range(5)], await status(call)


@scenario_of_each_kind("unary_stream", "stream_stream")
async def an_empty_stream_ends_at_once(world: World, kind: str):
    """Iterated or read."""
    method = getattr(world, kind)({"unary_stream": count, "stream_stream": echo_each}[kind])
    request = b"0" if kind == "unary_stream" else iter([])
    iterated = method(request)
    read = method(request)
    return [
        await answer(iterated),
        await read.read() is EOF,
        await status(iterated),
        await status(read),
    ]


@scenario()
async def a_stream_iterated_in_two_loops_goes_on(world: World):
    """The second loop continues where the first one broke off."""
    call = world.unary_stream(count)(b"4")
    first = []
    async for message in call:
        first.append(message)
        if len(first) == 2:
            break
    return first, await answer(call), await status(call)


@scenario()
async def iterating_after_the_end_yields_nothing(world: World):
    """A second loop over a stream that is over ends at once."""
    call = world.unary_stream(count)(b"2")
    return await answer(call), await answer(call)


@scenario()
async def an_iterator_of_a_failed_stream_raises_once(world: World):
    """Asked again after its error it is merely at its end."""

    async def handler(request, context):
        yield b"1"
        await context.abort(grpc.StatusCode.NOT_FOUND, "no more")

    call = world.unary_stream(handler)(b"")
    messages = aiter(call)
    return [await raised(anext(messages, "end")) for _ in range(4)]


@scenario()
async def a_second_iteration_of_a_failed_stream(world: World):
    """`async for` over a stream that failed in an `async for` before."""

    async def handler(request, context):
        yield b"1"
        await context.abort(grpc.StatusCode.NOT_FOUND, "no more")

    call = world.unary_stream(handler)(b"")
    return [await raised(answer(call)) for _ in range(2)]


@scenario()
async def reading_a_failed_stream_raises_each_time(world: World):
    """The messages before the error, then the error for every read."""

    async def handler(request, context):
        yield b"1"
        await context.abort(grpc.StatusCode.NOT_FOUND, "no more")

    call = world.unary_stream(handler)(b"")
    return [await raised(call.read()) for _ in range(4)]


@scenario()
async def messages_before_an_error_are_received(world: World):
    """All of them come before the error is raised, whether the call is over by then or not."""

    async def handler(request, context):
        for number in range(3):
            yield str(number).encode()
        await context.abort(grpc.StatusCode.ABORTED, "after three")

    call = world.unary_stream(handler)(b"")
    received = []
    try:
        async for message in call:
            received.append(message)  # noqa: PERF401 - kept when the loop raises
    except grpc.aio.AioRpcError as error:
        return received, error.code(), error.details(), await status(call)


@scenario()
async def iterating_and_reading_may_not_be_mixed(world: World):
    """UsageError, whichever came first; the call itself goes on."""
    method = world.unary_stream(count)
    iterated, read = method(b"3"), method(b"3")
    await anext(aiter(iterated))
    await read.read()
    try:
        aiter(read)
        mixed = "nothing raised"
    except grpc.aio.UsageError as error:
        mixed = str(error)
    return [
        await raised(iterated.read()),
        mixed,
        await answer(iterated),
        [await read.read() for _ in range(3)],
    ]


@scenario()
async def reading_after_an_iteration_is_over_is_eof(world: World):
    """Once a call is over, read says so even to one who iterated."""
    call = world.unary_stream(count)(b"1")
    messages = await answer(call)
    return messages, await raised(call.read())


@scenario()
async def iterating_after_reading_to_the_end_is_refused(world: World):
    """Its style was chosen by the first read."""
    call = world.unary_stream(count)(b"1")
    while await call.read() is not EOF:
        pass
    try:
        aiter(call)
    except grpc.aio.UsageError as error:
        return str(error)
    return "allowed"


@scenario()
async def reading_a_call_that_ended_unread(world: World):
    """A call without messages that is over before the first read."""

    async def handler(request, context):
        return
        yield

    call = world.unary_stream(handler)(b"")
    await call.code()
    return await raised(call.read()), await raised(call.read())


@scenario()
async def a_handler_may_write_instead_of_yielding(world: World):
    """The client cannot tell."""

    async def handler(request, context):
        await context.write(b"1")
        await context.write(b"2")

    call = world.unary_stream(handler)(b"")
    return await answer(call), await status(call)


@scenario()
async def a_loop_can_be_left(world: World):
    """After `break` the call still runs, and can be cancelled."""
    held = Held()

    async def handler(request, context):
        yield b"1"
        await held(context)

    call = world.unary_stream(handler)(b"")
    async for _ in call:
        break
    before = call.done()
    await held.started.wait()
    asked = call.cancel()
    await held.cancelled.wait()
    return before, asked, await status(call)


@scenario()
async def anext_can_be_awaited_with_a_timeout(world: World):
    """Running out of time while waiting for a message cancels the call, as awaiting does."""
    held = Held()

    async def handler(request, context):
        yield b"1"
        await held(context)

    call = world.unary_stream(handler)(b"")
    messages = aiter(call)
    first = await anext(messages)
    await held.started.wait()
    late = await raised(asyncio.wait_for(anext(messages), 0.01))
    return first, late[0], call.cancelled(), await call.code()


@scenario(differs=Difference("A stream that nobody holds", grpcio=False, meshrpc=True))
async def a_stream_dropped_after_a_break_is_cancelled(world: World):
    """At once, and not when the garbage collector comes by."""
    held = Held()

    async def handler(request, context):
        yield b"1"
        await held(context)

    gc.disable()
    try:
        call = world.unary_stream(handler)(b"")
        async for _ in call:
            break
        del call
        return await is_soon_over(asyncio.ensure_future(held.cancelled.wait()))
    finally:
        gc.enable()

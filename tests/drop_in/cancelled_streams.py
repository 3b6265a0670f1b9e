"""Scenarios: streams that are cancelled while somebody reads or writes them."""

from __future__ import annotations

import asyncio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.handlers import Held, echo_each
from tests.drop_in.observations import answer, raised, status
from tests.drop_in.world import World


@scenario()
async def a_stream_is_cancelled_between_two_messages(world: World):
    """The next message is CancelledError, by iteration."""
    call = world.stream_stream(echo_each)(endless())
    messages = aiter(call)
    first = await anext(messages)
    call.cancel()
    return first, await raised(anext(messages)), await raised(anext(messages)), await status(call)


@scenario()
async def a_stream_is_cancelled_between_two_reads(world: World):
    """The next read is CancelledError, and each one after it."""
    call = world.stream_stream(echo_each)(endless())
    first = await call.read()
    call.cancel()
    return first, await raised(call.read()), await raised(call.read()), await status(call)


async def endless():
    while True:
        yield b"again"
        await asyncio.sleep(0)


@scenario()
async def a_reader_is_cancelled(world: World):
    """The task that waits in `read`: the call is cancelled with it."""
    held = Held()
    call = world.start("unary_stream", held)
    task = asyncio.create_task(call.read())
    await held.started.wait()
    task.cancel()
    outcome = await raised(task)
    await held.cancelled.wait()
    return outcome, await status(call)


async def writing(call, held):
    """Return a task that writes more than the server takes, once the handler runs."""
    await call.write(b"1")
    await held.started.wait()
    began = asyncio.Event()

    async def write():
        began.set()
        while True:
            await call.write(b"x" * 1_000_000)

    task = asyncio.create_task(write())
    await began.wait()
    return task


@scenario_of_each_kind("stream_unary", "stream_stream")
async def a_writer_is_cancelled(world: World, kind: str):
    """The task that waits in `write` for the server to take more: the call is cancelled with it."""
    held = Held()
    call = world.method(kind, held, at_start=True)()
    task = await writing(call, held)
    task.cancel()
    outcome = await raised(task)
    await held.cancelled.wait()
    return outcome[0], call.done()


@scenario_of_each_kind("stream_unary", "stream_stream")
async def a_blocking_writer_hears_of_cancelling(world: World, kind: str):
    """Whoever waits in `write` when the call is cancelled does not wait on."""
    held = Held()
    call = world.method(kind, held, at_start=True)()
    task = await writing(call, held)
    call.cancel()
    outcome = await raised(task)
    return outcome[0] in ("CancelledError", "InvalidStateError")


@scenario_of_each_kind("stream_unary", "stream_stream")
async def cancelling_stops_the_iterator_of_requests(world: World, kind: str):
    """It is not asked for another message."""
    asked = []

    async def requests():
        while True:
            asked.append(1)
            yield b"again"
            await asyncio.sleep(0)

    held = Held()
    call = world.method(kind, held, at_start=True)(requests())
    await held.started.wait()
    call.cancel()
    await call.code()
    await asyncio.sleep(0.01)
    before = len(asked)
    await asyncio.sleep(0.01)
    return len(asked) == before, await status(call)


@scenario_of_each_kind("stream_unary", "stream_stream")
async def an_iterator_of_requests_may_cancel_its_call(world: World, kind: str):
    """The call is cancelled in the middle of its requests."""
    calls = []

    async def requests():
        yield b"1"
        calls[0].cancel()
        yield b"2"

    method = world.method(kind, Held(), at_start=True)
    calls.append(method(requests()))
    return await raised(answer(calls[0])), await status(calls[0])

"""Scenarios: a stream of requests, from iterators of any kind and written."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.handlers import HANDLERS, join
from tests.drop_in.observations import answer, is_soon_over, raised, status
from tests.drop_in.streams import aiter_of
from tests.drop_in.world import World


@scenario_of_each_kind("stream_unary", "stream_stream")
async def requests_come_from_any_iterable(world: World, kind: str):
    """A list, a tuple, a generator, an iterator, an async generator, an async iterable object."""

    class Numbers:
        def __aiter__(self):
            return aiter_of(b"1", b"2")

    method = getattr(world, kind)(HANDLERS[kind])
    sources = [
        [b"1", b"2"],
        (b"1", b"2"),
        (each for each in (b"1", b"2")),
        iter([b"1", b"2"]),
        {b"1": 0, b"2": 0},
        aiter_of(b"1", b"2"),
        Numbers(),
    ]
    received = []
    for source in sources:
        call = method(source)
        received.append(await answer(call))
    return received


@scenario_of_each_kind("stream_unary", "stream_stream")
async def an_empty_request_stream_is_answered(world: World, kind: str):
    """From an iterable without elements, and from `done_writing` alone."""
    method = getattr(world, kind)(HANDLERS[kind])
    iterated, written = method([]), method()
    await written.done_writing()
    if kind == "stream_unary":
        return await iterated, await written
    return await answer(iterated), await answer(written)


@scenario_of_each_kind("stream_unary", "stream_stream")
async def requests_can_be_written(world: World, kind: str):
    """One by one, then `done_writing`."""
    call = getattr(world, kind)(HANDLERS[kind])()
    for request in (b"1", b"2", b"3"):
        await call.write(request)
    await call.done_writing()
    received = await answer(call)
    return received, await status(call)


@scenario_of_each_kind("stream_unary", "stream_stream")
async def writing_to_a_call_with_an_iterator_is_refused(world: World, kind: str):
    """UsageError from `write` and `done_writing`; the call itself goes on."""
    call = getattr(world, kind)(HANDLERS[kind])([b"1"])
    refused = [await raised(call.write(b"2")), await raised(call.done_writing())]
    return refused, await answer(call)


@scenario_of_each_kind("stream_unary", "stream_stream")
async def writing_after_done_writing_is_refused(world: World, kind: str):
    """InvalidStateError; `done_writing` itself may be said twice."""
    go_on = asyncio.Event()

    async def wait_and_join(requests, context):
        await go_on.wait()
        return await join(requests, context)

    async def wait_and_mirror(requests, context):
        await go_on.wait()
        async for request in requests:
            yield request

    call = getattr(world, kind)(wait_and_join if kind == "stream_unary" else wait_and_mirror)()
    await call.write(b"1")
    await call.done_writing()
    refused = await raised(call.write(b"2"))
    again = await raised(call.done_writing())
    go_on.set()
    return refused, again, await answer(call)


@scenario_of_each_kind("stream_unary", "stream_stream")
async def writing_after_the_end_is_refused(world: World, kind: str):
    """InvalidStateError from `write`, nothing from `done_writing`."""

    async def end(requests, context):
        return b"enough"

    async def end_stream(requests, context):
        return
        yield

    call = getattr(world, kind)(end if kind == "stream_unary" else end_stream)()
    await call.code()
    return await raised(call.write(b"2")), await raised(call.done_writing()), await status(call)


@scenario_of_each_kind("stream_unary", "stream_stream")
async def writing_after_an_error_is_refused(world: World, kind: str):
    """InvalidStateError: the call is over, whatever its status."""

    async def fail(requests, context):
        await context.abort(grpc.StatusCode.DATA_LOSS, "lost")

    call = getattr(world, kind)(fail)()
    await call.code()
    return await raised(call.write(b"2")), await raised(call.done_writing()), await status(call)


@scenario_of_each_kind("stream_unary", "stream_stream")
async def writing_after_cancelling_is_refused(world: World, kind: str):
    """InvalidStateError from `write`, nothing from `done_writing`."""
    call = getattr(world, kind)(HANDLERS[kind])()
    await call.write(b"1")
    call.cancel()
    await call.code()
    return await raised(call.write(b"2")), await raised(call.done_writing())


@scenario_of_each_kind(
    "stream_unary",
    "stream_stream",
    differs=Difference(
        "An iterator of requests that raises",
        grpcio=("CancelledError", ""),
        meshrpc=("ValueError", "no more"),
    ),
)
async def an_iterator_of_requests_raises(world: World, kind: str):
    """After the first request; the caller gets what it raised, or not."""

    async def requests():
        yield b"1"
        raise ValueError("no more")

    call = getattr(world, kind)(HANDLERS[kind])(requests())
    return await raised(answer(call))


@scenario_of_each_kind("stream_unary", "stream_stream")
async def the_status_when_an_iterator_of_requests_raises(world: World, kind: str):
    """The call was cancelled by its own side."""

    def requests():
        yield b"1"
        raise ValueError("no more")

    return await status(getattr(world, kind)(HANDLERS[kind])(requests()))


@scenario_of_each_kind(
    "stream_unary",
    "stream_stream",
    differs=Difference("An iterator of requests after the end", grpcio=False, meshrpc=True),
)
async def an_iterator_of_requests_is_closed_with_its_call(world: World, kind: str):
    """It waits for its next message when the server has answered: is it told?"""
    closed = asyncio.Event()

    async def requests():
        try:
            yield b"1"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def first(requests, context):
        return await anext(aiter(requests))

    async def first_stream(requests, context):
        async for request in requests:
            yield request
            return

    call = getattr(world, kind)(first if kind == "stream_unary" else first_stream)(requests())
    await raised(answer(call))
    return await is_soon_over(asyncio.ensure_future(closed.wait()))


@scenario()
async def an_iterator_that_waits_does_not_hold_up_the_answer(world: World):
    """A server that answers early is heard while the iterator waits for its next message."""

    async def requests():
        yield b"1"
        await asyncio.Event().wait()

    async def first(requests, context):
        return await anext(aiter(requests))

    call = world.stream_unary(first)(requests())
    return await call, await status(call)


@scenario_of_each_kind("stream_unary", "stream_stream")
async def an_iterator_is_asked_without_anybody_awaiting(world: World, kind: str):
    """A call with an iterator sends it on its own."""
    arrived = asyncio.Event()

    async def take(requests, context):
        received = [request async for request in requests]
        arrived.set()
        return received[0]

    async def take_stream(requests, context):
        yield await take(requests, context)

    call = getattr(world, kind)(take if kind == "stream_unary" else take_stream)([b"1", b"2"])
    await arrived.wait()
    return await answer(call)


@scenario_of_each_kind(
    "stream_unary",
    "stream_stream",
    differs=Difference("Requests wait for an instance", grpcio=True, meshrpc=False),
)
async def a_request_is_asked_for_before_anybody_can_take_it(world: World, kind: str):
    """Nobody listens yet, and the call waits for somebody who does."""
    asked = asyncio.Event()

    async def requests():
        asked.set()
        yield b"1"

    channel = world.make_channel(world.closed_port())
    call = getattr(world, kind)(HANDLERS[kind], channel)(requests(), wait_for_ready=True)
    is_asked = await is_soon_over(asyncio.ensure_future(asked.wait()))
    call.cancel()
    return is_asked

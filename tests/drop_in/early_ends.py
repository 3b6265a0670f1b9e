"""Scenarios: calls that end, or never begin, while their requests are being sent."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, scenario_of_each_kind
from tests.drop_in.handlers import HANDLERS
from tests.drop_in.intercepting import interceptor, passes
from tests.drop_in.observations import answer, is_soon_over, raised, status
from tests.drop_in.world import World

_ENDED_EARLY = "A server that ends a call while requests are being sent"


async def plenty():
    """Yield more than a server takes unread."""
    for _ in range(1000):
        yield b"x" * 100_000


@scenario_of_each_kind(
    "stream_stream", differs=Difference(_ENDED_EARLY, grpcio=False, meshrpc=True)
)
async def a_server_answers_before_all_requests_came(world: World, kind: str):
    """Its answer and its OK are what the caller gets, each of forty times."""

    async def first(requests, context):
        async for request in requests:
            yield request[:1]
            return

    method = world.stream_stream(first)
    right = []
    for _ in range(40):
        call = method(plenty())
        outcome = await raised(answer(call))
        right.append(outcome == ("returned", [b"x"]) and await call.code() is grpc.StatusCode.OK)
    return all(right)


@scenario_of_each_kind(
    "stream_unary", "stream_stream", differs=Difference(_ENDED_EARLY, grpcio=False, meshrpc=True)
)
async def a_server_that_fails_early_is_heard_by_a_writer(world: World, kind: str):
    """Its code is what the call has, each of forty times."""

    async def fail(requests, context):
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")

    method = getattr(world, kind)(fail)
    codes = set()
    for _ in range(40):
        call = method()
        try:
            while True:
                await call.write(b"x" * 100_000)
        except asyncio.InvalidStateError:
            pass
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())
        codes.add(await call.code())
    return codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}


@scenario_of_each_kind(
    "stream_stream", differs=Difference(_ENDED_EARLY, grpcio=False, meshrpc=True)
)
async def a_server_that_fails_early_is_heard_by_a_reader(world: World, kind: str):
    """While an iterator is being sent, each of forty times."""

    async def fail(requests, context):
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")

    method = getattr(world, kind)(fail)
    codes = {(await raised(answer(method(plenty()))))[1] for _ in range(40)}
    return codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}


@scenario_of_each_kind(
    "stream_unary",
    "stream_stream",
    differs=Difference(
        "Waiting for a connection",
        grpcio=["waits on", "waits on"],
        meshrpc=["CancelledError", "InvalidStateError"],
    ),
)
async def a_stream_is_cancelled_before_it_is_connected(world: World, kind: str):
    """Whoever waits for the connection, or in a first write, hears of it, or waits on."""
    channel = world.make_channel(port=world.closed_port())
    call = getattr(world, kind)(HANDLERS[kind], channel)(wait_for_ready=True)

    waits = [asyncio.ensure_future(wait) for wait in (call.wait_for_connection(), call.write(b"1"))]
    await asyncio.sleep(0)
    call.cancel()
    over = await asyncio.gather(*map(is_soon_over, waits))
    ends = [await raised(waiting) for waiting in waits]
    return [end[0] if is_over else "waits on" for is_over, end in zip(over, ends, strict=True)]


@scenario_of_each_kind("stream_unary", "stream_stream")
async def writing_to_nobody(world: World, kind: str):
    """The first write says why, the others that the call is over; so does the end of writing."""
    channel = world.make_channel(port=world.closed_port())
    call = getattr(world, kind)(HANDLERS[kind], channel)()
    return [
        await raised(call.write(b"1")),
        await raised(call.write(b"2")),
        await raised(call.done_writing()),
        await status(call),
    ]


@scenario_of_each_kind(
    "stream_unary",
    "stream_stream",
    differs=Difference(
        "Writing to a call that reaches nobody", grpcio=[False, False], meshrpc=[True, True]
    ),
)
async def writing_to_nobody_otherwise(world: World, kind: str):
    """Whether the writer learns the status: with an interceptor, and from `done_writing` alone."""
    port = world.closed_port()
    plainly = world.make_channel(port=port)
    intercepted = world.make_channel(port=port, interceptors=[interceptor(kind, passes)])
    outcomes = [
        await raised(getattr(world, kind)(HANDLERS[kind], intercepted)().write(b"1")),
        await raised(getattr(world, kind)(HANDLERS[kind], plainly)().done_writing()),
    ]
    return [outcome[:2] == ("AioRpcError", grpc.StatusCode.UNAVAILABLE) for outcome in outcomes]


@scenario_of_each_kind("stream_unary", "stream_stream")
async def a_written_call_that_reaches_nobody_leaves_nothing(world: World, kind: str):
    """With an interceptor or without: once the channel is closed no task remains."""
    before = asyncio.all_tasks()
    port = world.closed_port()
    for interceptors in ([], [interceptor(kind, passes)]):
        channel = world.make_channel(port=port, interceptors=interceptors)
        call = getattr(world, kind)(HANDLERS[kind], channel)()
        await raised(call.write(b"1"))
        await raised(call.done_writing())
        await raised(answer(call))
        await channel.close()
    while left := asyncio.all_tasks() - before:
        await asyncio.wait(left)

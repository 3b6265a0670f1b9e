"""Scenarios: going on with a call that is over, or giving up what waits for it."""

from __future__ import annotations

import asyncio

import grpc

from tests.drop_in.battery import scenario_of_each_kind
from tests.drop_in.handlers import aborting
from tests.drop_in.intercepting import start
from tests.drop_in.observations import answer, begin, raised, status
from tests.drop_in.world import World


@scenario_of_each_kind("unary_stream", "stream_stream")
async def a_failed_iteration_is_over(world: World, kind: str):
    """Another one ends at once, also where the call was cancelled before it reached anybody."""
    failing = world.method(kind, aborting(grpc.StatusCode.NOT_FOUND, "no"))
    failed = begin(kind, failing)
    unsent = begin(kind, failing)
    unsent.cancel()
    return [await raised(answer(call)) for call in (failed, failed, unsent, unsent)]


@scenario_of_each_kind("unary_stream", "stream_stream")
async def an_intercepted_stream_may_be_read_in_both_ways(world: World, kind: str):
    """By `read` and by iteration; after a failure both say that there is no more."""

    async def pass_on(continuation, details, request):
        return await continuation(details, request)

    async def refuse(continuation, details, request):
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), "no"
        )

    call = start(world, kind, pass_on)
    received = [await call.read(), await answer(call), await raised(call.read())]
    call = start(world, kind, refuse)
    return [*received, (await raised(call.read()))[0], await raised(call.read())]


@scenario_of_each_kind("stream_unary", "stream_stream")
async def giving_up_the_wait_for_a_connection_is_not_cancelling(world: World, kind: str):
    """A stream goes on when the task that waits for its connection is cancelled."""
    channel = world.make_channel(port=world.closed_port())
    method = getattr(channel, kind)("/drop.In/Method")
    call = method(wait_for_ready=True)
    waiting = asyncio.ensure_future(call.wait_for_connection())
    await asyncio.sleep(0)
    waiting.cancel()
    given_up = await raised(waiting)
    went_on = call.done()
    call.cancel()
    return given_up, went_on, await status(call)

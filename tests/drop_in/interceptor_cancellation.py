"""Scenarios: calls with client interceptors that are cancelled."""

from __future__ import annotations

import asyncio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.handlers import Held, answering, echo
from tests.drop_in.intercepting import Waits, interceptor, passes, start
from tests.drop_in.observations import answer, raised
from tests.drop_in.world import World


@scenario_of_each_kind()
async def an_intercepted_call_is_cancelled_on_both_ends(world: World, kind: str):
    """cancel() reaches the handler through the interceptor."""
    held = Held()
    call = start(world, kind, passes, handler=answering(kind, held))
    await held.started.wait()
    cancelled = call.cancel()
    seen = await raised(answer(call))
    await held.cancelled.wait()
    return [cancelled, seen, call.cancelled(), call.done(), await call.code()]


@scenario_of_each_kind()
async def a_call_is_cancelled_while_its_interceptor_waits(world: World, kind: str):
    """The interceptor sees CancelledError, and no call goes out."""

    async def behave(context):
        world.note("called")

    waits = Waits()
    call = start(world, kind, waits, handler=answering(kind, behave, at_start=True))
    await waits.inside.started.wait()
    cancelled = call.cancel()
    seen = await raised(answer(call))
    await waits.inside.cancelled.wait()
    return [cancelled, seen, call.cancelled(), call.done(), await call.code()]


@scenario_of_each_kind()
async def an_interceptor_cancels_a_call(world: World, kind: str):
    """The caller sees a cancelled call."""

    async def cancel(continuation, details, request):
        call = await continuation(details, request)
        call.cancel()
        return call

    call = start(world, kind, cancel)
    seen = await raised(answer(call))
    return [seen, call.cancelled(), call.done(), await call.code()]


@scenario_of_each_kind("unary_unary", "stream_unary")
async def cancelling_the_task_that_awaits_an_intercepted_call_cancels_it(world: World, kind: str):
    """The handler sees it, through an interceptor that awaits the call."""

    async def waits(continuation, details, request):
        call = await continuation(details, request)
        await call
        return call

    held = Held()
    call = start(world, kind, waits, handler=answering(kind, held))
    task = asyncio.create_task(answer(call))
    await held.started.wait()
    task.cancel()
    await asyncio.wait([task])
    await held.cancelled.wait()
    return [task.cancelled(), call.cancelled(), call.done()]


@scenario()
async def closing_the_channel_cancels_a_call_held_by_an_interceptor(world: World):
    """Even one that has not gone out yet."""
    waits = Waits()
    channel = world.make_channel(interceptors=[interceptor("unary_unary", waits)])
    call = world.unary_unary(echo, channel)(b"a")
    await waits.inside.started.wait()
    await channel.close()
    await waits.inside.cancelled.wait()
    return [await raised(call), call.done(), call.cancelled()]

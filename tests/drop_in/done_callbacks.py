"""Scenarios: done callbacks, when they are called, with what, and how often."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.handlers import aborting, at_once
from tests.drop_in.observations import answer, begin, raised, status
from tests.drop_in.overdue import overdue
from tests.drop_in.world import World


@scenario_of_each_kind()
async def a_done_callback_is_called_with_the_call(world: World, kind: str):
    """Once, when the call is over."""
    called = asyncio.Event()
    seen = []

    def callback(argument):
        seen.append((argument is call, argument.done(), argument.cancelled()))
        called.set()

    call = world.start(kind, at_once)
    call.add_done_callback(callback)
    received = await answer(call)
    await called.wait()
    return received, seen


@scenario_of_each_kind()
async def done_callbacks_are_called_in_order(world: World, kind: str):
    """In the order in which they were added, one added twice called twice."""
    called = asyncio.Event()
    seen = []

    def first(call):
        seen.append("first")

    def second(call):
        seen.append("second")

    call = world.start(kind, at_once)
    for callback in (first, second, first, lambda call: called.set()):
        call.add_done_callback(callback)
    await answer(call)
    await called.wait()
    return seen


@scenario_of_each_kind()
async def a_done_callback_added_after_the_end(world: World, kind: str):
    """It is called at once."""
    seen = []
    call = world.start(kind, at_once)
    await answer(call)
    await call.code()
    call.add_done_callback(lambda call: seen.append("called"))
    return seen


@scenario_of_each_kind()
async def a_done_callback_is_called_for_an_error(world: World, kind: str):
    """And can ask what it is."""
    called = asyncio.get_running_loop().create_future()

    def callback(call):
        called.set_result((call.done(), call.cancelled()))

    call = world.start(kind, aborting(grpc.StatusCode.NOT_FOUND, "gone"))
    call.add_done_callback(callback)
    return await called, await call.code()


@scenario_of_each_kind()
async def a_done_callback_is_called_for_a_cancellation(world: World, kind: str):
    """And is told so."""
    called = asyncio.get_running_loop().create_future()

    def callback(call):
        called.set_result((call.done(), call.cancelled()))

    call = world.start(kind, at_once)
    call.add_done_callback(callback)
    call.cancel()
    return await called


@scenario_of_each_kind()
async def a_done_callback_is_called_for_a_deadline(world: World, kind: str):
    """Which is no cancellation."""
    called = asyncio.get_running_loop().create_future()
    call, _ = await overdue(lambda held, timeout: world.start(kind, held, timeout=timeout))
    call.add_done_callback(lambda call: called.set_result((call.done(), call.cancelled())))
    return await called, await call.code()


@scenario_of_each_kind()
async def a_done_callback_is_called_where_nobody_listens(world: World, kind: str):
    """A call that reached no server is over like any other."""
    called = asyncio.get_running_loop().create_future()
    channel = world.make_channel(port=world.closed_port())
    call = begin(kind, world.method(kind, at_once, channel))
    call.add_done_callback(lambda call: called.set_result((call.done(), call.cancelled())))
    return await called, await call.code()


@scenario_of_each_kind(
    differs=Difference(
        "A done callback that raises",
        grpcio=[],
        meshrpc=[ValueError, "called"],
    )
)
async def a_done_callback_raises(world: World, kind: str):
    """Whether the next one is called all the same, and the event loop is told."""
    seen = []

    def on_error(loop, context):
        if "done callback" in context["message"]:  # and not that a task of grpcio's came to nothing
            seen.append(type(context.get("exception")))

    asyncio.get_running_loop().set_exception_handler(on_error)

    def fail(call):
        raise ValueError("clumsy")

    call = world.start(kind, at_once)
    call.add_done_callback(fail)
    call.add_done_callback(lambda call: seen.append("called"))
    await raised(answer(call))
    await call.code()
    return seen


@scenario()
async def a_done_callback_must_be_callable(world: World):
    """Anything else is a TypeError at once."""
    call = world.start("unary_unary", at_once)
    try:
        call.add_done_callback(None)
    except TypeError:
        return await call
    return "taken"


@scenario()
async def a_done_callback_may_add_another(world: World):
    """It is called too."""
    called = asyncio.Event()
    call = world.start("unary_unary", at_once)
    call.add_done_callback(lambda call: call.add_done_callback(lambda call: called.set()))
    await call
    await called.wait()
    return called.is_set()


@scenario()
async def a_done_callback_may_be_a_coroutine_function(world: World):
    """It is called, and what it returns is not awaited."""
    made = []

    def callback(call):
        async def coroutine():
            return None

        made.append(coroutine())
        return made[-1]

    call = world.start("unary_unary", at_once)
    call.add_done_callback(callback)
    await call
    await call.code()
    await asyncio.sleep(0)
    made[0].close()
    return len(made)


@scenario()
async def a_done_callback_sees_the_status_by_then(world: World):
    """A task it starts gets code and details without waiting."""
    tasks = []

    def callback(call):
        tasks.append(asyncio.ensure_future(status(call)))

    call = world.start("unary_unary", aborting(grpc.StatusCode.ABORTED, "now"))
    call.add_done_callback(callback)
    await raised(call)
    await asyncio.sleep(0)
    return await tasks[0]

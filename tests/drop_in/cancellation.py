"""Scenarios: calls that are cancelled, by whom and when, and what everybody sees of it."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.handlers import Held, at_once
from tests.drop_in.observations import answer, begin, raised, status
from tests.drop_in.overdue import overdue
from tests.drop_in.world import World

EOF = grpc.aio.EOF


@scenario_of_each_kind()
async def a_call_cancelled_at_once(world: World, kind: str):
    """Before anything was sent: it is over, and says who ended it."""
    call = world.start(kind, at_once)
    asked = call.cancel()
    outcome = await raised(answer(call))
    return asked, outcome, await status(call), await call.debug_error_string()


@scenario_of_each_kind()
async def a_running_call_is_cancelled(world: World, kind: str):
    """The handler sees it; the caller gets CancelledError."""
    held = Held()
    call = world.start(kind, held)
    await held.started.wait()
    asked = call.cancel()
    outcome = await raised(answer(call))
    await held.cancelled.wait()
    return asked, outcome, await status(call)


@scenario_of_each_kind()
async def cancelling_again_says_no(world: World, kind: str):
    """Only the first `cancel` of a call returns True."""
    held = Held()
    call = world.start(kind, held)
    await held.started.wait()
    asked = [call.cancel(), call.cancel()]
    await call.code()
    return [*asked, call.cancel()]


@scenario_of_each_kind()
async def a_call_that_is_over_cannot_be_cancelled(world: World, kind: str):
    """`cancel` returns False, and nothing changes."""
    call = world.start(kind, at_once)
    received = await answer(call)
    await call.code()
    return received, call.cancel(), await status(call)


@scenario_of_each_kind()
async def a_call_is_over_as_soon_as_it_is_cancelled(world: World, kind: str):
    """What `done` and `cancelled` say right after `cancel`."""
    held = Held()
    call = world.start(kind, held)
    await held.started.wait()
    call.cancel()
    return call.done(), call.cancelled()


@scenario_of_each_kind()
async def a_call_is_over_as_soon_as_it_is_cancelled_unsent(world: World, kind: str):
    """What `done` and `cancelled` say right after making and cancelling a call."""
    call = world.start(kind, at_once)
    call.cancel()
    return call.done(), call.cancelled()


@scenario_of_each_kind()
async def the_awaiting_task_is_cancelled(world: World, kind: str):
    """So is its call, and the handler sees it."""
    held = Held()
    call = world.start(kind, held)
    task = asyncio.create_task(answer(call))
    await held.started.wait()
    task.cancel()
    outcome = await raised(task)
    await held.cancelled.wait()
    return outcome, task.cancelled(), await status(call)


@scenario_of_each_kind()
async def awaiting_runs_out_of_time(world: World, kind: str):
    """`wait_for` raises TimeoutError and the call is cancelled."""
    held = Held()
    call = world.start(kind, held)
    await held.started.wait()
    outcome = await raised(asyncio.wait_for(answer(call), 0.01))
    await held.cancelled.wait()
    return outcome[0], await status(call)


@scenario_of_each_kind()
async def a_timeout_block_runs_out(world: World, kind: str):
    """`asyncio.timeout` around the call is the same."""
    held = Held()
    call = world.start(kind, held)
    await held.started.wait()

    async def bounded():
        async with asyncio.timeout(0.01):
            await answer(call)

    outcome = await raised(bounded())
    await held.cancelled.wait()
    return outcome[0], await status(call)


@scenario_of_each_kind("unary_unary", "stream_unary")
async def one_of_two_awaiting_tasks_is_cancelled(world: World, kind: str):
    """The call is the other one's too: both are cancelled."""
    held = Held()
    call = world.start(kind, held)
    tasks = [asyncio.create_task(answer(call)) for _ in range(2)]
    await held.started.wait()
    tasks[0].cancel()
    outcomes = [await raised(task) for task in tasks]
    await held.cancelled.wait()
    return outcomes, await status(call)


@scenario_of_each_kind()
async def a_shielded_call_outlives_the_task(world: World, kind: str):
    """Cancelling a task that awaits a shield leaves the call running."""
    held = Held()
    call = world.start(kind, held)
    inner = asyncio.ensure_future(answer(call))

    async def wait():
        return await asyncio.shield(inner)

    task = asyncio.create_task(wait())
    await held.started.wait()
    task.cancel()
    outcome = await raised(task)
    held.go_on.set()
    return outcome, await inner, await status(call)


@scenario_of_each_kind()
async def a_task_that_waits_for_the_code_is_cancelled(world: World, kind: str):
    """The call goes on: whoever asks for its status does not own it."""
    held = Held()
    call = world.start(kind, held)
    asking = [
        asyncio.ensure_future(ask())
        for ask in (call.code, call.details, call.trailing_metadata, call.initial_metadata)
    ]
    await held.started.wait()
    for task in asking:
        task.cancel()
    outcomes = [await raised(task) for task in asking]
    held.go_on.set()
    return outcomes, await raised(answer(call)), await status(call)


@scenario_of_each_kind()
async def another_task_cancels_the_call(world: World, kind: str):
    """The one that awaits gets CancelledError without having been cancelled itself."""
    held = Held()
    call = world.start(kind, held)

    async def wait():
        try:
            await answer(call)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            return "cancelled", task.cancelling()

    task = asyncio.create_task(wait())
    await held.started.wait()
    call.cancel()
    return await task, task.cancelled()


@scenario_of_each_kind()
async def a_cancelled_call_is_awaited_twice(world: World, kind: str):
    """CancelledError both times."""
    held = Held()
    call = world.start(kind, held)
    await held.started.wait()
    call.cancel()
    return [(await raised(answer(call)))[0] for _ in range(2)]


@scenario_of_each_kind()
async def the_code_is_asked_before_the_call_is_cancelled(world: World, kind: str):
    """It answers CANCELLED when that happens."""
    held = Held()
    call = world.start(kind, held)
    asking = asyncio.gather(call.code(), call.details(), call.debug_error_string())
    await held.started.wait()
    call.cancel()
    return await asking


@scenario_of_each_kind()
async def a_call_is_cancelled_by_its_done_callback(world: World, kind: str):
    """It is over by then: `cancel` says no."""
    said = asyncio.get_running_loop().create_future()
    call = world.start(kind, at_once)
    call.add_done_callback(lambda call: said.set_result((call.done(), call.cancel())))
    received = await answer(call)
    return received, await said, await status(call)


@scenario_of_each_kind()
async def the_server_says_cancelled(world: World, kind: str):
    """A handler that aborts with CANCELLED is an error as any other, and nobody cancelled here."""

    async def behave(context):
        await context.abort(grpc.StatusCode.CANCELLED, "changed my mind")

    call = world.start(kind, behave)
    return await raised(answer(call)), await status(call)


@scenario_of_each_kind()
async def a_cancelled_handler_may_clean_up(world: World, kind: str):
    """It may await, and what its context says of it."""
    started, cleaned = asyncio.Event(), asyncio.Event()

    async def behave(context):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            world.note("cleaned up")
            cleaned.set()

    call = world.start(kind, behave)
    await started.wait()
    call.cancel()
    await cleaned.wait()
    return (await raised(answer(call)))[0]


@scenario_of_each_kind()
async def a_task_group_cancels_its_calls(world: World, kind: str):
    """When one task of a group fails, the calls of the others are cancelled."""
    held = Held()
    call = world.start(kind, held)

    async def fail():
        await held.started.wait()
        raise ValueError("enough")

    async def grouped():
        async with asyncio.TaskGroup() as group:
            group.create_task(answer(call))
            group.create_task(fail())

    outcome = await raised(grouped())
    await held.cancelled.wait()
    return outcome[0], await status(call)


@scenario_of_each_kind()
async def a_call_that_waits_for_ready_is_cancelled(world: World, kind: str):
    """Although it never reached a server."""
    channel = world.make_channel(port=world.closed_port())
    call = begin(kind, world.method(kind, at_once, channel), wait_for_ready=True)
    task = asyncio.create_task(answer(call))
    await asyncio.sleep(0)
    asked = call.cancel()
    return asked, await raised(task), await status(call)


@scenario_of_each_kind()
async def cancelling_after_the_deadline_changes_nothing(world: World, kind: str):
    """The code remains DEADLINE_EXCEEDED."""
    call, _ = await overdue(lambda held, timeout: world.start(kind, held, timeout=timeout))
    await call.code()
    return call.cancel(), call.cancelled(), await call.code()


@scenario()
async def the_server_stops_during_a_call(world: World):
    """With no grace: the call fails as one whose connection was lost, and was not cancelled."""
    held = Held()
    call = world.start("unary_unary", held)
    await held.started.wait()
    await world.server.stop(None)
    outcome = await raised(call)
    return outcome[1], call.cancelled(), call.done()

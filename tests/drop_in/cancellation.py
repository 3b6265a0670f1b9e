"""Scenarios: calls that are cancelled, by whom and when, and what everybody sees of it."""

from __future__ import annotations

import asyncio
import socket

import grpc
import grpc.aio

from tests.drop_in.battery import (
    World,
    answer,
    at_once,
    begin,
    raised,
    scenario,
    scenario_of_each_kind,
    status,
)

EOF = grpc.aio.EOF


class Hanging:
    """A behaviour that waits until it is cancelled, and says so."""

    def __init__(self):
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, context):
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def over(self):
        """Return once it was cancelled, unless it never began."""
        if self.started.is_set():
            await self.cancelled.wait()


@scenario_of_each_kind()
async def a_call_cancelled_at_once(world: World, kind: str):
    """Before anything was sent: it is over, and says who ended it."""
    call = world.start(kind, at_once)
    asked = call.cancel()
    outcome = await raised(answer(kind, call))
    return asked, outcome, await status(call), await call.debug_error_string()


@scenario_of_each_kind()
async def a_running_call_is_cancelled(world: World, kind: str):
    """The handler sees it; the caller gets CancelledError."""
    hanging = Hanging()
    call = world.start(kind, hanging)
    await hanging.started.wait()
    asked = call.cancel()
    outcome = await raised(answer(kind, call))
    await hanging.cancelled.wait()
    return asked, outcome, await status(call)


@scenario_of_each_kind()
async def cancelling_again_says_no(world: World, kind: str):
    """Only the first `cancel` of a call returns True."""
    hanging = Hanging()
    call = world.start(kind, hanging)
    await hanging.started.wait()
    asked = [call.cancel(), call.cancel()]
    await call.code()
    return [*asked, call.cancel()]


@scenario_of_each_kind()
async def a_call_that_is_over_cannot_be_cancelled(world: World, kind: str):
    """`cancel` returns False, and nothing changes."""
    call = world.start(kind, at_once)
    received = await answer(kind, call)
    await call.code()
    return received, call.cancel(), await status(call)


@scenario_of_each_kind()
async def a_call_is_over_as_soon_as_it_is_cancelled(world: World, kind: str):
    """What `done` and `cancelled` say right after `cancel`."""
    hanging = Hanging()
    call = world.start(kind, hanging)
    await hanging.started.wait()
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
    hanging = Hanging()
    call = world.start(kind, hanging)
    task = asyncio.create_task(answer(kind, call))
    await hanging.started.wait()
    task.cancel()
    outcome = await raised(task)
    await hanging.cancelled.wait()
    return outcome, task.cancelled(), await status(call)


@scenario_of_each_kind()
async def awaiting_runs_out_of_time(world: World, kind: str):
    """`wait_for` raises TimeoutError and the call is cancelled."""
    hanging = Hanging()
    call = world.start(kind, hanging)
    await hanging.started.wait()
    outcome = await raised(asyncio.wait_for(answer(kind, call), 0.01))
    await hanging.cancelled.wait()
    return outcome[0], await status(call)


@scenario_of_each_kind()
async def a_timeout_block_runs_out(world: World, kind: str):
    """`asyncio.timeout` around the call is the same."""
    hanging = Hanging()
    call = world.start(kind, hanging)
    await hanging.started.wait()

    async def bounded():
        async with asyncio.timeout(0.01):
            await answer(kind, call)

    outcome = await raised(bounded())
    await hanging.cancelled.wait()
    return outcome[0], await status(call)


@scenario_of_each_kind("unary_unary", "stream_unary")
async def one_of_two_awaiting_tasks_is_cancelled(world: World, kind: str):
    """The call is the other one's too: both are cancelled."""
    hanging = Hanging()
    call = world.start(kind, hanging)
    tasks = [asyncio.create_task(answer(kind, call)) for _ in range(2)]
    await hanging.started.wait()
    tasks[0].cancel()
    outcomes = [await raised(task) for task in tasks]
    await hanging.cancelled.wait()
    return outcomes, await status(call)


@scenario_of_each_kind()
async def a_shielded_call_outlives_the_task(world: World, kind: str):
    """Cancelling a task that awaits a shield leaves the call running."""
    started, go_on = asyncio.Event(), asyncio.Event()

    async def behave(context):
        started.set()
        await go_on.wait()

    call = world.start(kind, behave)
    inner = asyncio.ensure_future(answer(kind, call))

    async def wait():
        return await asyncio.shield(inner)

    task = asyncio.create_task(wait())
    await started.wait()
    task.cancel()
    outcome = await raised(task)
    go_on.set()
    return outcome, await inner, await status(call)


@scenario_of_each_kind()
async def a_task_that_waits_for_the_code_is_cancelled(world: World, kind: str):
    """The call goes on: whoever asks for its status does not own it."""
    started, go_on = asyncio.Event(), asyncio.Event()

    async def behave(context):
        started.set()
        await go_on.wait()

    call = world.start(kind, behave)
    asking = [
        asyncio.ensure_future(ask())
        for ask in (call.code, call.details, call.trailing_metadata, call.initial_metadata)
    ]
    await started.wait()
    for task in asking:
        task.cancel()
    outcomes = [await raised(task) for task in asking]
    go_on.set()
    return outcomes, await raised(answer(kind, call)), await status(call)


@scenario_of_each_kind()
async def another_task_cancels_the_call(world: World, kind: str):
    """The one that awaits gets CancelledError without having been cancelled itself."""
    hanging = Hanging()
    call = world.start(kind, hanging)

    async def wait():
        try:
            await answer(kind, call)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            return "cancelled", task.cancelling()

    task = asyncio.create_task(wait())
    await hanging.started.wait()
    call.cancel()
    return await task, task.cancelled()


@scenario_of_each_kind()
async def a_cancelled_call_is_awaited_twice(world: World, kind: str):
    """CancelledError both times."""
    hanging = Hanging()
    call = world.start(kind, hanging)
    await hanging.started.wait()
    call.cancel()
    return [(await raised(answer(kind, call)))[0] for _ in range(2)]


@scenario_of_each_kind()
async def the_code_is_asked_before_the_call_is_cancelled(world: World, kind: str):
    """It answers CANCELLED when that happens."""
    hanging = Hanging()
    call = world.start(kind, hanging)
    asking = asyncio.gather(call.code(), call.details(), call.debug_error_string())
    await hanging.started.wait()
    call.cancel()
    return await asking


@scenario_of_each_kind()
async def a_call_is_cancelled_by_its_done_callback(world: World, kind: str):
    """It is over by then: `cancel` says no."""
    said = asyncio.get_running_loop().create_future()
    call = world.start(kind, at_once)
    call.add_done_callback(lambda call: said.set_result((call.done(), call.cancel())))
    received = await answer(kind, call)
    return received, await said, await status(call)


@scenario_of_each_kind()
async def the_server_says_cancelled(world: World, kind: str):
    """A handler that aborts with CANCELLED is an error as any other, and nobody cancelled here."""

    async def behave(context):
        await context.abort(grpc.StatusCode.CANCELLED, "changed my mind")

    call = world.start(kind, behave)
    return await raised(answer(kind, call)), await status(call)


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
    return (await raised(answer(kind, call)))[0]


@scenario_of_each_kind()
async def a_task_group_cancels_its_calls(world: World, kind: str):
    """When one task of a group fails, the calls of the others are cancelled."""
    hanging = Hanging()
    call = world.start(kind, hanging)

    async def fail():
        await hanging.started.wait()
        raise ValueError("enough")

    async def grouped():
        async with asyncio.TaskGroup() as group:
            group.create_task(answer(kind, call))
            group.create_task(fail())

    outcome = await raised(grouped())
    await hanging.cancelled.wait()
    return outcome[0], await status(call)


@scenario_of_each_kind()
async def a_call_that_waits_for_ready_is_cancelled(world: World, kind: str):
    """Although it never reached a server."""
    channel = world.make_channel(port=closed_port())
    call = begin(kind, world.method(kind, at_once, channel), wait_for_ready=True)
    task = asyncio.create_task(answer(kind, call))
    await asyncio.sleep(0)
    asked = call.cancel()
    return asked, await raised(task), await status(call)


def closed_port():
    """Return a port where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


@scenario()
async def a_stream_is_cancelled_between_two_messages(world: World):
    """The next message is CancelledError, by iteration."""
    call = world.stream_stream(mirror)(endless())
    messages = aiter(call)
    first = await anext(messages)
    call.cancel()
    return first, await raised(anext(messages)), await raised(anext(messages)), await status(call)


@scenario()
async def a_stream_is_cancelled_between_two_reads(world: World):
    """The next read is CancelledError, and each one after it."""
    call = world.stream_stream(mirror)(endless())
    first = await call.read()
    call.cancel()
    return first, await raised(call.read()), await raised(call.read()), await status(call)


async def mirror(requests, context):
    async for request in requests:
        yield request


async def endless():
    while True:
        yield b"again"
        await asyncio.sleep(0)


@scenario()
async def a_reader_is_cancelled(world: World):
    """The task that waits in `read`: the call is cancelled with it."""
    hanging = Hanging()
    call = world.start("unary_stream", hanging)
    task = asyncio.create_task(call.read())
    await hanging.started.wait()
    task.cancel()
    outcome = await raised(task)
    await hanging.cancelled.wait()
    return outcome, await status(call)


async def writing(call, hanging):
    """Return a task that writes more than the server takes, once the handler runs."""
    await call.write(b"1")
    await hanging.started.wait()
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
    hanging = Hanging()
    call = world.method(kind, hanging, at_start=True)()
    task = await writing(call, hanging)
    task.cancel()
    outcome = await raised(task)
    await hanging.cancelled.wait()
    return outcome[0], call.done()


@scenario_of_each_kind("stream_unary", "stream_stream")
async def a_blocking_writer_hears_of_cancelling(world: World, kind: str):
    """Whoever waits in `write` when the call is cancelled does not wait on."""
    hanging = Hanging()
    call = world.method(kind, hanging, at_start=True)()
    task = await writing(call, hanging)
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

    hanging = Hanging()
    call = world.method(kind, hanging, at_start=True)(requests())
    await hanging.started.wait()
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

    method = world.method(kind, Hanging(), at_start=True)
    calls.append(method(requests()))
    return await raised(answer(kind, calls[0])), await status(calls[0])


@scenario_of_each_kind()
async def cancelling_after_the_deadline_changes_nothing(world: World, kind: str):
    """The code remains DEADLINE_EXCEEDED."""
    call = world.start(kind, Hanging(), timeout=0.02)
    await call.code()
    return call.cancel(), call.cancelled(), await call.code()


@scenario()
async def the_server_stops_during_a_call(world: World):
    """With no grace: the call fails as one whose connection was lost, and was not cancelled."""
    hanging = Hanging()
    call = world.start("unary_unary", hanging)
    await hanging.started.wait()
    await world.server.stop(None)
    outcome = await raised(call)
    return outcome[1], call.cancelled(), call.done()

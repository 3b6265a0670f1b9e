"""Scenarios: timeouts, what remains of them on both sides, and what happens when they pass."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.handlers import Held, at_once, echo
from tests.drop_in.observations import answer, begin, plain, raised, status, text
from tests.drop_in.overdue import overdue, overdue_after
from tests.drop_in.world import World


@scenario_of_each_kind()
async def a_deadline_passes(world: World, kind: str):
    """DEADLINE_EXCEEDED at the caller, and the handler is cancelled."""
    call, held = await overdue(lambda held, timeout: world.start(kind, held, timeout=timeout))
    outcome = await raised(answer(call))
    await held.cancelled.wait()
    return outcome, await status(call)


@scenario_of_each_kind()
async def a_deadline_passes_unawaited(world: World, kind: str):
    """The call ends although nobody waits, and says so to whoever asks later."""
    call, held = await overdue(lambda held, timeout: world.start(kind, held, timeout=timeout))
    await call.code()
    await held.cancelled.wait()
    return call.done(), call.cancelled(), await raised(answer(call))


@scenario_of_each_kind()
async def time_remains_on_both_sides(world: World, kind: str):
    """A little less than the timeout; less and less while the call runs."""
    seen = []

    async def behave(context):
        seen.append(context.time_remaining())
        await asyncio.sleep(0.01)
        seen.append(context.time_remaining())

    call = world.start(kind, behave, timeout=60)
    before = call.time_remaining()
    await answer(call)
    after = call.time_remaining()
    return 50 < seen[1] < seen[0] <= 60.1, 50 < after < before <= 60


@scenario_of_each_kind()
async def no_time_remains_without_a_timeout(world: World, kind: str):
    """None on both sides."""
    seen = []

    async def behave(context):
        seen.append(context.time_remaining())

    call = world.start(kind, behave)
    await answer(call)
    return seen, call.time_remaining()


@scenario_of_each_kind()
async def no_time_remains_after_the_deadline(world: World, kind: str):
    """Zero, and never less."""
    call = world.start(kind, Held(), timeout=0.05)
    await call.code()
    await asyncio.sleep(0.02)
    return call.time_remaining()


# Of streams of requests it is a race in grpcio whether writing or the deadline is first to end it.
@scenario_of_each_kind("unary_unary", "unary_stream")
async def a_timeout_in_the_past(world: World, kind: str):
    """The call fails with DEADLINE_EXCEEDED; how it says so is not compared."""
    call = world.start(kind, Held(), timeout=-1)
    outcome = await raised(answer(call))
    return outcome[:2], call.time_remaining(), call.done(), call.cancelled(), await call.code()


@scenario_of_each_kind("unary_unary", "unary_stream")
async def a_timeout_of_zero(world: World, kind: str):
    """The call fails with DEADLINE_EXCEEDED where the server does not answer at once."""
    call = world.start(kind, Held(), timeout=0)
    outcome = await raised(answer(call))
    return outcome[:2], call.time_remaining(), await call.code()


@scenario_of_each_kind(
    differs=Difference(
        "A deadline that passes before the call is sent",
        grpcio="Deadline Exceeded",
        meshrpc="deadline passed before the call was sent",
    )
)
async def the_details_of_a_timeout_in_the_past(world: World, kind: str):
    """What is told besides DEADLINE_EXCEEDED."""
    return text(await world.start(kind, Held(), timeout=-1).details())


@scenario()
async def a_timeout_may_be_any_number(world: World):
    """An int, a float, a bool, a numpy-like object; None is no timeout."""

    class Number:
        def __float__(self):
            return 60.0

    method = world.unary_unary(echo)
    seen = []
    for timeout in (60, 60.5, True, None, Number(), "60"):
        try:
            call = method(b"a", timeout=timeout)
            seen.append((await call, call.time_remaining() is None))
        except Exception as error:  # noqa: BLE001 - its type is the question
            seen.append(type(error))
    return seen


@scenario()
async def a_very_long_timeout(world: World):
    """A year and more: the call is answered."""
    method = world.unary_unary(echo)
    return [await method(b"a", timeout=timeout) for timeout in (86_400 * 365.0, 1e8)]


@scenario(
    differs=Difference(
        "Timeouts of centuries",
        grpcio=["DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"],
        meshrpc=["answered", "answered"],
    )
)
async def an_endless_timeout(world: World):
    """Infinite, or longer than gRPC can count."""
    method = world.unary_unary(echo)
    outcomes = []
    for timeout in (float("inf"), 1e11):
        try:
            await method(b"a", timeout=timeout)
            outcomes.append("answered")
        except grpc.aio.AioRpcError as error:
            outcomes.append(error.code().name)
    return outcomes


@scenario_of_each_kind()
async def a_deadline_passes_before_a_server_is_reached(world: World, kind: str):
    """With `wait_for_ready` and nobody listening."""
    channel = world.make_channel(port=world.closed_port())
    call = begin(kind, world.method(kind, at_once, channel), wait_for_ready=True, timeout=0.1)
    outcome = await raised(answer(call))
    return outcome[:2], call.done(), call.cancelled(), await call.code()


@scenario_of_each_kind()
async def initial_metadata_does_not_come_in_time(world: World, kind: str):
    """Waiting for it ends with the call, empty-handed."""
    call, _ = await overdue(lambda held, timeout: world.start(kind, held, timeout=timeout))
    return plain(await call.initial_metadata()), await status(call)


@scenario_of_each_kind("unary_stream", "stream_unary")
async def a_deadline_passes_after_initial_metadata(world: World, kind: str):
    """The metadata that came is part of the error."""

    async def behave(context):
        await context.send_initial_metadata((("k", "v"),))
        await asyncio.Event().wait()

    async def receive(call):
        return plain(await call.initial_metadata())

    call, received = await overdue_after(
        lambda timeout: world.start(kind, behave, timeout=timeout), receive
    )
    return received, await raised(answer(call))


@scenario()
async def a_deadline_passes_in_the_middle_of_a_stream(world: World):
    """Messages that came before it are received."""

    async def handler(request, context):
        yield b"1"
        yield b"2"
        await asyncio.Event().wait()

    async def receive(call):
        return [await call.read(), await call.read()]

    method = world.unary_stream(handler)
    call, received = await overdue_after(lambda timeout: method(b"", timeout=timeout), receive)
    return received, await raised(call.read()), await raised(call.read()), await status(call)


@scenario()
async def a_deadline_passes_in_the_middle_of_an_iteration(world: World):
    """The loop raises after the messages that came."""

    async def handler(request, context):
        yield b"1"
        await asyncio.Event().wait()

    async def receive(call):
        return await anext(aiter(call))

    method = world.unary_stream(handler)
    call, received = await overdue_after(lambda timeout: method(b"", timeout=timeout), receive)
    return received, await raised(answer(call)), await status(call)


@scenario_of_each_kind("stream_unary", "stream_stream")
async def a_deadline_passes_while_requests_are_awaited(world: World, kind: str):
    """The iterator waits for ever; the call does not."""

    def start(held, timeout):
        async def requests():
            yield b"1"
            await held(None)

        return world.method(kind, Held(), at_start=True)(requests(), timeout=timeout)

    call, _ = await overdue(start)
    return await raised(answer(call)), await status(call)


@scenario_of_each_kind("stream_unary", "stream_stream")
async def a_deadline_passes_for_one_who_writes(world: World, kind: str):
    """Writing after it is refused as after any end."""

    async def write(call):
        await call.write(b"1")
        return not call.done()

    method = world.method(kind, Held(), at_start=True)
    call, _ = await overdue_after(lambda timeout: method(timeout=timeout), write)
    code = await call.code()
    return code, await raised(call.write(b"2")), await raised(call.done_writing())


@scenario()
async def a_timeout_is_the_callers_own(world: World):
    """Two calls of one method have a deadline each."""
    method = world.unary_unary(echo)
    calls = [method(b"a", timeout=timeout) for timeout in (10, 1000)]
    left = [call.time_remaining() for call in calls]
    await asyncio.gather(*calls)
    return left[0] <= 10, 900 < left[1] <= 1000


@scenario()
async def a_stream_takes_its_timeout_by_position(world: World):
    """The second argument of a multicallable for streams of requests."""
    method = world.stream_unary(None)
    call = method(iter([b"1"]), 60.0)
    left = call.time_remaining()
    call.cancel()
    return 50 < left <= 60


@scenario_of_each_kind()
async def a_server_says_deadline_exceeded(world: World, kind: str):
    """An error as any other: it is not the caller's deadline that passed."""

    async def behave(context):
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "mine")

    call = world.start(kind, behave, timeout=60)
    return await raised(answer(call)), call.time_remaining() > 0

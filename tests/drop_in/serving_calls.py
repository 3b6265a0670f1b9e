"""Scenarios: calls under way on a server: their time, their end, their messages, many at once."""

from __future__ import annotations

import asyncio
import contextvars

import grpc
import grpc.aio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.handlers import Held, answering, echo_each
from tests.drop_in.observations import answer, outcome, raised, status
from tests.drop_in.overdue import overdue
from tests.drop_in.world import World

LONGEST = 4 * 1024 * 1024


# --- Time and end -------------------------------------------------------------------------


@scenario_of_each_kind()
async def the_time_left_in_a_served_handler(world: World, kind: str):
    """In seconds; None without a timeout."""

    async def behave(context):
        left = context.time_remaining()
        world.note(None if left is None else 50 < left < 61)

    server = await world.serve(**{kind: answering(kind, behave)})
    return [await answer(server.start(kind, timeout=timeout)) for timeout in (60, None)]


@scenario_of_each_kind()
async def a_served_handler_is_cancelled_at_the_deadline(world: World, kind: str):
    """The caller has DEADLINE_EXCEEDED, the handler CancelledError."""
    holders = []

    async def behave(context):
        await holders[-1](context)

    server = await world.serve(**{kind: answering(kind, behave)})

    def start(held, timeout):
        holders.append(held)
        return server.start(kind, timeout=timeout)

    call, held = await overdue(start)
    seen = await raised(answer(call))
    await held.cancelled.wait()
    return seen


@scenario_of_each_kind()
async def a_served_handler_is_cancelled_by_its_caller(world: World, kind: str):
    """CancelledError in the handler, and its done callbacks are called."""
    held, done = Held(), asyncio.Event()

    async def behave(context):
        context.add_done_callback(lambda _: done.set())
        world.note((context.cancelled(), context.done()))
        await held(context)

    call = await world.served(behave, kind)
    await held.started.wait()
    call.cancel()
    await held.cancelled.wait()
    await done.wait()
    return await raised(answer(call))


@scenario_of_each_kind()
async def a_done_callback_in_a_served_handler(world: World, kind: str):
    """Called once, when the call is over."""
    done = asyncio.Event()

    def on_done(context):
        world.note(("done", context.done()))
        done.set()

    async def behave(context):
        context.add_done_callback(on_done)
        world.note(("before", context.done()))

    received = await answer(await world.served(behave, kind))
    await done.wait()
    return received


@scenario()
async def a_server_refuses_a_deadline_that_has_passed(world: World):
    """A call whose time is up on arrival is over for both."""
    return (await raised(await world.served(Held(), timeout=0.001)))[1]


@scenario()
async def a_handler_returns_from_its_own_timeout(world: World):
    """asyncio.timeout inside a handler ends what it waits for, and nothing else."""

    async def behave(context):
        try:
            async with asyncio.timeout(0.05):
                await asyncio.Event().wait()
        except TimeoutError:
            world.note("timed out")

    return await (await world.served(behave))


@scenario()
async def a_caller_that_goes_away_ends_a_stream(world: World):
    """The handler that writes for ever is cancelled."""
    over = asyncio.Event()

    async def handler(request, context):
        try:
            while True:
                await context.write(b"a")
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            over.set()
            raise

    call = (await world.serve(unary_stream=handler)).unary_stream(b"a")
    first = await call.read()
    call.cancel()
    await over.wait()
    return first


@scenario()
async def a_generator_is_closed_when_its_caller_goes(world: World):
    """Its finally runs."""
    arrived, over = asyncio.Event(), asyncio.Event()

    async def handler(request, context):
        try:
            yield b"a"
            arrived.set()
            await asyncio.Event().wait()
        finally:
            over.set()

    call = (await world.serve(unary_stream=handler)).unary_stream(b"a")
    first = await call.read()
    await arrived.wait()
    call.cancel()
    await over.wait()
    return first


# --- Tasks --------------------------------------------------------------------------------


@scenario()
async def a_context_goes_with_the_task(world: World):
    """Context variables of two calls do not mix, nor outlive a call."""
    variable = contextvars.ContextVar("variable", default="unset")

    async def handler(request, context):
        before = variable.get()
        variable.set(request.decode())
        await asyncio.sleep(0)
        return f"{before} {variable.get()}".encode()

    server = await world.serve(unary_unary=handler)
    return await asyncio.gather(*(answer(server.unary_unary(b"%d" % n)) for n in range(5)))


@scenario()
async def a_handler_may_start_tasks(world: World):
    """They use the call's context until it is over."""

    async def handler(request, context):
        async def write(data):
            await context.write(data)

        await asyncio.gather(write(b"a"))
        await asyncio.create_task(write(b"b"))

    return await outcome((await world.serve(unary_stream=handler)).unary_stream(b"a"))


@scenario()
async def many_calls_at_once(world: World):
    """All are under way together, and each gets its own answer."""
    everybody = asyncio.Event()
    here = []

    async def handler(request, context):
        here.append(request)
        if len(here) == 50:
            everybody.set()
        await everybody.wait()
        return request

    server = await world.serve(unary_unary=handler)
    calls = [server.unary_unary(b"%d" % number) for number in range(50)]
    return [await call for call in calls]


# --- Messages -----------------------------------------------------------------------------


@scenario()
async def requests_are_answered_one_by_one(world: World):
    """Each answer can be read before the next request is written."""
    call = (await world.serve(stream_stream=echo_each)).stream_stream()
    seen = []
    for request in (b"a", b"b"):
        await call.write(request)
        seen.append(await call.read())
    await call.done_writing()
    return [*seen, await call.read() is grpc.aio.EOF, await status(call)]


@scenario()
async def a_handler_reads_in_both_styles(world: World):
    """Reading one by one, then iterating over the rest, or what grpcio makes of it."""

    async def handler(requests, context):
        first = await context.read()
        rest = [request async for request in requests]
        return first + b"".join(rest)

    return await outcome((await world.serve(stream_unary=handler)).stream_unary([b"a", b"b"]))


@scenario()
async def reading_after_the_last_request_gives_eof_again(world: World):
    """However often."""

    async def handler(requests, context):
        seen = [await context.read() for _ in range(3)]
        return repr([each is grpc.aio.EOF for each in seen]).encode()

    return await (await world.serve(stream_unary=handler)).stream_unary([b"a"])


@scenario()
async def large_answers_within_the_limit(world: World):
    """4 MiB, less what the frame takes, go through."""

    async def handler(request, context):
        return b"a" * int(request)

    server = await world.serve(unary_unary=handler)
    return len(await server.unary_unary(b"%d" % LONGEST))


@scenario()
async def a_request_longer_than_the_limit_is_refused(world: World):
    """RESOURCE_EXHAUSTED, and the handler does not run; grpc.max_receive_message_length sets it."""

    async def handler(request, context):
        world.note(len(request))
        return b"x"

    seen = []
    for longest, options in (
        (LONGEST, []),
        (10, [("grpc.max_receive_message_length", 10)]),
    ):
        method = (await world.serve(unary_unary=handler, options=options)).unary_unary
        seen += [await method(b"a" * longest), await raised(method(b"a" * (longest + 1)))]
    return seen

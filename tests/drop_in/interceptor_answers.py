"""Scenarios: client interceptors that answer, fail, try again, or make calls of their own."""

from __future__ import annotations

import grpc
import grpc.aio

from meshrpc.wire import NOT_EXECUTED
from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.handlers import aborting, answering
from tests.drop_in.intercepting import Waits, start
from tests.drop_in.observations import answer, outcome, plain, raised
from tests.drop_in.world import World

# --- Answers ------------------------------------------------------------------------------


@scenario()
async def an_interceptor_answers_without_calling(world: World):
    """A value instead of a call is the answer, and the server hears of nothing."""

    async def handler(request, context):
        world.note("called")
        return request

    async def cached(continuation, details, request):
        return f"cached {request}"

    call = start(world, "unary_unary", cached, handler=handler)
    return [await call, await call.code(), await call.details(), call.done(), call.cancelled()]


@scenario()
async def an_interceptor_returns_the_answer_instead_of_the_call(world: World):
    """It awaited the call itself; the caller gets what it returned."""

    async def shout(continuation, details, request):
        call = await continuation(details, request)
        return (await call).upper()

    call = start(world, "unary_unary", shout)
    return [await call, await call, await call.code()]


@scenario()
async def an_interceptor_awaits_the_call_and_returns_it(world: World):
    """The answer can be awaited again by the caller."""

    async def look(continuation, details, request):
        call = await continuation(details, request)
        world.note((await call, await call.code(), plain(await call.initial_metadata())))
        return call

    async def behave(context):
        await context.send_initial_metadata((("i", "1"),))
        context.set_trailing_metadata((("t", "2"),))

    return await outcome(
        start(world, "unary_unary", look, handler=answering("unary_unary", behave))
    )


@scenario()
async def an_interceptor_waits_before_it_calls(world: World):
    """Nothing goes out before, and the caller's await waits."""

    async def handler(request, context):
        world.note("called")
        return request

    waits = Waits()
    call = start(world, "unary_unary", waits, handler=handler)
    await waits.inside.started.wait()
    world.note(("done", call.done(), call.cancelled()))
    waits.inside.go_on.set()
    return await call


async def upper(continuation, details, request):
    """Return an async iterator in place of the call."""
    call = await continuation(details, request)

    async def each():
        async for message in call:
            yield message.upper()

    return each()


@scenario_of_each_kind("unary_stream", "stream_stream")
async def an_interceptor_replaces_a_stream_of_answers(world: World, kind: str):
    """An async iterator it returns is what the caller reads."""
    call = start(world, kind, upper)
    return [await answer(call), await call.code()]


@scenario_of_each_kind("unary_stream", "stream_stream")
async def a_replaced_stream_is_read_one_by_one(world: World, kind: str):
    """read() goes through the interceptor's iterator as well."""
    call = start(world, kind, upper)
    return [await call.read(), await call.read(), await call.read() is grpc.aio.EOF]


# --- Errors -------------------------------------------------------------------------------


@scenario_of_each_kind()
async def an_intercepted_call_fails_as_the_server_says(world: World, kind: str):
    """Code, details and trailing metadata come through."""

    async def look(continuation, details, request):
        call = await continuation(details, request)
        call.add_done_callback(lambda over: world.note("told"))
        return call

    behave = aborting(grpc.StatusCode.NOT_FOUND, "none", (("t", "1"),))
    return await outcome(start(world, kind, look, handler=answering(kind, behave)))


@scenario()
async def an_interceptor_sees_the_server_s_error(world: World):
    """Awaiting the call inside raises, and the interceptor may answer instead."""

    async def default(continuation, details, request):
        try:
            return await (await continuation(details, request))
        except grpc.aio.AioRpcError as error:
            return f"instead of {error.code().name} {error.details()}"

    handler = answering("unary_unary", aborting(grpc.StatusCode.NOT_FOUND, "none"))
    return await start(world, "unary_unary", default, handler=handler)


@scenario_of_each_kind(since=(1, 83))
async def what_an_interceptor_raises_reaches_the_caller(world: World, kind: str):
    """As it is, and the call is done."""

    async def fail(continuation, details, request):
        raise LookupError("mine")

    call = start(world, kind, fail)
    return [await raised(answer(call)), call.done(), call.cancelled()]


@scenario_of_each_kind()
async def an_interceptor_ends_a_call_with_a_status(world: World, kind: str):
    """An AioRpcError it raises is the call's status, metadata included."""

    async def refuse(continuation, details, request):
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.aio.Metadata(("i", "1")),
            grpc.aio.Metadata(("t", "2")),
            "not you",
            "debug",
        )

    call = start(world, kind, refuse)
    return [await outcome(call), await call.debug_error_string()]


@scenario_of_each_kind(since=(1, 83))
async def an_interceptor_fails_a_call_after_its_answer(world: World, kind: str):
    """The caller gets the interceptor's error, not the answer."""

    async def fail(continuation, details, request):
        await answer(await continuation(details, request))
        raise LookupError("after the answer")

    call = start(world, kind, fail)
    return [await raised(answer(call)), call.done()]


# --- Several calls ------------------------------------------------------------------------


@scenario()
async def an_interceptor_tries_again(world: World):
    """Continuation may be called any number of times; the caller sees one call."""
    numbers = iter(range(10))

    async def handler(request, context):
        number = next(numbers)
        world.note(("call", number, plain(context.invocation_metadata())))
        if number < 2:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "again")
        return request

    async def again(continuation, details, request):
        for attempt in range(5):
            metadata = grpc.aio.Metadata(("attempt", str(attempt)))
            call = await continuation(details._replace(metadata=metadata), request)
            if await call.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                break
        return call

    return await outcome(start(world, "unary_unary", again, handler=handler))


@scenario(differs=Difference("Interceptors run once per attempt", grpcio=1, meshrpc=3))
async def an_interceptor_counts_a_call_that_nobody_executes(world: World):
    """How often it runs for one call that is refused each time, and says that it may be repeated."""
    seen = []

    async def count(continuation, details, request):
        seen.append(request)
        return await continuation(details, request)

    async def refuse(request, context):
        await context.abort(grpc.StatusCode.UNAVAILABLE, "", ((NOT_EXECUTED, "1"),))

    await raised(start(world, "unary_unary", count, handler=refuse))
    return len(seen)


@scenario()
async def an_interceptor_makes_a_call_of_its_own(world: World):
    """A token is fetched on another channel before the call goes on."""

    async def token(request, context):
        return b"secret"

    async def handler(request, context):
        world.note(plain(context.invocation_metadata()))
        return request

    fetch = world.unary_unary(token)

    async def authorise(continuation, details, request):
        value = (await fetch(b"")).decode()
        metadata = grpc.aio.Metadata(*details.metadata, ("authorization", value))
        return await continuation(details._replace(metadata=metadata), request)

    return await start(world, "unary_unary", authorise, handler=handler)

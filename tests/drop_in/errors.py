"""Scenarios: calls that fail, and what an error is."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import traceback

import grpc
import grpc.aio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.handlers import aborting, at_once
from tests.drop_in.observations import answer, begin, plain, raised, status
from tests.drop_in.world import World


async def error_of(kind, call):
    try:
        await answer(call)
    except grpc.aio.AioRpcError as error:
        return error
    return None


@scenario_of_each_kind()
async def a_handler_aborts(world: World, kind: str):
    """The error has the code, the details and the trailing metadata; so has the call."""
    call = world.start(kind, aborting(grpc.StatusCode.NOT_FOUND, "no such user", (("k", "v"),)))
    return await raised(answer(call)), await status(call)


@scenario()
async def every_code_arrives(world: World):
    """Each of gRPC's, as the same member of the enumeration."""
    return [
        await raised(world.start("unary_unary", aborting(code, code.name)))
        for code in grpc.StatusCode
        if code is not grpc.StatusCode.OK
    ]


@scenario()
async def every_code_arrives_from_a_stream(world: World):
    """Each of gRPC's, raised after the messages."""
    outcomes = []
    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            call = world.start("stream_stream", aborting(code, code.name))
            outcomes.append(await raised(answer(call)))
    return outcomes


@scenario()
async def details_are_text_of_any_kind(world: World):
    """Non-ASCII, line breaks, percent signs, quotes, nothing, and a lot."""
    outcomes = []
    for details in ("grüße 🎈", "two\nlines\t", "100 %25", "\"'\\", "", "x" * 3000):
        call = world.start("unary_unary", aborting(grpc.StatusCode.ABORTED, details))
        outcomes.append((await raised(call), await call.details()))
    return outcomes


@scenario_of_each_kind()
async def a_handler_sets_a_code_without_aborting(world: World, kind: str):
    """An error all the same; messages sent before it are received where there is a stream."""

    async def behave(context):
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("too far")
        context.set_trailing_metadata((("k", "v"),))

    call = world.start(kind, behave)
    return await raised(answer(call)), await status(call)


@scenario_of_each_kind()
async def a_handler_raises(world: World, kind: str):
    """UNKNOWN, with what grpcio's server says of it."""

    async def behave(context):
        raise ValueError("not like this")

    call = world.start(kind, behave)
    return await raised(answer(call)), await status(call)


@scenario()
async def a_handler_returns_nothing(world: World):
    """None is no answer."""

    async def handler(request, context):
        return None

    call = world.unary_unary(handler)(b"")
    return (await raised(call))[:2], await call.code()


@scenario_of_each_kind()
async def a_method_is_not_implemented(world: World, kind: str):
    """UNIMPLEMENTED."""
    call = begin(kind, getattr(world.channel, kind)("/drop.In/Nowhere"))
    return await raised(answer(call)), await status(call)


@scenario_of_each_kind()
async def nobody_listens(world: World, kind: str):
    """UNAVAILABLE; why is said in grpcio's words."""
    channel = world.make_channel(port=world.closed_port())
    call = begin(kind, world.method(kind, at_once, channel))
    outcome = await raised(answer(call))
    return outcome, await status(call)


@scenario_of_each_kind()
async def awaiting_a_failed_call_again(world: World, kind: str):
    """Whoever asks later gets the same answer as the first one."""
    call = world.start(kind, aborting(grpc.StatusCode.NOT_FOUND, "gone", (("k", "v"),)))
    return [await raised(answer(call)) for _ in range(3)]


@scenario()
async def an_error_is_an_exception_of_its_own(world: World):
    """Its types, its text, its attributes."""
    call = world.start("unary_unary", aborting(grpc.StatusCode.NOT_FOUND, "gone"))
    error = await error_of("unary_unary", call)
    return [
        type(error) is grpc.aio.AioRpcError,
        isinstance(error, (grpc.RpcError)),
        isinstance(error, grpc.aio.AioRpcError),
        isinstance(error, grpc.Call),
        str(error).splitlines()[:3],
        repr(error) == str(error),
        error.code(),
        error.details(),
        error.args,
        "gone" in error.debug_error_string(),
        error.debug_error_string() == await call.debug_error_string(),
    ]


@scenario()
async def an_error_can_be_pickled_and_copied(world: World):
    """With all that it says."""
    call = world.start(
        "unary_unary", aborting(grpc.StatusCode.NOT_FOUND, "gone", (("k", "v"), ("b-bin", b"\xff")))
    )
    error = await error_of("unary_unary", call)
    pickled = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    return [
        (type(each), each.code(), each.details(), plain(each.trailing_metadata()))
        for each in (pickled, copy.copy(error), copy.deepcopy(error))
    ]


@scenario()
async def an_error_is_printed_alone(world: World):
    """A traceback shows no other exception that it came from."""
    call = world.start("unary_unary", aborting(grpc.StatusCode.NOT_FOUND, "gone"))
    error = await error_of("unary_unary", call)
    return error.__cause__, "".join(traceback.format_exception(error)).count("Traceback")


@scenario_of_each_kind()
async def every_awaiter_has_an_error_of_its_own(world: World, kind: str):
    """Two that await one call do not share an exception object, nor its traceback."""
    call = world.start(kind, aborting(grpc.StatusCode.NOT_FOUND, "gone"))
    first = await error_of(kind, call)
    second = await error_of(kind, call)
    return first is second, first is None, second is None


@scenario_of_each_kind()
async def errors_nobody_asks_for_are_silent(world: World, kind: str):
    """A failed call that nobody awaits reports nothing to the event loop."""
    reported = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: reported.append(context["message"])
    )
    call = world.start(kind, aborting(grpc.StatusCode.NOT_FOUND, "gone"))
    await call.code()
    del call
    gc.collect()
    return [message for message in reported if "never retrieved" in message]


@scenario_of_each_kind()
async def waiting_for_a_connection_of_a_failed_call(world: World, kind: str):
    """It raises the error of the call once that is known to have failed."""
    channel = world.make_channel(port=world.closed_port())
    call = begin(kind, world.method(kind, at_once, channel))
    await call.code()
    return await raised(call.wait_for_connection())


@scenario_of_each_kind()
async def debug_error_strings(world: World, kind: str):
    """Text for an error, and whatever grpcio has for success."""
    failed = world.start(kind, aborting(grpc.StatusCode.ABORTED, "now"))
    fine = world.start(kind, at_once)
    await raised(answer(failed))
    await answer(fine)
    return type(await failed.debug_error_string()), await fine.debug_error_string()


@scenario()
async def the_server_sends_a_message_and_an_error_for_a_unary_call(world: World):
    """The error counts."""

    async def handler(request, context):
        context.set_code(grpc.StatusCode.INTERNAL)
        return b"an answer nobody gets"

    call = world.unary_unary(handler)(b"")
    return await raised(call)


@scenario()
async def a_stream_handler_raises_in_the_middle(world: World):
    """After the messages it sent."""

    async def handler(request, context):
        yield b"1"
        raise RuntimeError("oops")

    call = world.unary_stream(handler)(b"")
    return await call.read(), await raised(call.read()), await status(call)

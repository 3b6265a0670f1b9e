"""Scenarios: handlers that fail or misuse their context, and what callers learn of it."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.handlers import echo
from tests.drop_in.observations import answer, is_soon_over, raised, refused
from tests.drop_in.world import World

UNKNOWN, INTERNAL = grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL
NOT_FOUND = grpc.StatusCode.NOT_FOUND


# --- What a handler raises ----------------------------------------------------------------


def stays(grpcio=UNKNOWN, meshrpc=INTERNAL):
    """Return the difference: the code on either side, and that grpcio's details tell the rest."""
    heading = "What a handler raises stays in its process"
    return Difference(heading, grpcio=(grpcio, True), meshrpc=(meshrpc, False))


def told(seen, what="secret"):
    """Return the code of an error, and whether its details tell what was raised."""
    return (seen[1], what in seen[2])


async def fail(context):
    raise LookupError("secret")


@scenario_of_each_kind(differs=stays())
async def a_served_handler_raises(world: World, kind: str):
    """What its caller learns of it."""
    return told(await raised(answer(await world.served(fail, kind))))


@scenario(differs=stays(NOT_FOUND, NOT_FOUND))
async def a_handler_raises_after_it_set_a_code(world: World):
    """What its caller learns of it."""

    async def behave(context):
        context.set_code(NOT_FOUND)
        context.set_details("none")
        context.set_trailing_metadata((("t", "1"),))
        raise LookupError("secret")

    return told(await raised(await world.served(behave)))


@scenario()
async def a_handler_that_raises_keeps_the_trailing_metadata_it_set(world: World):
    """It arrives with the error."""

    async def behave(context):
        context.set_trailing_metadata((("t", "1"),))
        raise LookupError("secret")

    return (await raised(await world.served(behave)))[4]


@scenario(differs=stays())
async def a_stream_raises_after_an_answer(world: World):
    """The answer before arrives."""

    async def handler(request, context):
        yield b"a"
        raise LookupError("secret")

    call = (await world.serve(unary_stream=handler)).unary_stream(b"a")
    assert await call.read() == b"a"
    return told(await raised(call.read()))


@scenario(differs=stays())
async def a_synchronous_handler_raises(world: World):
    """What its caller learns of it."""

    def handler(request, context):
        raise LookupError("secret")

    return told(await raised((await world.serve(unary_unary=handler)).unary_unary(b"a")))


@scenario(differs=stays())
async def a_generic_handler_that_raises(world: World):
    """It fails when it is asked for the handler of a method."""

    class Generic(grpc.GenericRpcHandler):
        def service(self, details):
            raise LookupError("secret")

    server = await world.serve(generic=Generic())
    return told(await raised(server.unary_unary(b"a")))


def failing_codec(message):
    raise LookupError("secret")


@scenario(differs=stays())
async def a_request_that_cannot_be_decoded(world: World):
    """The deserialiser raises, and the handler is not called."""
    called = []

    async def handler(request, context):
        called.append(request)
        return b""

    made = grpc.unary_unary_rpc_method_handler(handler, failing_codec, None)
    seen = await raised((await world.serve(unary_unary=made)).unary_unary(b"a", timeout=5))
    assert not called
    return told(seen)


@scenario(differs=stays())
async def an_answer_that_cannot_be_encoded(world: World):
    """The serialiser raises."""
    made = grpc.unary_unary_rpc_method_handler(echo, None, failing_codec)
    return told(await raised((await world.serve(unary_unary=made)).unary_unary(b"a", timeout=5)))


# --- Mistakes -----------------------------------------------------------------------------


UNANSWERED = ("not answered", "not answered")


def hangs(meshrpc):
    """Return the difference: a mistake that grpcio does not answer at all."""
    return Difference("A handler's mistake is answered", grpcio=UNANSWERED[0], meshrpc=meshrpc)


async def ended(world, handler):
    """Return what `raised` does of a call to a handler, unless it does not end soon."""
    arrived = asyncio.Event()

    async def arrive(request, context):
        arrived.set()
        return await handler(request, context)

    call = (await world.serve(unary_unary=arrive)).unary_unary(b"a")
    ending = asyncio.ensure_future(raised(call))
    await arrived.wait()
    return await ending if await is_soon_over(ending) else UNANSWERED


@scenario(differs=hangs(grpc.StatusCode.UNAVAILABLE))
async def a_handler_s_own_call_is_cancelled(world: World):
    """CancelledError that the caller did not cause."""

    async def handler(request, context):
        raise asyncio.CancelledError

    return (await ended(world, handler))[1]


@scenario(differs=hangs("returned"))
async def a_handler_aborts_with_ok(world: World):
    """That is no way to end a call: abort raises, and what becomes of the call."""

    async def handler(request, context):
        await raised(context.abort(grpc.StatusCode.OK, "fine"))
        return request

    return (await ended(world, handler))[0]


@scenario(differs=hangs(b"refused"))
async def metadata_that_cannot_be_sent(world: World):
    """A handler sets text under a key for bytes."""

    async def handler(request, context):
        refusal = refused(context.set_trailing_metadata, (("k-bin", "text"),))
        return b"refused" if refusal else b"set"

    return (await ended(world, handler))[1]


@scenario(differs=hangs(b"UsageError"))
async def a_handler_writes_where_one_answer_is_due(world: World):
    """context.write() in a method with one answer."""

    async def handler(request, context):
        return (await raised(context.write(b"a")))[0].encode()

    return (await ended(world, handler))[1]


@scenario(
    differs=Difference("A handler's mistake is answered", grpcio="returned", meshrpc=INTERNAL)
)
async def a_handler_answers_nothing(world: World):
    """It returns None where an answer is due, and has no serialiser that would object."""

    async def handler(request, context):
        return None

    seen = await raised((await world.serve(unary_unary=handler)).unary_unary(b"a"))
    return INTERNAL if INTERNAL in seen else seen[0]

"""Scenarios: server interceptors that put a handler of their own round the method's, or in place."""

from __future__ import annotations

import grpc
import grpc.aio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.handlers import aborting, echo
from tests.drop_in.observations import outcome, plain, raised
from tests.drop_in.server_interceptors import handler_of, intercepted, serve
from tests.drop_in.world import World

# --- Round the method's -------------------------------------------------------------------


def around(kind, before, after):
    """Make an interceptor that does something before and after a handler, whatever its shape."""

    async def wrap(continuation, details):
        inner = getattr(await continuation(details), kind)

        async def stream(request, context):
            before(context)
            async for message in inner(request, context):
                yield message
            after(context)

        async def unary(request, context):
            before(context)
            message = await inner(request, context)
            after(context)
            return message

        return handler_of(kind, stream if kind.endswith("stream") else unary)

    return wrap


def round_unary(wrapper):
    """Make an interceptor of `(handler, request, context)`; it has the codecs of the handler."""

    async def wrap(continuation, details):
        handler = await continuation(details)

        async def wrapped(request, context):
            return await wrapper(handler.unary_unary, request, context)

        return grpc.unary_unary_rpc_method_handler(
            wrapped, handler.request_deserializer, handler.response_serializer
        )

    return wrap


def number_to_bytes(number):
    return str(number).encode()


@scenario_of_each_kind()
async def an_interceptor_of_the_server_wraps_a_handler(world: World, kind: str):
    """What it returns serves the call, with the original inside."""

    async def behave(context):
        world.note("handler")

    wrap = around(kind, lambda _: world.note("before"), lambda _: world.note("after"))
    return await outcome(await intercepted(world, kind, wrap, behave=behave))


@scenario_of_each_kind()
async def a_wrapper_round_a_handler_uses_its_context(world: World, kind: str):
    """It reads metadata and deadline, and sets trailers."""

    def before(context):
        world.note((plain(context.invocation_metadata()), context.time_remaining() > 50))
        context.set_trailing_metadata((("t", "1"),))

    def after(context):
        world.note((context.code(), plain(context.trailing_metadata())))

    wrap = around(kind, before, after)
    return await outcome(await intercepted(world, kind, wrap, timeout=60, metadata=(("k", "v"),)))


@scenario()
async def an_interceptor_of_the_server_changes_the_answer(world: World):
    """A wrapper with the codecs of the original returns another message."""

    async def shout(handler, request, context):
        return (await handler(request, context)).upper()

    return await (await intercepted(world, "unary_unary", round_unary(shout)))


@scenario()
async def an_interceptor_of_the_server_sees_the_codecs_of_a_handler(world: World):
    """And the messages as the handler does."""

    async def codecs(continuation, details):
        handler = await continuation(details)
        world.note((handler.request_deserializer(b"7"), handler.response_serializer(7)))
        return handler

    async def look(handler, request, context):
        message = await handler(request, context)
        world.note((request, message))
        return message

    made = grpc.unary_unary_rpc_method_handler(echo, int, number_to_bytes)
    server = await serve(world, round_unary(look), codecs, unary_unary=made)
    return await server.unary_unary(b"21")


@scenario()
async def an_interceptor_of_the_server_catches_what_a_handler_raises(world: World):
    """A wrapper turns the exception into a status."""

    async def translate(handler, request, context):
        try:
            return await handler(request, context)
        except LookupError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no {error.args[0]}")

    async def fail(context):
        raise LookupError("key")

    return await outcome(
        await intercepted(world, "unary_unary", round_unary(translate), behave=fail)
    )


@scenario()
async def an_interceptor_of_the_server_sees_a_handler_abort(world: World):
    """abort goes through a wrapper as an exception."""

    async def look(handler, request, context):
        try:
            return await handler(request, context)
        except Exception as error:
            world.note((type(error).__name__, context.code(), context.details()))
            raise

    behave = aborting(grpc.StatusCode.NOT_FOUND, "none")
    return await outcome(await intercepted(world, "unary_unary", round_unary(look), behave=behave))


@scenario()
async def a_synchronous_handler_behind_an_interceptor(world: World):
    """It is served in a thread all the same."""

    def upper(request, context):
        return request.upper()

    async def look(continuation, details):
        handler = await continuation(details)
        world.note(callable(handler.unary_unary))
        return handler

    return await (await serve(world, look, unary_unary=upper)).unary_unary(b"a")


@scenario()
async def a_handler_that_reads_and_writes_behind_an_interceptor(world: World):
    """The other style of handlers is wrapped as a coroutine."""

    async def each(requests, context):
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    async def wrap(continuation, details):
        handler = await continuation(details)

        async def wrapped(requests, context):
            world.note("before")
            await handler.stream_stream(requests, context)
            world.note("after")

        return handler_of("stream_stream", wrapped)

    server = await serve(world, wrap, stream_stream=each)
    return await outcome(server.stream_stream([b"a", b"b"]))


# --- In place of it -----------------------------------------------------------------------


@scenario()
async def an_interceptor_of_the_server_brings_other_codecs(world: World):
    """Those of the handler it returns count."""

    async def double(request, context):
        world.note(request)
        return request * 2

    async def numbers(continuation, details):
        return grpc.unary_unary_rpc_method_handler(double, int, number_to_bytes)

    return await (await serve(world, numbers, unary_unary=echo)).unary_unary(b"21")


@scenario()
async def an_interceptor_of_the_server_chooses_by_metadata(world: World):
    """One call is answered by another handler, the next one is not."""

    async def other(request, context):
        return b"other"

    async def choose(continuation, details):
        if ("use", "other") in [tuple(pair) for pair in details.invocation_metadata]:
            return grpc.unary_unary_rpc_method_handler(other)
        return await continuation(details)

    method = (await serve(world, choose, unary_unary=echo)).unary_unary
    return [await method(b"a", metadata=metadata) for metadata in (None, (("use", "other"),), None)]


@scenario()
async def an_interceptor_of_the_server_is_called_for_methods_nobody_serves(world: World):
    """It may answer them; continuation returns None."""

    async def serves(continuation, details):
        handler = await continuation(details)
        world.note((details.method, handler is None))
        return handler or grpc.unary_unary_rpc_method_handler(echo)

    server = await serve(world, serves, unary_unary=echo)
    return [
        await raised(server.channel.unary_unary("/drop.In/None")(b"a")),
        await raised(server.channel.unary_unary("/else.Where/None")(b"b")),
    ]

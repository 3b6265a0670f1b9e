"""Scenarios: the shapes that handlers have, on a bare grpc.aio.server and on a meshrpc.Service."""

from __future__ import annotations

import functools
import warnings

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.handlers import HANDLERS, echo
from tests.drop_in.observations import answer, outcome, plain, raised
from tests.drop_in.world import World

# --- Functions ----------------------------------------------------------------------------


@scenario_of_each_kind()
async def handlers_that_return_and_yield(world: World, kind: str):
    """Requests as async iterators."""
    server = await world.serve(**{kind: HANDLERS[kind]})
    return await outcome(server.start(kind, b"a", b"b"))


async def write_twice(request, context):
    await context.write(request)
    await context.write(request)


async def read_all(requests, context):
    read = []
    while (request := await context.read()) is not grpc.aio.EOF:
        read.append(request)
    return b"".join(read)


async def read_and_write(requests, context):
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request)


@scenario_of_each_kind("unary_stream", "stream_unary", "stream_stream")
async def handlers_that_read_and_write(world: World, kind: str):
    """The other style: context.read() and context.write()."""
    server = await world.serve(
        unary_stream=write_twice, stream_unary=read_all, stream_stream=read_and_write
    )
    return await outcome(server.start(kind, b"a", b"b"))


@scenario()
async def handlers_may_be_methods_and_partials(world: World):
    """Whatever inspect takes for an async function."""

    class Servicer:
        async def echo(self, request, context):
            return request

    async def add(suffix, request, context):
        yield request + suffix

    server = await world.serve(
        unary_unary=Servicer().echo, unary_stream=functools.partial(add, b"!")
    )
    return [await server.unary_unary(b"a"), await answer(server.unary_stream(b"a"))]


@scenario(
    differs=Difference(
        "Async callable objects are handlers", grpcio=grpc.StatusCode.UNKNOWN, meshrpc=b"a"
    )
)
async def an_async_callable_object_is_a_handler(world: World):
    """One whose __call__ is a coroutine function."""

    class Handler:
        async def __call__(self, request, context):
            return request

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # grpcio forgets the coroutine
        return (await raised((await world.serve(unary_unary=Handler())).unary_unary(b"a")))[1]


@scenario()
async def synchronous_handlers_of_one_request(world: World):
    """A plain function and a plain generator are run in threads."""

    def one(request, context):
        return request

    def two(request, context):
        yield request
        yield request

    server = await world.serve(unary_unary=one, unary_stream=two)
    return [await outcome(server.unary_unary(b"a")), await outcome(server.unary_stream(b"a"))]


@scenario(
    differs=Difference(
        "Plain functions take no stream of requests", grpcio=b"ab", meshrpc="SettingsError"
    )
)
async def a_synchronous_handler_of_a_stream_of_requests(world: World):
    """A plain function that iterates over its requests."""

    def handler(requests, context):
        return b"".join(requests)

    try:
        server = await world.serve(stream_unary=handler)
    except Exception as error:  # noqa: BLE001 - that is the question
        return type(error).__name__
    return await server.stream_unary([b"a", b"b"])


@scenario()
async def a_handler_may_ignore_its_requests(world: World):
    """It answers a stream of requests without reading it."""

    async def handler(requests, context):
        return b"enough"

    call = (await world.serve(stream_unary=handler)).stream_unary()
    return [await call, await call.code()]


@scenario()
async def a_stream_without_answers_is_ok(world: World):
    """A generator that yields nothing."""

    async def nothing(request, context):
        for _ in ():
            yield b""

    return await outcome((await world.serve(unary_stream=nothing)).unary_stream(b"a"))


# --- Codecs -------------------------------------------------------------------------------


def number_to_bytes(number):
    return str(number).encode()


async def double(request, context):
    return request * 2


async def read_and_double(requests, context):
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request * 2)


async def double_each(requests, context):
    async for request in requests:
        yield request * 2


@scenario()
async def handlers_with_codecs(world: World):
    """Requests are decoded and answers encoded as the handler was registered."""
    handler = grpc.unary_unary_rpc_method_handler(double, int, number_to_bytes)
    return await (await world.serve(unary_unary=handler)).unary_unary(b"21")


@scenario()
async def streams_with_codecs(world: World):
    """So is each message of a stream: read and written, or iterated over and yielded."""
    seen = []
    for behavior in (read_and_double, double_each):
        handler = grpc.stream_stream_rpc_method_handler(behavior, int, number_to_bytes)
        server = await world.serve(stream_stream=handler)
        seen.append(await answer(server.stream_stream([b"1", b"2"])))
    return seen


@scenario()
async def a_handler_without_a_serialiser_may_answer_with_text(world: World):
    """It goes out as UTF-8, from a stream as well."""

    async def one(request, context):
        return "größer"

    async def two(request, context):
        yield "a"
        yield "b"

    server = await world.serve(unary_unary=one, unary_stream=two)
    return [await server.unary_unary(b""), await answer(server.unary_stream(b""))]


# --- Which handler ------------------------------------------------------------------------


@scenario()
async def a_generic_handler_chooses_by_method_and_metadata(world: World):
    """It is asked for each call, with its details."""

    class Generic(grpc.GenericRpcHandler):
        def service(self, details):
            world.note((details.method, plain(details.invocation_metadata)))
            return grpc.unary_unary_rpc_method_handler(echo) if "Any" in details.method else None

    server = await world.serve(generic=Generic())
    return [
        await server.channel.unary_unary("/other.Service/Any")(b"a", metadata=(("k", "v"),)),
        await raised(server.channel.unary_unary("/other.Service/None")(b"a")),
    ]


@scenario()
async def a_generic_handler_may_choose_anew_each_time(world: World):
    """A new handler object for every call is the one that serves it."""
    numbers = iter(range(10))

    class Generic(grpc.GenericRpcHandler):
        def service(self, details):
            number = next(numbers)

            async def handler(request, context):
                return str(number).encode()

            return grpc.unary_unary_rpc_method_handler(handler)

    server = await world.serve(generic=Generic())
    return [await server.unary_unary(b"a") for _ in range(3)]


@scenario_of_each_kind()
async def a_method_nobody_serves(world: World, kind: str):
    """UNIMPLEMENTED, with the same words, whether the service is known or not."""
    server = await world.serve(unary_unary=echo)
    methods = [getattr(server.channel, kind)(path) for path in ("/drop.In/None", "/no.Such/Method")]
    requests = (b"a",) if kind.startswith("unary") else ()
    return [await outcome(method(*requests)) for method in methods]

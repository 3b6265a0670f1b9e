"""Scenarios: grpc.aio server interceptors, on a bare server and on a meshrpc.Service."""

from __future__ import annotations

import asyncio
import contextvars

import grpc
import grpc.aio

from tests.drop_in.battery import (
    KINDS,
    Difference,
    World,
    each_kind,
    plain,
    raised,
    scenario,
    status,
)

UNKNOWN, INTERNAL = grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL


def interceptor(intercept):
    """Make an interceptor of a function `(continuation, details)`."""

    class Made(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, handler_call_details):
            return await intercept(continuation, handler_call_details)

    return Made()


async def echo(request, context):
    return request


async def echo_twice(request, context):
    yield request
    yield request


async def join(requests, context):
    return b"".join([request async for request in requests])


async def echo_each(requests, context):
    async for request in requests:
        yield request


HANDLERS = dict(zip(KINDS, (echo, echo_twice, join, echo_each), strict=True))


def request_of(kind):
    return b"a" if kind.startswith("unary") else [b"a", b"b"]


def unsent(kind):
    """Return the request of a call that is refused unread: grpcio stumbles over one in transit."""
    return b"a" if kind.startswith("unary") else None


async def answers(call, kind):
    if kind.endswith("unary"):
        return await call
    return [message async for message in call]


async def outcome(call, kind="unary_unary"):
    """Return what a call answers or raises, and all it says of itself."""
    return [await raised(answers(call, kind)), await status(call)]


def serve(world, *intercepts, **handlers):
    return world.serve(
        interceptors=[interceptor(intercept) for intercept in intercepts], **handlers
    )


def handler_of(kind, behavior):
    return getattr(grpc, f"{kind}_rpc_method_handler")(behavior)


def behavior_of(kind, handler):
    return getattr(handler, kind)


def around(kind, behavior, before, after):
    """Put two functions round a handler's own, whatever its shape."""
    if kind.endswith("stream"):

        async def stream(request, context):
            before(context)
            async for answer in behavior(request, context):
                yield answer
            after(context)

        return stream

    async def unary(request, context):
        before(context)
        answer = await behavior(request, context)
        after(context)
        return answer

    return unary


@each_kind
def _passing(kind):
    async def run(world: World):
        async def look(continuation, details):
            world.note((details.method, plain(details.invocation_metadata)))
            handler = await continuation(details)
            world.note((handler.request_streaming, handler.response_streaming))
            world.note([callable(getattr(handler, each)) for each in KINDS])
            return handler

        server = await serve(world, look, **{kind: HANDLERS[kind]})
        call = getattr(server, kind)(request_of(kind), metadata=(("k", "v"),))
        return await outcome(call, kind)

    return (
        run,
        f"an_interceptor_of_the_server_sees_a_{kind}_call",
        "Its method and metadata, and the handler with its arity.",
    )


@each_kind
def _order(kind):
    async def run(world: World):
        def named(name):
            async def note(continuation, details):
                world.note(f"{name} before")
                handler = await continuation(details)
                world.note(f"{name} after")
                return handler

            return note

        def body(request, context):
            world.note("handler")
            return HANDLERS[kind](request, context)

        if kind.endswith("stream"):

            async def handler(request, context):
                async for answer in body(request, context):
                    yield answer
        else:

            async def handler(request, context):
                return await body(request, context)

        server = await serve(world, *map(named, ("one", "two", "three")), **{kind: handler})
        return await answers(getattr(server, kind)(request_of(kind)), kind)

    return (
        run,
        f"interceptors_of_the_server_run_in_order_round_a_{kind}_call",
        "All of them before the handler, the first one outermost.",
    )


@each_kind
def _replacing(kind):
    async def run(world: World):
        async def wrap(continuation, details):
            handler = await continuation(details)
            wrapped = around(
                kind,
                behavior_of(kind, handler),
                lambda context: world.note("before"),
                lambda context: world.note("after"),
            )
            return handler_of(kind, wrapped)

        server = await serve(world, wrap, **{kind: HANDLERS[kind]})
        return await outcome(getattr(server, kind)(request_of(kind)), kind)

    return (
        run,
        f"an_interceptor_of_the_server_wraps_a_{kind}_handler",
        "What it returns serves the call, with the original inside.",
    )


@each_kind
def _aborting(kind):
    async def run(world: World):
        async def refuse(continuation, details):
            async def unary(request, context):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no", (("t", "1"),))

            async def stream(request, context):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no", (("t", "1"),))
                yield b""

            return handler_of(kind, stream if kind.endswith("stream") else unary)

        async def handler(request, context):
            world.note("called")

        server = await serve(world, refuse, **{kind: handler})
        return await outcome(getattr(server, kind)(unsent(kind)), kind)

    return (
        run,
        f"an_interceptor_of_the_server_refuses_a_{kind}_call",
        "It answers with a handler that aborts; the real one does not run.",
    )


@each_kind
def _contextvar(kind):
    async def run(world: World):
        variable = contextvars.ContextVar("variable", default="unset")

        async def outer(continuation, details):
            world.note(variable.get())
            variable.set("outer")
            return await continuation(details)

        async def inner(continuation, details):
            world.note(variable.get())
            variable.set("inner")
            return await continuation(details)

        noting = around(
            kind,
            HANDLERS[kind],
            lambda context: world.note(variable.get()),
            lambda context: variable.set("handler"),
        )
        server = await serve(world, outer, inner, **{kind: noting})
        method = getattr(server, kind)
        return [await answers(method(request_of(kind)), kind) for _ in range(2)]

    return (
        run,
        f"context_variables_of_interceptors_are_seen_by_a_{kind}_handler",
        "Outer to inner to handler, and each call begins anew.",
    )


@each_kind(
    differs=Difference(
        "What a handler raises stays in its process",
        grpcio=(UNKNOWN, True),
        meshrpc=(INTERNAL, False),
    )
)
def _raising(kind):
    async def run(world: World):
        async def fail(continuation, details):
            raise LookupError("secret")

        server = await serve(world, fail, **{kind: HANDLERS[kind]})
        seen = await raised(answers(getattr(server, kind)(unsent(kind)), kind))
        return seen[1], "secret" in seen[2]

    return (
        run,
        f"an_interceptor_of_the_server_raises_before_a_{kind}_call",
        "What its caller learns of it.",
    )


@each_kind
def _none(kind):
    async def run(world: World):
        async def hide(continuation, details):
            return None

        server = await serve(world, hide, **{kind: HANDLERS[kind]})
        return await raised(answers(getattr(server, kind)(unsent(kind)), kind))

    return (
        run,
        f"an_interceptor_of_the_server_hides_a_{kind}_method",
        "Without a handler the method is unimplemented.",
    )


@each_kind
def _context(kind):
    async def run(world: World):
        async def wrap(continuation, details):
            handler = await continuation(details)

            def before(context):
                world.note((plain(context.invocation_metadata()), context.time_remaining() > 50))
                context.set_trailing_metadata((("t", "1"),))

            def after(context):
                world.note((context.code(), plain(context.trailing_metadata())))

            return handler_of(kind, around(kind, behavior_of(kind, handler), before, after))

        server = await serve(world, wrap, **{kind: HANDLERS[kind]})
        call = getattr(server, kind)(request_of(kind), timeout=60, metadata=(("k", "v"),))
        return await outcome(call, kind)

    return (
        run,
        f"a_wrapper_round_a_{kind}_handler_uses_its_context",
        "It reads metadata and deadline, and sets trailers.",
    )


# --- One kind says it ---------------------------------------------------------------------


@scenario()
async def an_interceptor_waits_before_it_continues(world: World):
    """Anything awaited there holds the call, and no other."""
    go = asyncio.Event()

    async def wait(continuation, details):
        if dict(details.invocation_metadata).get("wait"):
            await go.wait()
        world.note("goes on")
        return await continuation(details)

    server = await serve(world, wait, unary_unary=echo)
    held = server.unary_unary(b"held", metadata=(("wait", "1"),))
    other = await server.unary_unary(b"other")
    world.note(held.done())
    go.set()
    return [other, await held]


@scenario()
async def an_interceptor_is_cancelled_with_the_call(world: World):
    """One that waits sees CancelledError when the caller goes."""
    arrived, over = asyncio.Event(), asyncio.Event()

    async def wait(continuation, details):
        arrived.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            world.note("cancelled")
            raise
        finally:
            over.set()

    call = (await serve(world, wait, unary_unary=echo)).unary_unary(b"a")
    await arrived.wait()
    call.cancel()
    await over.wait()
    return await raised(call)


@scenario()
async def an_interceptor_at_the_deadline(world: World):
    """One that waits too long is cancelled as a handler is."""
    over = asyncio.Event()

    async def wait(continuation, details):
        try:
            await asyncio.Event().wait()
        finally:
            over.set()

    call = (await serve(world, wait, unary_unary=echo)).unary_unary(b"a", timeout=0.2)
    seen = await raised(call)
    await over.wait()
    return seen


@scenario()
async def an_interceptor_changes_the_answer(world: World):
    """A wrapper with the codecs of the original returns another message."""

    async def shout(continuation, details):
        handler = await continuation(details)

        async def wrapped(request, context):
            return (await handler.unary_unary(request, context)).upper()

        return grpc.unary_unary_rpc_method_handler(
            wrapped, handler.request_deserializer, handler.response_serializer
        )

    return await (await serve(world, shout, unary_unary=echo)).unary_unary(b"a")


@scenario()
async def an_interceptor_brings_other_codecs(world: World):
    """Those of the handler it returns count."""

    async def numbers(continuation, details):
        async def double(request, context):
            world.note(request)
            return request * 2

        return grpc.unary_unary_rpc_method_handler(double, int, lambda number: str(number).encode())

    return await (await serve(world, numbers, unary_unary=echo)).unary_unary(b"21")


@scenario()
async def an_interceptor_sees_the_codecs_of_a_handler(world: World):
    """And the messages as the handler does."""

    async def look(continuation, details):
        handler = await continuation(details)
        world.note(handler.request_deserializer(b"7"))
        world.note(handler.response_serializer(7))

        async def wrapped(request, context):
            world.note(request)
            answer = await handler.unary_unary(request, context)
            world.note(answer)
            return answer

        return grpc.unary_unary_rpc_method_handler(
            wrapped, handler.request_deserializer, handler.response_serializer
        )

    made = grpc.unary_unary_rpc_method_handler(echo, int, lambda number: str(number).encode())
    return await (await serve(world, look, unary_unary=made)).unary_unary(b"21")


@scenario()
async def an_interceptor_catches_what_a_handler_raises(world: World):
    """A wrapper turns the exception into a status."""

    async def translate(continuation, details):
        handler = await continuation(details)

        async def wrapped(request, context):
            try:
                return await handler.unary_unary(request, context)
            except LookupError as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"no {error.args[0]}")

        return grpc.unary_unary_rpc_method_handler(wrapped)

    async def fail(request, context):
        raise LookupError("key")

    return await outcome((await serve(world, translate, unary_unary=fail)).unary_unary(b"a"))


@scenario()
async def an_interceptor_sees_a_handler_abort(world: World):
    """abort goes through a wrapper as an exception."""

    async def look(continuation, details):
        handler = await continuation(details)

        async def wrapped(request, context):
            try:
                return await handler.unary_unary(request, context)
            except Exception as error:
                world.note((type(error).__name__, context.code(), context.details()))
                raise

        return grpc.unary_unary_rpc_method_handler(wrapped)

    async def refuse(request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "none")

    return await outcome((await serve(world, look, unary_unary=refuse)).unary_unary(b"a"))


@scenario()
async def an_interceptor_counts_concurrent_calls(world: World):
    """State of its own is shared by all calls."""

    class Counting(grpc.aio.ServerInterceptor):
        def __init__(self):
            self.calls = 0

        async def intercept_service(self, continuation, handler_call_details):
            self.calls += 1
            return await continuation(handler_call_details)

    counting = Counting()
    server = await world.serve(interceptors=[counting], unary_unary=echo)
    calls = [server.unary_unary(b"%d" % number) for number in range(20)]
    return [[await call for call in calls], counting.calls]


@scenario()
async def an_interceptor_chooses_by_metadata(world: World):
    """One call is answered by another handler, the next one is not."""

    async def other(request, context):
        return b"other"

    async def choose(continuation, details):
        if ("use", "other") in [tuple(pair) for pair in details.invocation_metadata]:
            return grpc.unary_unary_rpc_method_handler(other)
        return await continuation(details)

    method = (await serve(world, choose, unary_unary=echo)).unary_unary
    return [
        await method(b"a"),
        await method(b"a", metadata=(("use", "other"),)),
        await method(b"a"),
    ]


@scenario()
async def interceptors_between_refuse_early(world: World):
    """What comes after one that does not continue is not asked."""

    async def first(continuation, details):
        world.note("first")
        return await continuation(details)

    async def refuses(continuation, details):
        world.note("refuses")

        async def refuse(request, context):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")

        return grpc.unary_unary_rpc_method_handler(refuse)

    async def last(continuation, details):
        world.note("last")
        return await continuation(details)

    server = await serve(world, first, refuses, last, unary_unary=echo)
    return await raised(server.unary_unary(b"a"))


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

        return grpc.stream_stream_rpc_method_handler(wrapped)

    server = await serve(world, wrap, stream_stream=each)
    return await outcome(server.stream_stream([b"a", b"b"]), "stream_stream")


@scenario()
async def an_interceptor_is_called_for_methods_nobody_serves(world: World):
    """It may answer them; continuation returns None."""

    async def answer(continuation, details):
        handler = await continuation(details)
        world.note((details.method, handler is None))
        return handler or grpc.unary_unary_rpc_method_handler(echo)

    server = await serve(world, answer, unary_unary=echo)
    return [
        await raised(server.channel.unary_unary("/drop.In/None")(b"a")),
        await raised(server.channel.unary_unary("/else.Where/None")(b"b")),
    ]


@scenario()
async def what_is_no_interceptor_is_refused_where_the_server_is_made(world: World):
    """ValueError, as grpcio raises."""
    seen = []
    for wrong in (object(), None, grpc.aio.UnaryUnaryClientInterceptor):
        try:
            await world.serve(interceptors=[wrong], unary_unary=echo)
        except Exception as error:  # noqa: BLE001 - that is the question
            seen.append(type(error).__name__)
        else:
            seen.append("made")
    return seen


@scenario()
async def an_interceptor_makes_calls(world: World):
    """To the very server it belongs to, under another method."""
    server = None

    async def ask(continuation, details):
        if details.method.endswith("unary_unary"):
            async for answer in server.unary_stream(b"asked"):
                world.note(answer)
        return await continuation(details)

    server = await serve(world, ask, unary_unary=echo, unary_stream=echo_twice)
    return await server.unary_unary(b"a")

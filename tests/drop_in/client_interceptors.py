"""Scenarios: grpc.aio client interceptors, given to a channel."""

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

TEXT = {"request_serializer": str.encode, "response_deserializer": bytes.decode}


def camel(kind):
    return "".join(part.capitalize() for part in kind.split("_"))


def interceptor(kind, intercept):
    """Make an interceptor of one kind of a function `(continuation, details, request)`."""

    async def method(self, continuation, client_call_details, request):
        return await intercept(continuation, client_call_details, request)

    base = getattr(grpc.aio, f"{camel(kind)}ClientInterceptor")
    return type(camel(kind), (base,), {f"intercept_{kind}": method})()


async def passes(continuation, details, request):
    return await continuation(details, request)


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


def method_of(world, kind, *intercepts, handler=None):
    """Return a method of text on a channel with interceptors of its kind."""
    channel = world.make_channel(
        interceptors=[interceptor(kind, intercept) for intercept in intercepts]
    )
    return getattr(world, kind)(handler or HANDLERS[kind], channel, **TEXT)


def request_of(kind):
    return "a" if kind.startswith("unary") else ["a", "b"]


async def each_of(*messages):
    for message in messages:
        yield message


async def answers(call, kind):
    if kind.endswith("unary"):
        return await call
    return [message async for message in call]


@each_kind
def _passing(kind):
    async def run(world: World):
        call = method_of(world, kind, passes)(request_of(kind))
        return [await answers(call, kind), await status(call)]

    return (
        run,
        f"a_{kind}_call_passes_through_an_interceptor",
        f"One that only continues changes nothing of a {kind} call.",
    )


@each_kind
def _seen(kind):
    async def run(world: World):
        async def look(continuation, details, request):
            world.note(request if kind.startswith("unary") else hasattr(request, "__aiter__"))
            world.note((details.method, details.credentials, details.wait_for_ready))
            world.note((plain(details.metadata), type(details.metadata).__name__))
            world.note((isinstance(details, grpc.ClientCallDetails), 9 < details.timeout <= 10))
            return await continuation(details, request)

        method = method_of(world, kind, look)
        request = "a" if kind.startswith("unary") else each_of("a", "b")
        call = method(request, timeout=10, metadata=(("k", "v"),), wait_for_ready=True)
        return await answers(call, kind)

    return (
        run,
        f"an_interceptor_sees_what_a_{kind}_call_was_made_with",
        f"The request as the user's object, and all keywords of a {kind} call.",
    )


@each_kind
def _defaults(kind):
    async def run(world: World):
        async def look(continuation, details, request):
            world.note((details.timeout, plain(details.metadata), details.credentials))
            world.note((details.wait_for_ready, details._fields))
            return await continuation(details, request)

        return await answers(method_of(world, kind, look)(request_of(kind)), kind)

    return (
        run,
        f"an_interceptor_sees_a_{kind}_call_without_keywords",
        f"What a {kind} call was not given is None, and metadata empty.",
    )


@each_kind
def _order(kind):
    async def run(world: World):
        def named(name):
            async def note(continuation, details, request):
                world.note(f"{name} before")
                call = await continuation(details, request)
                world.note(f"{name} after")
                return call

            return note

        method = method_of(world, kind, *(named(name) for name in ("one", "two", "three")))
        return await answers(method(request_of(kind)), kind)

    return (
        run,
        f"interceptors_of_{kind}_calls_run_in_the_order_given",
        "The first one is outermost.",
    )


@each_kind
def _metadata(kind):
    async def run(world: World):
        async def add(continuation, details, request):
            metadata = grpc.aio.Metadata(*details.metadata, ("added", "x"), ("raw-bin", b"\0"))
            return await continuation(details._replace(metadata=metadata), request)

        def looking(handler):
            def note(context):
                world.note(plain(context.invocation_metadata()))

            if kind.endswith("stream"):

                async def looks(request, context):
                    note(context)
                    async for answer in handler(request, context):
                        yield answer
            else:

                async def looks(request, context):
                    note(context)
                    return await handler(request, context)

            return looks

        method = method_of(world, kind, add, handler=looking(HANDLERS[kind]))
        return await answers(method(request_of(kind), metadata=(("k", "v"),)), kind)

    return (
        run,
        f"an_interceptor_adds_metadata_to_a_{kind}_call",
        "The server sees the caller's own and what was added, in order.",
    )


@each_kind
def _adding_in_place(kind):
    async def run(world: World):
        async def add(continuation, details, request):
            details.metadata.add("added", "x")
            return await continuation(details, request)

        async def note(request, context):
            world.note(plain(context.invocation_metadata()))
            if kind.startswith("stream"):
                _ = [each async for each in request]

        if kind.endswith("stream"):

            async def handler(request, context):
                await note(request, context)
                yield b"a"
        else:

            async def handler(request, context):
                await note(request, context)
                return b"a"

        mine = grpc.aio.Metadata(("k", "v"))
        call = method_of(world, kind, add, handler=handler)(request_of(kind), metadata=mine)
        return await answers(call, kind)

    return (
        run,
        f"an_interceptor_adds_metadata_to_a_{kind}_call_in_place",
        "Metadata is grpc.aio.Metadata with all its methods.",
    )


@each_kind
def _timeout(kind):
    async def run(world: World):
        go = asyncio.Event()

        async def shorten(continuation, details, request):
            return await continuation(details._replace(timeout=0.1), request)

        if kind.endswith("stream"):

            async def handler(request, context):
                await go.wait()
                yield b""
        else:

            async def handler(request, context):
                await go.wait()

        call = method_of(world, kind, shorten, handler=handler)(request_of(kind), timeout=60)
        return [await raised(answers(call, kind)), await status(call)]

    return (
        run,
        f"an_interceptor_shortens_the_timeout_of_a_{kind}_call",
        "It ends with DEADLINE_EXCEEDED by the interceptor's timeout.",
    )


@each_kind
def _other_method(kind):
    async def run(world: World):
        async def other(request, context):
            world.note("the other one")
            if kind.startswith("stream"):
                _ = [each async for each in request]
            if kind.endswith("stream"):
                await context.write(b"other")
                return None
            return b"other"

        getattr(world, kind)(other)  # is Method0

        async def redirect(continuation, details, request):
            return await continuation(details._replace(method=b"/drop.In/Method0"), request)

        call = method_of(world, kind, redirect)(request_of(kind))
        return await answers(call, kind)

    return (
        run,
        f"an_interceptor_sends_a_{kind}_call_to_another_method",
        "The server is asked for the method the interceptor names.",
    )


@each_kind
def _other_request(kind):
    async def run(world: World):
        async def change(continuation, details, request):
            changed = "changed" if kind.startswith("unary") else iter(["changed"])
            return await continuation(details, changed)

        return await answers(method_of(world, kind, change)(request_of(kind)), kind)

    return (
        run,
        f"an_interceptor_changes_the_request_of_a_{kind}_call",
        "The server sees the changed one.",
    )


@each_kind(since=(1, 83))
def _raising(kind):
    async def run(world: World):
        async def fail(continuation, details, request):
            raise LookupError("mine")

        call = method_of(world, kind, fail)(request_of(kind))
        return [await raised(answers(call, kind)), call.done(), call.cancelled()]

    return (
        run,
        f"what_an_interceptor_of_a_{kind}_call_raises_reaches_the_caller",
        "As it is, and the call is done.",
    )


@each_kind
def _refusing(kind):
    async def run(world: World):
        async def refuse(continuation, details, request):
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.aio.Metadata(("i", "1")),
                grpc.aio.Metadata(("t", "2")),
                "not you",
                "debug",
            )

        call = method_of(world, kind, refuse)(request_of(kind))
        return [
            await raised(answers(call, kind)),
            await status(call),
            await call.debug_error_string(),
        ]

    return (
        run,
        f"an_interceptor_ends_a_{kind}_call_with_a_status",
        "An AioRpcError it raises is the call's status, metadata included.",
    )


@each_kind(since=(1, 83))
def _late_failure(kind):
    async def run(world: World):
        async def fail(continuation, details, request):
            call = await continuation(details, request)
            await answers(call, kind)
            raise LookupError("after the answer")

        call = method_of(world, kind, fail)(request_of(kind))
        return [await raised(answers(call, kind)), call.done()]

    return (
        run,
        f"an_interceptor_fails_a_{kind}_call_after_its_answer",
        "The caller gets the interceptor's error, not the answer.",
    )


@each_kind
def _callback(kind):
    async def run(world: World):
        done = asyncio.Event()

        def on_done(over):
            world.note((over is call, over.done()))
            done.set()

        call = method_of(world, kind, passes)(request_of(kind))
        call.add_done_callback(on_done)
        answer = await answers(call, kind)
        async with asyncio.timeout(10):
            await done.wait()
        call.add_done_callback(lambda over: world.note(("late", over is call)))
        return answer

    return (
        run,
        f"done_callbacks_of_an_intercepted_{kind}_call",
        "Called once with the very call the user holds; at once when it is over.",
    )


@each_kind
def _types(kind):
    async def run(world: World):
        async def look(continuation, details, request):
            call = await continuation(details, request)
            world.note(isinstance(call, getattr(grpc.aio, f"{camel(kind)}Call")))
            return call

        call = method_of(world, kind, look)(request_of(kind))
        return [
            isinstance(call, getattr(grpc.aio, f"{camel(kind)}Call")),
            await answers(call, kind),
        ]

    return (
        run,
        f"an_intercepted_{kind}_call_is_grpc_aio_s",
        "What continuation returns, and what the caller gets, both pass a type check.",
    )


@each_kind
def _cancelling(kind):
    async def run(world: World):
        arrived, over = asyncio.Event(), asyncio.Event()

        async def wait():
            arrived.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                world.note("handler cancelled")
                raise
            finally:
                over.set()

        if kind.endswith("stream"):

            async def handler(request, context):
                await wait()
                yield b""
        else:

            async def handler(request, context):
                await wait()

        call = method_of(world, kind, passes, handler=handler)(request_of(kind))
        await arrived.wait()
        cancelled = call.cancel()
        seen = await raised(answers(call, kind))
        await over.wait()
        return [cancelled, seen, call.cancelled(), call.done(), await call.code()]

    return (
        run,
        f"an_intercepted_{kind}_call_is_cancelled_on_both_ends",
        "cancel() reaches the handler through the interceptor.",
    )


@each_kind
def _cancelled_inside(kind):
    async def run(world: World):
        inside = asyncio.Event()

        async def wait(continuation, details, request):
            inside.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                world.note("interceptor cancelled")
                raise

        call = method_of(world, kind, wait)(request_of(kind))
        await inside.wait()
        cancelled = call.cancel()
        seen = await raised(answers(call, kind))
        return [cancelled, seen, call.cancelled(), call.done(), await call.code()]

    return (
        run,
        f"a_{kind}_call_is_cancelled_while_its_interceptor_waits",
        "The interceptor sees CancelledError, and no call goes out.",
    )


@each_kind
def _cancels(kind):
    async def run(world: World):
        async def cancel(continuation, details, request):
            call = await continuation(details, request)
            call.cancel()
            return call

        call = method_of(world, kind, cancel)(request_of(kind))
        seen = await raised(answers(call, kind))
        return [seen, call.cancelled(), call.done(), await call.code()]

    return (
        run,
        f"an_interceptor_cancels_a_{kind}_call",
        "The caller sees a cancelled call.",
    )


@each_kind
def _contextvar(kind):
    async def run(world: World):
        variable = contextvars.ContextVar("variable", default="unset")

        async def look(continuation, details, request):
            world.note(variable.get())
            variable.set("changed inside")
            return await continuation(details, request)

        method = method_of(world, kind, look)
        variable.set("the caller's")
        answer = await answers(method(request_of(kind)), kind)
        return [answer, variable.get()]

    return (
        run,
        f"an_interceptor_of_a_{kind}_call_sees_the_caller_s_context",
        "Context variables of the caller are there, and its own changes stay inside.",
    )


@each_kind
def _server_fails(kind):
    async def run(world: World):
        async def look(continuation, details, request):
            call = await continuation(details, request)
            call.add_done_callback(lambda over: world.note("told"))
            return call

        async def read(request):
            if kind.startswith("stream"):
                _ = [each async for each in request]

        async def unary(request, context):
            await read(request)
            await context.abort(grpc.StatusCode.NOT_FOUND, "none", (("t", "1"),))

        async def stream(request, context):
            await read(request)
            await context.abort(grpc.StatusCode.NOT_FOUND, "none", (("t", "1"),))
            yield

        handler = stream if kind.endswith("stream") else unary
        call = method_of(world, kind, look, handler=handler)(request_of(kind))
        return [await raised(answers(call, kind)), await status(call)]

    return (
        run,
        f"an_intercepted_{kind}_call_fails_as_the_server_says",
        "Code, details and trailing metadata come through.",
    )


# --- Answers of interceptors --------------------------------------------------------------


@scenario()
async def an_interceptor_answers_without_calling(world: World):
    """A value instead of a call is the answer, and the server hears of nothing."""

    async def handler(request, context):
        world.note("called")
        return request

    async def answer(continuation, details, request):
        return f"cached {request}"

    call = method_of(world, "unary_unary", answer, handler=handler)("a")
    return [await call, await call.code(), await call.details(), call.done(), call.cancelled()]


@scenario()
async def an_interceptor_returns_the_answer_instead_of_the_call(world: World):
    """It awaited the call itself; the caller gets what it returned."""

    async def answer(continuation, details, request):
        call = await continuation(details, request)
        return (await call).upper()

    call = method_of(world, "unary_unary", answer)("a")
    return [await call, await call, await call.code()]


@scenario()
async def an_interceptor_awaits_the_call_and_returns_it(world: World):
    """The answer can be awaited again by the caller."""

    async def look(continuation, details, request):
        call = await continuation(details, request)
        world.note(await call)
        world.note(await call.code())
        world.note(plain(await call.initial_metadata()))
        return call

    async def handler(request, context):
        await context.send_initial_metadata((("i", "1"),))
        context.set_trailing_metadata((("t", "2"),))
        return request

    call = method_of(world, "unary_unary", look, handler=handler)("a")
    return [await call, await status(call)]


@scenario()
async def an_interceptor_sees_the_server_s_error(world: World):
    """Awaiting the call inside raises, and the interceptor may answer instead."""

    async def handler(request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "none")

    async def default(continuation, details, request):
        try:
            return await (await continuation(details, request))
        except grpc.aio.AioRpcError as error:
            return f"instead of {error.code().name} {error.details()}"

    return await method_of(world, "unary_unary", default, handler=handler)("a")


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

    call = method_of(world, "unary_unary", again, handler=handler)("a")
    return [await call, await status(call)]


@scenario(differs=Difference("Interceptors run once per attempt", grpcio=1, meshrpc=3))
async def an_interceptor_counts_a_call_to_nobody(world: World):
    """How often it runs for one call that is refused each time."""
    seen = []

    async def count(continuation, details, request):
        seen.append(request)
        return await continuation(details, request)

    await world.stop_server()
    await raised(method_of(world, "unary_unary", count)("a"))
    return len(seen)


@scenario()
async def an_interceptor_waits_before_it_calls(world: World):
    """Nothing goes out before, and the caller's await waits."""
    go, inside = asyncio.Event(), asyncio.Event()

    async def handler(request, context):
        world.note("called")
        return request

    async def wait(continuation, details, request):
        inside.set()
        await go.wait()
        world.note("goes on")
        return await continuation(details, request)

    call = method_of(world, "unary_unary", wait, handler=handler)("a")
    await inside.wait()
    world.note(("done", call.done(), call.cancelled()))
    go.set()
    return await call


@scenario()
async def an_interceptor_replaces_a_stream_of_answers(world: World):
    """An async iterator it returns is what the caller reads."""

    async def upper(continuation, details, request):
        call = await continuation(details, request)

        async def each():
            async for message in call:
                yield message.upper()

        return each()

    call = method_of(world, "unary_stream", upper)("a")
    return [[message async for message in call], await call.code()]


@scenario()
async def an_interceptor_replaces_a_stream_both_ways(world: World):
    """The same where requests stream too."""

    async def upper(continuation, details, request):
        call = await continuation(details, request)

        async def each():
            async for message in call:
                yield message.upper()

        return each()

    call = method_of(world, "stream_stream", upper)(["a", "b"])
    return [[message async for message in call], await call.code()]


@scenario()
async def a_replaced_stream_is_read_one_by_one(world: World):
    """read() goes through the interceptor's iterator as well."""

    async def upper(continuation, details, request):
        call = await continuation(details, request)

        async def each():
            async for message in call:
                yield message.upper()

        return each()

    call = method_of(world, "unary_stream", upper)("a")
    return [await call.read(), await call.read(), await call.read() is grpc.aio.EOF]


@scenario()
async def requests_are_written_through_an_interceptor(world: World):
    """A stream of requests without an iterator: the interceptor gets one anyway."""

    async def look(continuation, details, requests):
        world.note(hasattr(requests, "__aiter__"))
        return await continuation(details, requests)

    call = method_of(world, "stream_unary", look)()
    await call.write("a")
    await call.write("b")
    await call.done_writing()
    return [await call, await call.code()]


@scenario()
async def requests_are_written_and_answers_read_through_an_interceptor(world: World):
    """One after the other, both ways."""
    call = method_of(world, "stream_stream", passes)()
    seen = []
    for text in ("a", "b"):
        await call.write(text)
        seen.append(await call.read())
    await call.done_writing()
    return [*seen, await call.read() is grpc.aio.EOF, await call.code()]


@scenario()
async def an_interceptor_changes_written_requests(world: World):
    """It puts its own iterator in between."""

    async def upper(continuation, details, requests):
        async def each():
            async for request in requests:
                yield request.upper()

        return await continuation(details, each())

    call = method_of(world, "stream_unary", upper)()
    await call.write("a")
    await call.write("b")
    await call.done_writing()
    return await call


@scenario()
async def an_interceptor_changes_requests_of_an_iterator(world: World):
    """The same with an async iterator of the caller's."""

    async def upper(continuation, details, requests):
        async def each():
            async for request in requests:
                yield request.upper()

        return await continuation(details, each())

    return await method_of(world, "stream_unary", upper)(each_of("a", "b"))


@scenario(
    differs=Difference(
        "Interceptors get a stream of requests as an async iterator", "list", "async"
    )
)
async def an_interceptor_sees_a_list_of_requests(world: World):
    """What kind of object a stream of requests is for an interceptor."""

    async def look(continuation, details, requests):
        world.note("async" if hasattr(requests, "__aiter__") else type(requests).__name__)
        return await continuation(details, requests)

    await method_of(world, "stream_unary", look)(["a", "b"])
    return world.events.pop()


@scenario()
async def writing_with_an_iterator_through_an_interceptor_is_refused(world: World):
    """The styles do not mix here either."""
    call = method_of(world, "stream_unary", passes)(["a"])
    return [
        await raised(call.write("b")),
        await raised(call.done_writing()),
        await call,
    ]


# --- Several kinds ------------------------------------------------------------------------


@scenario()
async def interceptors_of_other_kinds_stay_out(world: World):
    """Each kind of call meets its own kind of interceptor only."""

    def noting(kind):
        async def note(continuation, details, request):
            world.note(kind)
            return await continuation(details, request)

        return interceptor(kind, note)

    channel = world.make_channel(interceptors=[noting(kind) for kind in KINDS])
    seen = []
    for kind in KINDS:
        method = getattr(world, kind)(HANDLERS[kind], channel, **TEXT)
        seen.append(await answers(method(request_of(kind)), kind))
    return seen


@scenario()
async def an_interceptor_of_two_kinds_is_of_the_first(world: World):
    """grpcio takes one that is both for the first of the two only."""

    class Both(grpc.aio.UnaryUnaryClientInterceptor, grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            world.note("unary")
            return await continuation(details, request)

        async def intercept_unary_stream(self, continuation, details, request):
            world.note("stream")
            return await continuation(details, request)

    channel = world.make_channel(interceptors=[Both()])
    return [
        await world.unary_unary(echo, channel)(b"a"),
        [message async for message in world.unary_stream(echo_twice, channel)(b"a")],
    ]


@scenario()
async def what_is_no_interceptor_is_refused_where_the_channel_is_made(world: World):
    """ValueError, as grpcio raises: for a class, a synchronous interceptor, anything else."""

    class Sync(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation, details, request):
            return continuation(details, request)

    seen = []
    for wrong in (object(), Sync(), None, "name", grpc.aio.UnaryUnaryClientInterceptor):
        try:
            world.make_channel(interceptors=[wrong])
        except Exception as error:  # noqa: BLE001 - that is the question
            seen.append(type(error).__name__)
        else:
            seen.append("made")
    return seen


@scenario()
async def interceptors_may_be_any_sequence(world: World):
    """Tuple, list, none at all."""
    made = interceptor("unary_unary", passes)
    return [
        await world.unary_unary(echo, world.make_channel(interceptors=given))(b"a")
        for given in ((made,), [made], (), None)
    ]


@scenario()
async def one_interceptor_serves_two_channels(world: World):
    """It is no part of either."""

    async def note(continuation, details, request):
        world.note("seen")
        return await continuation(details, request)

    shared = interceptor("unary_unary", note)
    channels = [world.make_channel(interceptors=[shared]) for _ in range(2)]
    return [await world.unary_unary(echo, channel)(b"a") for channel in channels]


# --- Calls inside -------------------------------------------------------------------------


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

    return await method_of(world, "unary_unary", authorise, handler=handler)("a")


@scenario()
async def an_interceptor_passes_on_details_of_its_own(world: World):
    """grpc.aio.ClientCallDetails made anew, with metadata as a plain tuple."""

    async def handler(request, context):
        world.note(plain(context.invocation_metadata()))
        return request

    async def anew(continuation, details, request):
        new = grpc.aio.ClientCallDetails(
            details.method, 30.0, (("mine", "x"),), details.credentials, None
        )
        return await continuation(new, request)

    return await raised(method_of(world, "unary_unary", anew, handler=handler)("a"))


@scenario()
async def an_interceptor_drops_metadata(world: World):
    """The call goes out without the caller's."""

    async def handler(request, context):
        world.note(plain(context.invocation_metadata()))
        return request

    async def drop(continuation, details, request):
        return await continuation(details._replace(metadata=grpc.aio.Metadata()), request)

    method = method_of(world, "unary_unary", drop, handler=handler)
    return await method("a", metadata=(("k", "v"),))


@scenario()
async def waiting_for_the_connection_of_an_intercepted_call(world: World):
    """Returns once the call is on its way."""
    call = method_of(world, "unary_unary", passes)("a")
    return [await call.wait_for_connection(), await call]


@scenario()
async def cancelling_the_task_that_awaits_an_intercepted_call_cancels_it(world: World):
    """The handler sees it, through an interceptor that awaits the call."""
    arrived, over = asyncio.Event(), asyncio.Event()

    async def handler(request, context):
        arrived.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            world.note("handler cancelled")
            raise
        finally:
            over.set()

    async def waits(continuation, details, request):
        call = await continuation(details, request)
        await call
        return call

    call = method_of(world, "unary_unary", waits, handler=handler)("a")

    async def use():
        return await call

    task = asyncio.ensure_future(use())
    await arrived.wait()
    task.cancel()
    await asyncio.wait([task])
    await over.wait()
    return [task.cancelled(), call.cancelled(), call.done()]


@scenario()
async def closing_the_channel_cancels_a_call_held_by_an_interceptor(world: World):
    """Even one that has not gone out yet."""
    inside = asyncio.Event()

    async def hold(continuation, details, request):
        inside.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            world.note("interceptor cancelled")
            raise

    channel = world.make_channel(interceptors=[interceptor("unary_unary", hold)])
    call = world.unary_unary(echo, channel)(b"a")
    await inside.wait()
    await channel.close()
    return [await raised(call), call.done(), call.cancelled()]

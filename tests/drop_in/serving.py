"""Scenarios: the same handlers on a bare grpc.aio.server and on a meshrpc.Service."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import warnings

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
    text,
)


def request_of(kind):
    return b"a" if kind.startswith("unary") else [b"a", b"b"]


async def answers(call, kind):
    if kind.endswith("unary"):
        return await call
    return [message async for message in call]


async def outcome(call, kind="unary_unary"):
    """Return what a call answers or raises, and all it says of itself."""
    return [await raised(answers(call, kind)), await status(call)]


def made_of(kind, body):
    """Make a handler of a kind that reads its requests, does `body(context)` and answers b"x"."""

    async def run(request, context):
        if kind.startswith("stream"):
            _ = [each async for each in request]
        await body(context)

    async def unary(request, context):
        await run(request, context)
        return b"x"

    async def stream(request, context):
        await run(request, context)
        yield b"x"

    return stream if kind.endswith("stream") else unary


# --- Shapes of handlers -------------------------------------------------------------------


@scenario()
async def handlers_that_return_and_yield(world: World):
    """One of each kind, requests as async iterators."""

    async def join(requests, context):
        return b"".join([request async for request in requests])

    async def echo(request, context):
        return request

    async def twice(request, context):
        yield request
        yield request

    async def each(requests, context):
        async for request in requests:
            yield request

    server = await world.serve(
        unary_unary=echo, unary_stream=twice, stream_unary=join, stream_stream=each
    )
    return [await outcome(getattr(server, kind)(request_of(kind)), kind) for kind in KINDS]


@scenario()
async def handlers_that_read_and_write(world: World):
    """The other style: context.read() and context.write()."""

    async def twice(request, context):
        await context.write(request)
        await context.write(request)

    async def join(requests, context):
        read = []
        while (request := await context.read()) is not grpc.aio.EOF:
            read.append(request)
        return b"".join(read)

    async def each(requests, context):
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    server = await world.serve(unary_stream=twice, stream_unary=join, stream_stream=each)
    return [await outcome(getattr(server, kind)(request_of(kind)), kind) for kind in KINDS[1:]]


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
    return [await server.unary_unary(b"a"), await answers(server.unary_stream(b"a"), "stream")]


@scenario()
async def synchronous_handlers_of_one_request(world: World):
    """A plain function and a plain generator are run in threads."""

    def echo(request, context):
        return request

    def twice(request, context):
        yield request
        yield request

    server = await world.serve(unary_unary=echo, unary_stream=twice)
    return [
        await outcome(server.unary_unary(b"a")),
        await outcome(server.unary_stream(b"a"), "unary_stream"),
    ]


@scenario()
async def a_synchronous_handler_s_context(world: World):
    """Metadata, code, details and trailers work from its thread."""

    def handler(request, context):
        world.note(plain(context.invocation_metadata()))
        context.set_trailing_metadata((("t", "1"),))
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("none")
        world.note(text(context.peer()))
        return b""

    server = await world.serve(unary_unary=handler)
    return await outcome(server.unary_unary(b"a", metadata=(("k", "v"),)))


@scenario(since=(1, 83))
async def a_synchronous_handler_aborts(world: World):
    """Nothing after abort is done."""

    def handler(request, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "none")
        world.note("went on")

    return await outcome((await world.serve(unary_unary=handler)).unary_unary(b"a"))


def number_to_bytes(number):
    return str(number).encode()


@scenario()
async def handlers_with_codecs(world: World):
    """Requests are decoded and answers encoded as the handler was registered."""

    async def double(request, context):
        world.note(request)
        return request * 2

    handler = grpc.unary_unary_rpc_method_handler(double, int, number_to_bytes)
    return await (await world.serve(unary_unary=handler)).unary_unary(b"21")


@scenario()
async def streams_with_codecs(world: World):
    """The same for each message of a stream that is read and written."""

    async def double(requests, context):
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request * 2)

    handler = grpc.stream_stream_rpc_method_handler(double, int, number_to_bytes)
    server = await world.serve(stream_stream=handler)
    return await answers(server.stream_stream([b"1", b"2"]), "stream_stream")


@scenario()
async def generators_with_codecs(world: World):
    """And for one that is iterated over and yielded."""

    async def double(requests, context):
        async for request in requests:
            yield request * 2

    handler = grpc.stream_stream_rpc_method_handler(double, int, number_to_bytes)
    server = await world.serve(stream_stream=handler)
    return await answers(server.stream_stream([b"1", b"2"]), "stream_stream")


@scenario()
async def a_handler_without_a_serialiser_may_answer_with_text(world: World):
    """It goes out as UTF-8, from a stream as well."""

    async def one(request, context):
        return "größer"

    async def two(request, context):
        yield "a"
        yield "b"

    server = await world.serve(unary_unary=one, unary_stream=two)
    return [await server.unary_unary(b""), await answers(server.unary_stream(b""), "unary_stream")]


@scenario()
async def a_generic_handler_chooses_by_method_and_metadata(world: World):
    """It is asked for each call, with its details."""

    async def echo(request, context):
        return request

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


@scenario()
async def methods_nobody_serves(world: World):
    """UNIMPLEMENTED, with the same words, for each kind."""

    async def echo(request, context):
        return request

    server = await world.serve(unary_unary=echo)
    return [
        await raised(server.unary_stream(b"a").read()),
        await raised(server.stream_unary()),
        await raised(server.stream_stream().read()),
        await raised(server.channel.unary_unary("/no.Such/Service")(b"a")),
    ]


@scenario()
async def a_handler_may_ignore_its_requests(world: World):
    """It answers a stream of requests without reading it."""

    async def handler(requests, context):
        return b"enough"

    call = (await world.serve(stream_unary=handler)).stream_unary()
    answer = await call
    return [answer, await call.code()]


@scenario()
async def a_stream_without_answers_is_ok(world: World):
    """A generator that yields nothing."""

    async def nothing(request, context):
        for _ in ():
            yield b""

    server = await world.serve(unary_stream=nothing)
    return await outcome(server.unary_stream(b"a"), "unary_stream")


# --- Statuses -----------------------------------------------------------------------------


@each_kind
def _abort(kind):
    async def run(world: World):
        async def body(context):
            await context.send_initial_metadata((("i", "1"),))
            try:
                await context.abort(grpc.StatusCode.NOT_FOUND, "none", (("t", "2"),))
            except BaseException as error:
                world.note(type(error).__name__)
                raise
            finally:
                world.note((context.code(), context.details(), plain(context.trailing_metadata())))

        server = await world.serve(**{kind: made_of(kind, body)})
        return await outcome(getattr(server, kind)(request_of(kind)), kind)

    return (
        run,
        f"a_{kind}_handler_aborts",
        "Code, details and both metadata arrive; abort raises AbortError.",
    )


@each_kind
def _set_code(kind):
    async def run(world: World):
        async def body(context):
            context.set_code(grpc.StatusCode.ALREADY_EXISTS)
            context.set_details("there")
            context.set_trailing_metadata((("t", "2"), ("raw-bin", b"\0\1")))
            world.note((context.code(), context.details(), plain(context.trailing_metadata())))

        server = await world.serve(**{kind: made_of(kind, body)})
        return await outcome(getattr(server, kind)(request_of(kind)), kind)

    return (
        run,
        f"a_{kind}_handler_sets_its_status",
        "What it set is the call's status, whatever it returns.",
    )


@each_kind
def _metadata(kind):
    async def run(world: World):
        async def body(context):
            world.note(plain(context.invocation_metadata()))
            await context.send_initial_metadata((("i", "1"), ("i", "2"), ("raw-bin", b"\xff")))
            context.set_trailing_metadata((("t", "1"), ("t", "2")))

        server = await world.serve(**{kind: made_of(kind, body)})
        call = getattr(server, kind)(request_of(kind), metadata=(("k", "v"), ("k-bin", b"\0")))
        return await outcome(call, kind)

    return (
        run,
        f"metadata_of_a_{kind}_call_both_ways",
        "Repeated keys and bytes keep their order and value.",
    )


@each_kind
def _time(kind):
    async def run(world: World):
        async def body(context):
            left = context.time_remaining()
            world.note(None if left is None else 50 < left < 61)

        server = await world.serve(**{kind: made_of(kind, body)})
        method = getattr(server, kind)
        return [
            await answers(method(request_of(kind), timeout=60), kind),
            await answers(method(request_of(kind)), kind),
        ]

    return (
        run,
        f"the_time_left_in_a_{kind}_handler",
        "In seconds; None without a timeout.",
    )


@each_kind
def _deadline(kind):
    async def run(world: World):
        over = asyncio.Event()

        async def body(context):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                world.note("cancelled")
                raise
            finally:
                over.set()

        server = await world.serve(**{kind: made_of(kind, body)})
        call = getattr(server, kind)(request_of(kind), timeout=0.2)
        seen = await raised(answers(call, kind))
        await over.wait()
        return seen

    return (
        run,
        f"a_{kind}_handler_is_cancelled_at_the_deadline",
        "The caller has DEADLINE_EXCEEDED, the handler CancelledError.",
    )


@each_kind
def _cancelled(kind):
    async def run(world: World):
        arrived, over, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def body(context):
            context.add_done_callback(lambda _: done.set())
            world.note((context.cancelled(), context.done()))
            arrived.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                world.note("cancelled")
                raise
            finally:
                over.set()

        server = await world.serve(**{kind: made_of(kind, body)})
        call = getattr(server, kind)(request_of(kind))
        await arrived.wait()
        call.cancel()
        await over.wait()
        async with asyncio.timeout(10):
            await done.wait()
        return await raised(answers(call, kind))

    return (
        run,
        f"a_{kind}_handler_is_cancelled_by_its_caller",
        "CancelledError in the handler, and its done callbacks are called.",
    )


@each_kind
def _done_callback(kind):
    async def run(world: World):
        done = asyncio.Event()

        def on_done(context):
            world.note(("done", context.done()))
            done.set()

        async def body(context):
            context.add_done_callback(on_done)
            world.note(("before", context.done()))

        server = await world.serve(**{kind: made_of(kind, body)})
        answer = await answers(getattr(server, kind)(request_of(kind)), kind)
        async with asyncio.timeout(10):
            await done.wait()
        return answer

    return (
        run,
        f"a_done_callback_in_a_{kind}_handler",
        "Called once, when the call is over.",
    )


@scenario()
async def a_handler_aborts_twice(world: World):
    """The second abort is an error of use, and the first one stands."""

    async def handler(request, context):
        try:
            await context.abort(grpc.StatusCode.NOT_FOUND, "first")
        except grpc.aio.AbortError:
            world.note(await raised(context.abort(grpc.StatusCode.INTERNAL, "second")))
            raise

    return await outcome((await world.serve(unary_unary=handler)).unary_unary(b"a"))


@scenario()
async def abort_needs_no_details(world: World):
    """Details and trailing metadata may be left out."""

    async def handler(request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND)

    return await outcome((await world.serve(unary_unary=handler)).unary_unary(b"a"))


@scenario()
async def abort_takes_its_arguments_by_name(world: World):
    """As grpcio calls them."""

    async def handler(request, context):
        await context.abort(
            code=grpc.StatusCode.NOT_FOUND, details="none", trailing_metadata=(("t", "1"),)
        )

    return await outcome((await world.serve(unary_unary=handler)).unary_unary(b"a"))


@scenario()
async def abort_keeps_trailing_metadata_set_before(world: World):
    """Unless it has its own."""

    async def handler(request, context):
        context.set_trailing_metadata((("set", "before"),))
        if request == b"own":
            await context.abort(grpc.StatusCode.NOT_FOUND, "none", (("t", "own"),))
        await context.abort(grpc.StatusCode.NOT_FOUND, "none")

    server = await world.serve(unary_unary=handler)
    return [await outcome(server.unary_unary(b"own")), await outcome(server.unary_unary(b""))]


@scenario()
async def abort_with_any_status_code(world: World):
    """Every code but OK."""

    async def handler(request, context):
        await context.abort(grpc.StatusCode[request.decode()], "so")

    server = await world.serve(unary_unary=handler)
    codes = [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
    return [(await raised(server.unary_unary(code.encode())))[:3] for code in codes]


@scenario()
async def set_code_takes_a_number(world: World):
    """grpcio sends codes that its enum does not know, too."""

    async def handler(request, context):
        context.set_code(int(request))
        context.set_details("so")
        return b""

    server = await world.serve(unary_unary=handler)
    return [(await raised(server.unary_unary(number)))[:3] for number in (b"5", b"77")]


@scenario()
async def details_may_be_any_text(world: World):
    """Beyond ASCII, and more than one line."""

    async def handler(request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "größer\nals 5 % ☃")

    return await outcome((await world.serve(unary_unary=handler)).unary_unary(b"a"))


@scenario()
async def a_code_of_ok_is_ok(world: World):
    """set_code(OK) is what happens anyway; details go along."""

    async def handler(request, context):
        context.set_code(grpc.StatusCode.OK)
        context.set_details("fine")
        return b"x"

    return await outcome((await world.serve(unary_unary=handler)).unary_unary(b"a"))


@scenario()
async def a_context_before_anything_is_set(world: World):
    """No code, no details, no trailing metadata."""

    async def handler(request, context):
        world.note((context.code(), context.details(), plain(context.trailing_metadata())))
        world.note((context.cancelled(), context.done()))
        return b"x"

    return await (await world.serve(unary_unary=handler)).unary_unary(b"a")


@scenario()
async def initial_metadata_is_sent_once(world: World):
    """A second time is an error of use."""

    async def handler(request, context):
        await context.send_initial_metadata((("i", "1"),))
        world.note(await raised(context.send_initial_metadata((("i", "2"),))))
        return b"x"

    return await outcome((await world.serve(unary_unary=handler)).unary_unary(b"a"))


@scenario()
async def initial_metadata_arrives_before_the_first_answer(world: World):
    """The caller of a stream reads it while the handler still works."""
    go = asyncio.Event()

    async def handler(request, context):
        await context.send_initial_metadata((("i", "1"),))
        await go.wait()
        yield b"x"

    call = (await world.serve(unary_stream=handler)).unary_stream(b"a")
    early = plain(await call.initial_metadata())
    world.note(call.done())
    go.set()
    return [early, await answers(call, "unary_stream")]


@scenario()
async def initial_metadata_after_an_answer_is_too_late(world: World):
    """The first answer has sent it."""

    async def handler(request, context):
        await context.write(b"a")
        world.note((await raised(context.send_initial_metadata((("i", "1"),))))[0])

    server = await world.serve(unary_stream=handler)
    return await outcome(server.unary_stream(b"a"), "unary_stream")


@scenario()
async def trailing_metadata_may_be_set_again(world: World):
    """The last one counts."""

    async def handler(request, context):
        context.set_trailing_metadata((("t", "1"),))
        context.set_trailing_metadata((("t", "2"),))
        return b"x"

    return await outcome((await world.serve(unary_unary=handler)).unary_unary(b"a"))


@scenario()
async def metadata_of_a_handler_may_be_of_any_form(world: World):
    """Tuple, list or grpc.aio.Metadata."""

    async def handler(request, context):
        form = (tuple, list, lambda pairs: grpc.aio.Metadata(*pairs))[int(request)]
        await context.send_initial_metadata(form([("i", "1")]))
        context.set_trailing_metadata(form([("t", "1")]))
        return b"x"

    server = await world.serve(unary_unary=handler)
    return [await outcome(server.unary_unary(form)) for form in (b"0", b"1", b"2")]


@scenario()
async def the_request_s_metadata_is_what_was_sent(world: World):
    """As a tuple of pairs that reads like one of grpcio's."""

    async def handler(request, context):
        metadata = context.invocation_metadata()
        found = [pair for pair in metadata if pair[0] == "k"]
        world.note((type(metadata).__name__, found, dict(metadata)["k-bin"]))
        first = found[0]
        world.note((first.key, first.value) if hasattr(first, "key") else first)
        return b"x"

    server = await world.serve(unary_unary=handler)
    return await server.unary_unary(b"a", metadata=(("k", "v"), ("k-bin", b"\0\xff")))


@scenario()
async def a_handler_knows_its_peer(world: World):
    """The caller's address, no identity, and what the transport tells."""

    async def handler(request, context):
        world.note(text(context.peer()))
        world.note((context.peer_identities(), context.peer_identity_key()))
        world.note(sorted(context.auth_context()))
        return b"x"

    return await (await world.serve(unary_unary=handler)).unary_unary(b"a")


@scenario()
async def compression_of_answers(world: World):
    """Set for the call, or left out for one message, answers arrive whole."""

    async def handler(request, context):
        context.set_compression(grpc.Compression.Gzip)
        await context.write(b"a" * 5000)
        context.disable_next_message_compression()
        await context.write(b"b" * 5000)

    server = await world.serve(unary_stream=handler)
    call = server.unary_stream(b"a")
    return [len(message) async for message in call]


@scenario()
async def compression_after_initial_metadata_is_too_late(world: World):
    """grpcio says so."""

    async def handler(request, context):
        await context.send_initial_metadata(())
        try:
            context.set_compression(grpc.Compression.Gzip)
        except Exception as error:  # noqa: BLE001 - that is the question
            world.note(type(error).__name__)
        return b"x"

    return await (await world.serve(unary_unary=handler)).unary_unary(b"a")


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
    return await asyncio.gather(*(_awaited(server.unary_unary(b"%d" % n)) for n in range(5)))


async def _awaited(call):
    return await call


@scenario()
async def a_handler_may_start_tasks(world: World):
    """They use the call's context until it is over."""

    async def handler(request, context):
        async def write(data):
            await context.write(data)

        await asyncio.gather(write(b"a"))
        await asyncio.create_task(write(b"b"))

    server = await world.serve(unary_stream=handler)
    return await outcome(server.unary_stream(b"a"), "unary_stream")


# --- Both directions ----------------------------------------------------------------------


@scenario()
async def requests_are_answered_one_by_one(world: World):
    """Each answer can be read before the next request is written."""

    async def handler(requests, context):
        async for request in requests:
            yield request.upper()

    call = (await world.serve(stream_stream=handler)).stream_stream()
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
async def a_caller_that_goes_away_ends_a_stream(world: World):
    """The handler that writes for ever is cancelled."""
    over = asyncio.Event()

    async def handler(request, context):
        try:
            while True:
                await context.write(b"a")
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            world.note("cancelled")
            raise
        finally:
            over.set()

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
    async with asyncio.timeout(10):
        await over.wait()
    return first


@scenario()
async def large_answers_within_the_limit(world: World):
    """4 MiB, less what the frame takes, go through."""

    async def handler(request, context):
        return b"a" * int(request)

    server = await world.serve(unary_unary=handler)
    return len(await server.unary_unary(str(4 * 1024 * 1024).encode()))


@scenario()
async def a_request_longer_than_the_limit_is_refused(world: World):
    """RESOURCE_EXHAUSTED, and the handler does not run."""

    async def handler(request, context):
        world.note(len(request))
        return b"x"

    server = await world.serve(unary_unary=handler)
    longest = 4 * 1024 * 1024
    return [
        await server.unary_unary(b"a" * longest),
        await raised(server.unary_unary(b"a" * (longest + 1))),
    ]


@scenario()
async def options_of_the_server(world: World):
    """grpc.max_receive_message_length as given."""

    async def handler(request, context):
        return b"x"

    options = [("grpc.max_receive_message_length", 10)]
    server = await world.serve(unary_unary=handler, options=options)
    return [await server.unary_unary(b"a" * 10), await raised(server.unary_unary(b"a" * 11))]


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


# --- Handlers that fail -------------------------------------------------------------------


UNKNOWN, INTERNAL = grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL
LATE = grpc.StatusCode.DEADLINE_EXCEEDED

KEPT = Difference(
    "What a handler raises stays in its process", grpcio=(UNKNOWN, True), meshrpc=(INTERNAL, False)
)


def told(seen, what="secret"):
    """Return the code of an error, and whether its details tell what was raised."""
    return (seen[1], what in seen[2])


def hangs(meshrpc):
    """Return the difference: a mistake that grpcio does not answer at all."""
    return Difference("A handler's mistake is answered", grpcio=LATE, meshrpc=meshrpc)


@each_kind(differs=KEPT)
def _raises(kind):
    async def run(world: World):
        async def body(context):
            raise LookupError("secret")

        server = await world.serve(**{kind: made_of(kind, body)})
        return told(await raised(answers(getattr(server, kind)(request_of(kind)), kind)))

    return (
        run,
        f"a_{kind}_handler_raises",
        "What its caller learns of it.",
    )


@scenario(
    differs=Difference(
        "What a handler raises stays in its process",
        grpcio=(grpc.StatusCode.NOT_FOUND, True),
        meshrpc=(grpc.StatusCode.NOT_FOUND, False),
    )
)
async def a_handler_raises_after_it_set_a_code(world: World):
    """What its caller learns of it."""

    async def handler(request, context):
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("none")
        context.set_trailing_metadata((("t", "1"),))
        raise LookupError("secret")

    seen = await raised((await world.serve(unary_unary=handler)).unary_unary(b"a"))
    world.note(seen[4])
    return told(seen)


@scenario()
async def a_method_that_is_not_implemented(world: World):
    """As generated base classes do it."""

    async def handler(request, context):
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        context.set_details("Method not implemented!")
        raise NotImplementedError("Method not implemented!")

    seen = await raised((await world.serve(unary_unary=handler)).unary_unary(b"a"))
    return [seen[1], "Method not implemented!" in seen[2]]


@scenario(differs=KEPT)
async def a_stream_raises_after_an_answer(world: World):
    """The answer before arrives."""

    async def handler(request, context):
        yield b"a"
        raise LookupError("secret")

    call = (await world.serve(unary_stream=handler)).unary_stream(b"a")
    world.note(await call.read())
    return told(await raised(call.read()))


@scenario(differs=hangs(grpc.StatusCode.UNAVAILABLE))
async def a_handler_s_own_call_is_cancelled(world: World):
    """CancelledError that the caller did not cause."""

    async def handler(request, context):
        raise asyncio.CancelledError

    call = (await world.serve(unary_unary=handler)).unary_unary(b"a", timeout=0.5)
    return (await raised(call))[1]


@scenario(differs=KEPT)
async def a_request_that_cannot_be_decoded(world: World):
    """The deserialiser raises."""

    async def handler(request, context):
        world.note("called")
        return b""

    made = grpc.unary_unary_rpc_method_handler(handler, int, None)
    call = (await world.serve(unary_unary=made)).unary_unary(b"no number", timeout=5)
    return told(await raised(call), "no number")


@scenario(differs=KEPT)
async def an_answer_that_cannot_be_encoded(world: World):
    """The serialiser raises."""

    async def handler(request, context):
        return "no number"

    def encode(number):
        raise LookupError("secret")

    made = grpc.unary_unary_rpc_method_handler(handler, None, encode)
    call = (await world.serve(unary_unary=made)).unary_unary(b"a", timeout=5)
    return told(await raised(call))


@scenario(differs=hangs("returned"))
async def a_handler_aborts_with_ok(world: World):
    """That is no way to end a call: abort raises, and what becomes of the call."""

    async def handler(request, context):
        await raised(context.abort(grpc.StatusCode.OK, "fine"))
        return b"x"

    call = (await world.serve(unary_unary=handler)).unary_unary(b"a", timeout=0.5)
    seen = await raised(call)
    return LATE if LATE in seen else seen[0]


@scenario()
async def a_handler_catches_what_abort_raises(world: World):
    """The status is sent nevertheless."""

    async def handler(request, context):
        try:
            await context.abort(grpc.StatusCode.NOT_FOUND, "none")
        except Exception:  # noqa: BLE001 - as handlers do
            world.note("caught")
        return b"x"

    return await outcome((await world.serve(unary_unary=handler)).unary_unary(b"a", timeout=1))


@scenario()
async def a_handler_turns_what_abort_raises_into_something_else(world: World):
    """The status is sent nevertheless."""

    async def handler(request, context):
        try:
            await context.abort(grpc.StatusCode.NOT_FOUND, "none")
        except Exception as error:
            raise LookupError("mine") from error

    return await outcome((await world.serve(unary_unary=handler)).unary_unary(b"a", timeout=1))


@scenario()
async def a_handler_returns_from_its_own_timeout(world: World):
    """asyncio.timeout inside a handler ends what it waits for, and nothing else."""

    async def handler(request, context):
        try:
            async with asyncio.timeout(0.05):
                await asyncio.Event().wait()
        except TimeoutError:
            return b"timed out"

    return await (await world.serve(unary_unary=handler)).unary_unary(b"a")


@scenario(differs=hangs(b"refused"))
async def metadata_that_cannot_be_sent(world: World):
    """A handler sets text under a key for bytes."""

    async def handler(request, context):
        seen = "set"
        try:
            context.set_trailing_metadata((("k-bin", "text"),))
        except (TypeError, ValueError):
            seen = "refused"
        return seen.encode()

    call = (await world.serve(unary_unary=handler)).unary_unary(b"a", timeout=0.5)
    seen = await raised(call)
    return seen[1]


@scenario(differs=Difference("Async callable objects are handlers", grpcio=UNKNOWN, meshrpc=b"a"))
async def an_async_callable_object_is_a_handler(world: World):
    """One whose __call__ is a coroutine function."""

    class Handler:
        async def __call__(self, request, context):
            return request

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # grpcio forgets the coroutine
        return (await raised((await world.serve(unary_unary=Handler())).unary_unary(b"a")))[1]


@scenario(
    differs=Difference(
        "Plain functions take no stream of requests", grpcio=b"ab", meshrpc="SettingsError"
    )
)
async def a_synchronous_handler_of_a_stream_of_requests(world: World):
    """A plain function that iterates over its requests."""

    def join(requests, context):
        return b"".join(requests)

    try:
        server = await world.serve(stream_unary=join)
    except Exception as error:  # noqa: BLE001 - that is the question
        return type(error).__name__
    return await server.stream_unary([b"a", b"b"])


@scenario(differs=KEPT)
async def a_synchronous_handler_raises(world: World):
    """What its caller learns of it."""

    def handler(request, context):
        raise LookupError("secret")

    return told(await raised((await world.serve(unary_unary=handler)).unary_unary(b"a")))


@scenario(differs=hangs(b"UsageError"))
async def a_handler_writes_where_one_answer_is_due(world: World):
    """context.write() in a method with one answer."""

    async def handler(request, context):
        seen = await raised(context.write(b"a"))
        return seen[0].encode()

    call = (await world.serve(unary_unary=handler)).unary_unary(b"a", timeout=0.5)
    return (await raised(call))[1]


@scenario()
async def a_server_refuses_a_deadline_that_has_passed(world: World):
    """A call whose time is up on arrival is over for both."""

    async def handler(request, context):
        await asyncio.Event().wait()

    call = (await world.serve(unary_unary=handler)).unary_unary(b"a", timeout=0.001)
    return (await raised(call))[1]


@scenario()
async def abort_with_a_status(world: World):
    """context.abort_with_status, where grpcio has it."""

    class Status(grpc.Status):
        code = grpc.StatusCode.NOT_FOUND
        details = "none"
        trailing_metadata = (("t", "1"),)

    async def handler(request, context):
        await context.abort_with_status(Status())

    return await raised((await world.serve(unary_unary=handler)).unary_unary(b"a"))


@scenario(
    differs=Difference("A handler's mistake is answered", grpcio="returned", meshrpc=INTERNAL)
)
async def a_handler_answers_nothing(world: World):
    """It returns None where an answer is due, and has no serialiser that would object."""

    async def handler(request, context):
        return None

    seen = await raised((await world.serve(unary_unary=handler)).unary_unary(b"a"))
    return INTERNAL if INTERNAL in seen else seen[0]


@scenario(differs=KEPT)
async def a_generic_handler_that_raises(world: World):
    """It fails when it is asked for the handler of a method."""

    class Generic(grpc.GenericRpcHandler):
        def service(self, details):
            raise LookupError("secret")

    server = await world.serve(generic=Generic())
    return told(await raised(server.unary_unary(b"a")))

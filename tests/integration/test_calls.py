"""One call, whatever happens to it: it ends once, says how, and leaves nothing behind."""

import asyncio
import contextvars
import gc

import grpc
import pytest
from opentelemetry import trace

import meshrpc
from meshrpc import wire
from meshrpc.policy.model import Retry
from tests.echo import (
    COUNT_UP,
    IDEMPOTENT,
    JOIN,
    MIRROR,
    PLAIN,
    ROUND_ROBIN,
    UNAVAILABLE,
    EchoServer,
    failing,
    hang,
    policy,
    ready,
)

OK = grpc.StatusCode.OK
CANCELLED = grpc.StatusCode.CANCELLED
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
NOT_EXECUTED = ((wire.NOT_EXECUTED, "1"),)
COME_BACK_LATER = (*NOT_EXECUTED, (wire.RETRY_PUSHBACK, "60000"))

every_kind = pytest.mark.parametrize(
    "kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
)


@pytest.fixture(autouse=True)
def ends(monkeypatch):
    """How often the span of each call was ended: once, in every test of this file."""
    ends = []

    class Span(trace.NonRecordingSpan):
        def __init__(self):
            super().__init__(trace.INVALID_SPAN_CONTEXT)
            self.number = len(ends)
            ends.append(0)

        def end(self, end_time=None):
            ends[self.number] += 1

    monkeypatch.setattr("meshrpc.telemetry.tracing.start_client_span", lambda path, service: Span())
    yield ends
    assert set(ends) <= {1}


def start(channel, kind, **options):
    """Start a call of one of the four kinds, with one message to send."""
    if kind == "unary_unary":
        return channel.unary_unary(PLAIN)(b"x", **options)
    if kind == "unary_stream":
        return channel.unary_stream(COUNT_UP)(b"3", **options)
    if kind == "stream_unary":
        return channel.stream_unary(JOIN)(iter([b"x"]), **options)
    return channel.stream_stream(MIRROR)(iter([b"x"]), **options)


async def read(call):
    """Read a call to its end."""
    if hasattr(call, "__await__"):
        return await call
    return [message async for message in call]


async def one_ready(mesh, registry, server):
    await registry.register(server.instance)
    channel = mesh.channel("echo")
    await channel.channel_ready()
    (endpoint,) = channel.bound().endpoints
    return channel, endpoint


async def two_ready(mesh, registry, one, other, **arguments):
    for server in (one, other):
        await registry.register(server.instance)
    channel = mesh.channel("echo", **arguments)
    policy(mesh, balancer=ROUND_ROBIN)
    await channel.channel_ready()
    await ready(channel, 2)
    return channel


async def backing_off(call):
    """Wait until the call waits for its next attempt."""
    async with asyncio.timeout(5):
        while call._next is None:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.005)


# Cancellation.


@every_kind
async def test_a_call_cancelled_at_once_is_over_at_once(mesh, kind):
    """Without an endpoint, and before anything could run: it is over, and every wait ends."""
    call = start(mesh.channel("echo"), kind, wait_for_ready=True)
    told = []
    call.add_done_callback(told.append)
    assert call.cancel()
    assert call.cancelled()
    assert call.done()
    assert not call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read(call)
    assert await call.code() is CANCELLED
    assert await call.details() == "Locally cancelled by application!"
    assert told == [call]


@every_kind
async def test_a_started_call_that_is_cancelled_is_over_at_once(mesh, registry, kind):
    """Nothing stays pending at the endpoint."""
    async with EchoServer("one", hang) as one:
        channel, endpoint = await one_ready(mesh, registry, one)
        call = start(channel, kind)
        assert call.cancel()
        assert call.cancelled()
        assert call.done()
        with pytest.raises(asyncio.CancelledError):
            await read(call)
        assert endpoint.pending == 0


@every_kind
async def test_a_call_can_be_cancelled_while_it_waits_to_be_tried_again(mesh, registry, kind):
    """A server asked for a minute's patience; cancelling does not wait for it."""
    async with EchoServer("bad", failing(trailers=COME_BACK_LATER)) as bad:
        channel, endpoint = await one_ready(mesh, registry, bad)
        call = start(channel, kind)
        await backing_off(call)
        assert not call.done()
        assert call.cancel()
        assert call.done()
        assert call.cancelled()
        with pytest.raises(asyncio.CancelledError):
            await read(call)
        assert await call.code() is CANCELLED
        assert endpoint.pending == 0


@every_kind
@pytest.mark.parametrize("is_ready", [True, False])
async def test_cancelling_the_task_that_reads_a_call_cancels_the_call(
    mesh, registry, kind, is_ready
):
    """Under way, or still without an endpoint: `cancelled()` is true as with grpcio."""
    async with EchoServer("one", hang) as one:
        channel = mesh.channel("echo")
        if is_ready:
            channel, _ = await one_ready(mesh, registry, one)
        call = start(channel, kind, wait_for_ready=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(call), 0.05)
        assert call.done()
        assert call.cancelled()
        assert await call.code() is CANCELLED


async def test_cancelling_a_stream_ends_a_write_that_waits_for_a_connection(mesh, registry):
    """grpcio leaves such a write waiting for ever."""
    async with EchoServer("one", hang) as one:
        channel, _ = await one_ready(mesh, registry, one)
        call = channel.stream_stream(MIRROR)()
        writing = asyncio.create_task(call.write(b"x"))
        connecting = asyncio.create_task(call.wait_for_connection())
        await asyncio.sleep(0)
        call.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.InvalidStateError):
                await writing
            with pytest.raises(asyncio.CancelledError):
                await connecting


async def test_a_cancelled_task_can_still_make_calls_while_it_cleans_up(mesh, registry):
    """An endpoint closed under such a call is no second cancellation."""
    async with EchoServer("bad", hang) as bad, EchoServer("good") as good:
        channel, endpoint = await one_ready(mesh, registry, bad)

        async def work():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return await channel.unary_unary(IDEMPOTENT)(b"cleaned")

        working = asyncio.create_task(work())
        await asyncio.sleep(0)
        working.cancel()
        await bad.calls(1)
        await registry.register(good.instance)
        await ready(channel, 2)
        await endpoint.close(0.0)
        assert await working == b"cleaned@good"


async def test_a_server_that_says_cancelled_failed_and_did_not_cancel(mesh, registry):
    """A stopping server drops waiting calls with CANCELLED: as UNAVAILABLE, it is tried again."""
    async with EchoServer("bad", failing(CANCELLED)) as bad, EchoServer("good") as good:
        channel = await two_ready(mesh, registry, bad, good)
        for _ in range(4):
            assert await channel.unary_unary(IDEMPOTENT)(b"") == b"@good"
        assert bad.seen
    async with EchoServer("bad2", failing(CANCELLED, "not by you")) as bad:
        await registry.deregister(good.instance)
        await registry.register(bad.instance)
        await ready(channel, 1)
        call = channel.unary_unary(PLAIN)(b"")
        with pytest.raises(grpc.aio.AioRpcError, match="not by you"):
            await call


# Deadlines.


@every_kind
async def test_a_deadline_ends_a_call_whenever_it_passes(mesh, registry, kind):
    """Before the start, at it, and under way: DEADLINE_EXCEEDED, and nothing stays pending."""
    async with EchoServer("one", hang) as one:
        channel, endpoint = await one_ready(mesh, registry, one)
        for timeout in (-1, 0, 1e-9, 1e-4, 0.002, 0.05):
            call = start(channel, kind, timeout=timeout)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await read(call)
            assert raised.value.code() is DEADLINE_EXCEEDED
            assert await call.code() is DEADLINE_EXCEEDED
            assert call.time_remaining() == 0
            assert call.done()
        assert endpoint.pending == 0


async def test_a_deadline_longer_than_grpc_can_say_is_none_that_has_passed(mesh, registry):
    """Infinity, and what overflows on the wire."""
    async with EchoServer("one") as one:
        channel, _ = await one_ready(mesh, registry, one)
        for timeout in (float("inf"), 1e12):
            assert await channel.unary_unary(PLAIN)(b"", timeout=timeout) == b"@one"


# Leaving and closing.


async def test_leaving_the_mesh_ends_what_waits(registry):
    """A call without an instance, and those who wait for the channel."""
    async with meshrpc.Mesh("shell", registry=registry, control="none") as mesh:
        channel = mesh.channel("echo")
        waiting = asyncio.create_task(read(start(channel, "unary_unary", wait_for_ready=True)))
        connecting = asyncio.create_task(channel.channel_ready())
        changing = asyncio.create_task(channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE))
        await asyncio.sleep(0)
    with pytest.raises(grpc.aio.AioRpcError, match="the mesh was left") as raised:
        await waiting
    assert raised.value.code() is UNAVAILABLE
    for wait in (connecting, changing):
        with pytest.raises(grpc.aio.UsageError, match="not entered"):
            await wait


async def test_a_call_whose_wait_breaks_is_internal(mesh, monkeypatch):
    """Whoever waits for it learns of it, and why."""
    channel = mesh.channel("echo")

    async def break_down(*_, **__):
        raise RuntimeError("the picker broke")

    monkeypatch.setattr(channel.bound(), "wait_for_endpoint", break_down)
    with pytest.raises(grpc.aio.AioRpcError, match="cannot start the call: the picker") as raised:
        await channel.unary_unary(PLAIN)(b"")
    assert raised.value.code() is grpc.StatusCode.INTERNAL


async def test_leaving_the_mesh_ends_a_call_that_waits_to_be_tried_again(registry, only_tasks):
    """At once, and no task of it is left."""
    async with EchoServer("bad", failing(trailers=COME_BACK_LATER)) as bad:
        before = asyncio.all_tasks()
        async with meshrpc.Mesh("shell", registry=registry, control="none") as mesh:
            channel, _ = await one_ready(mesh, registry, bad)
            call = start(channel, "unary_unary")
            await backing_off(call)
        assert call.done()
        with pytest.raises(grpc.aio.AioRpcError, match="the mesh was left"):
            await call
        await only_tasks(before)


@every_kind
async def test_leaving_the_mesh_ends_calls_under_way(registry, kind):
    """UNAVAILABLE, not CANCELLED, whether anybody waits for it or not; the server hears of it."""
    async with EchoServer("one", hang) as one:
        async with meshrpc.Mesh("shell", registry=registry, control="none") as mesh:
            channel, endpoint = await one_ready(mesh, registry, one)
            call = start(channel, kind)
            await one.calls(1)
            await asyncio.sleep(0.02)
        assert call.done()
        assert not call.cancelled()
        with pytest.raises(grpc.aio.AioRpcError, match="the mesh was left") as raised:
            await read(call)
        assert raised.value.code() is UNAVAILABLE
        assert await call.code() is UNAVAILABLE
        assert endpoint.pending == 0
        await one.cancelled.wait()


async def test_an_endpoint_closes_while_other_calls_wait(mesh, registry):
    """grpcio before 1.83 looks at every task's call when it closes a channel."""
    async with EchoServer("one") as one:
        _, endpoint = await one_ready(mesh, registry, one)
        waiting = mesh.channel("nobody").unary_unary(PLAIN)(b"", wait_for_ready=True)
        asking = asyncio.create_task(waiting.code())
        await asyncio.sleep(0)
        await endpoint.close(0.0)
        waiting.cancel()
        assert await asking is CANCELLED


async def test_closing_a_channel_ends_waits_for_its_state(mesh):
    """Also when its destination lives on for another channel."""
    channel, other = mesh.channel("echo"), mesh.channel("echo")
    other.bound()
    connecting = asyncio.create_task(channel.channel_ready())
    changing = asyncio.create_task(channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE))
    await asyncio.sleep(0)
    await channel.close()
    with pytest.raises(grpc.aio.UsageError, match="closed"):
        await connecting
    await changing
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_channel_cancels_the_calls_that_outlast_its_grace(mesh, registry):
    """As grpcio's does."""
    async with EchoServer("one", hang) as one:
        channel, endpoint = await one_ready(mesh, registry, one)
        call = channel.unary_unary(PLAIN)(b"")
        await channel.close(grace=0.05)
        assert call.cancelled()
        assert endpoint.pending == 0


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
async def test_a_writer_whose_endpoint_is_closed_gets_unavailable(mesh, registry, kind):
    """Nobody cancelled the writer."""
    async with EchoServer("one", hang) as one:
        channel, endpoint = await one_ready(mesh, registry, one)
        call = getattr(channel, kind)(JOIN if kind == "stream_unary" else MIRROR)()
        await call.write(b"x")

        writing = asyncio.create_task(call.write(b"x" * 32_000_000))  # more than is taken unread
        await asyncio.sleep(0.05)
        assert not writing.done()
        await endpoint.close(0.0)
        with pytest.raises(grpc.aio.AioRpcError, match="was closed") as raised:
            await writing
        assert raised.value.code() is UNAVAILABLE
        assert await call.code() is UNAVAILABLE


@every_kind
async def test_waiting_for_a_connection_ends_when_the_endpoint_is_closed(mesh, registry, kind):
    """Connected or UNAVAILABLE, never cancelled and never for ever."""
    async with EchoServer("one", hang) as one:
        channel, endpoint = await one_ready(mesh, registry, one)
        call = start(channel, kind)
        waiting = asyncio.create_task(call.wait_for_connection())
        await asyncio.sleep(0)
        await endpoint.close(0.0)
        result = (await asyncio.gather(waiting, return_exceptions=True))[0]
        assert result is None or result.code() is UNAVAILABLE


# Retries, as the user of the call sees them.


async def test_waiting_for_a_connection_outlasts_a_failed_attempt(mesh, registry):
    """It is the call's connection, not the attempt's."""
    async with EchoServer("bad", failing()) as bad, EchoServer("good") as good:
        channel = await two_ready(mesh, registry, bad, good)
        for _ in range(4):
            call = channel.unary_unary(IDEMPOTENT)(b"")
            await call.wait_for_connection()
            assert await call == b"@good"
        assert bad.seen


async def test_what_is_asked_before_a_retry_is_answered_after_it(mesh, registry):
    """Metadata, code and details of the attempt that counts; the done callback comes once."""

    async def script(server, context):
        await context.send_initial_metadata((("server", server.name),))
        if server.name == "bad":
            await context.abort(UNAVAILABLE, "no")
        context.set_trailing_metadata((("server", server.name),))

    async with EchoServer("bad", script) as bad, EchoServer("good", script) as good:
        channel = await two_ready(mesh, registry, bad, good)
        for _ in range(4):
            call = channel.unary_unary(IDEMPOTENT)(b"")
            told = []
            call.add_done_callback(told.append)
            asking = [
                asyncio.create_task(ask())
                for ask in (call.trailing_metadata, call.code, call.details)
            ]
            trailers, code, details = await asyncio.gather(*asking)
            assert dict(trailers)["server"] == "good"
            assert (code, details) == (OK, "")
            assert await call == b"@good"
            assert told == [call]
        assert bad.seen


@every_kind
async def test_a_later_attempt_runs_in_the_context_of_its_request(mesh, registry, kind):
    """Interceptors find the same context variables in every attempt."""
    request = contextvars.ContextVar("request", default="none")
    found = []

    async def look(self, continuation, details, message):
        found.append(request.get())
        return await continuation(details, message)

    interceptors = [
        type("Look", (getattr(grpc.aio, base),), {f"intercept_{of}": look})()
        for of, base in (
            ("unary_unary", "UnaryUnaryClientInterceptor"),
            ("unary_stream", "UnaryStreamClientInterceptor"),
            ("stream_unary", "StreamUnaryClientInterceptor"),
            ("stream_stream", "StreamStreamClientInterceptor"),
        )
    ]
    async with EchoServer("bad", failing(trailers=NOT_EXECUTED)) as bad, EchoServer("good") as good:
        channel = await two_ready(mesh, registry, bad, good, interceptors=interceptors)
        request.set("mine")
        for _ in range(4):
            await read(start(channel, kind))
        assert bad.seen
        assert set(found) == {"mine"}
        assert [e.pending for e in channel.bound().endpoints] == [0, 0]


# grpcio 1.82 raises it once more when the call is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_interceptor_that_raises_ends_the_call(mesh, registry):
    """Its exception reaches the user, and nothing stays pending."""

    class Raising(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            raise ValueError("intercepted")

    async def call_once(channel):
        call = channel.unary_unary(PLAIN)(b"")
        with pytest.raises(ValueError, match="intercepted"):
            await call
        assert call.done()
        with pytest.raises(ValueError, match="intercepted"):
            await call.code()

    # It also raises it into the loop, whose log would hold the call until after the test.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with EchoServer("one") as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo", interceptors=[Raising()])
        await channel.channel_ready()
        await call_once(channel)
        (endpoint,) = channel.bound().endpoints
        assert endpoint.pending == 0
        await channel.close()
        gc.collect()


async def test_an_interceptor_can_answer_by_itself(mesh, registry):
    """No instance is asked."""

    class Answering(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            return b"mine"

    async with EchoServer("one") as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo", interceptors=[Answering()])
        await channel.channel_ready()
        call = channel.unary_unary(PLAIN)(b"")
        assert await call == b"mine"
        assert call.done()
        assert one.seen == []


# Streams of requests.


async def test_no_message_is_lost_when_a_stream_is_refused_between_two(mesh, registry):
    """The refused attempt was waiting for the second message; the next attempt gets it."""

    async def messages():
        for message in (b"a", b"b", b"c"):
            yield message
            await asyncio.sleep(0.05)

    async with EchoServer("bad", failing(trailers=NOT_EXECUTED)) as bad, EchoServer("good") as good:
        channel = await two_ready(mesh, registry, bad, good)
        for _ in range(2):
            assert await channel.stream_unary(JOIN)(messages()) == b"abc"
            mirrored = channel.stream_stream(MIRROR)(messages())
            assert [message async for message in mirrored] == [b"a", b"b", b"c"]
        assert bad.seen


async def test_a_stream_that_was_cut_off_is_never_passed_off_as_a_whole(mesh, registry):
    """Closing the endpoint cancels the user's iterator: the call cannot be sent again."""
    more = asyncio.Event()

    async def messages():
        yield b"a"
        await more.wait()
        yield b"b"

    async with EchoServer("bad", hang) as bad, EchoServer("good") as good:
        channel, endpoint = await one_ready(mesh, registry, bad)
        policy(mesh, retry=Retry(non_idempotent=frozenset({"test.Echo/Join"})))
        call = channel.stream_unary(JOIN)(messages())
        await bad.calls(1)
        await asyncio.sleep(0.02)
        await registry.register(good.instance)
        await ready(channel, 2)
        await endpoint.close(0.0)
        more.set()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        assert raised.value.code() is UNAVAILABLE
        assert good.seen == []


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
async def test_a_stream_half_closed_by_its_user_is_not_sent_again_half_open(mesh, registry, kind):
    """After `done_writing` another attempt would wait for an end that never comes."""
    async with EchoServer("bad", failing(trailers=NOT_EXECUTED)) as bad, EchoServer("good") as good:
        channel = await two_ready(mesh, registry, bad, good)
        for _ in range(2):
            call = getattr(channel, kind)(JOIN if kind == "stream_unary" else MIRROR)()
            await call.done_writing()
            result = (await asyncio.gather(read(call), return_exceptions=True))[0]
            assert result in (b"", []) or result.code() is UNAVAILABLE


async def test_a_request_iterator_that_waits_for_ever_ends_with_its_call(mesh, registry):
    """grpcio would leave a task waiting for its next message."""
    closed = asyncio.Event()

    async def messages():
        try:
            yield b"a"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def answer(server, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "no")

    async with EchoServer("one", answer) as one:
        channel, _ = await one_ready(mesh, registry, one)
        with pytest.raises(grpc.aio.AioRpcError, match="no"):
            await channel.stream_unary(JOIN)(messages())
        await closed.wait()


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream", "writer"])
async def test_a_server_that_dies_under_a_writer_is_unavailable_and_counts_once(
    mesh, registry, kind
):
    """grpcio says INTERNAL here, or first one and then the other, and may call back twice."""

    async def endless():
        while True:
            yield b"x" * 1000

    for _ in range(5):
        async with EchoServer("one", hang) as one:
            channel, endpoint = await one_ready(mesh, registry, one)
            told = []
            if kind == "stream_unary":
                call = channel.stream_unary(JOIN)(endless())
            else:
                call = channel.stream_stream(MIRROR)(endless() if kind != "writer" else None)
            call.add_done_callback(told.append)

            async def write_on(call=call):
                while True:
                    await call.write(b"x" * 1000)

            reading = asyncio.create_task(write_on() if kind == "writer" else read(call))
            await one.calls(1)
            await one.server.stop(None)
            with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)) as raised:
                await reading
            if isinstance(raised.value, grpc.aio.AioRpcError):
                assert raised.value.code() is UNAVAILABLE
            assert await call.code() is UNAVAILABLE
            assert told == [call]
            assert endpoint.pending == 0
            await registry.deregister(one.instance)


# What is wrong before the call is made.


@every_kind
@pytest.mark.parametrize("is_ready", [True, False])
@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ((("Upper", "x"),), "'Upper'"),
        ((("k", 1),), "k: text"),
        ((("k-bin", "text"),), "k-bin: a -bin key"),
        ((("k", "ü"),), "k: printable"),
        ((("k", "line\n"),), "k: printable"),
        ({"a": "b"}, "not a mapping"),
        (("ab",), "pairs, not of 'ab'"),
        (((7, "v"),), "text, not int"),
    ],
)
async def test_metadata_that_grpc_cannot_carry_is_refused_at_once(
    mesh, registry, kind, is_ready, metadata, complaint
):
    """grpcio would find out later, and leave the call and every wait for it hanging."""
    async with EchoServer("one") as one:
        channel = mesh.channel("echo")
        if is_ready:
            channel, endpoint = await one_ready(mesh, registry, one)
        with pytest.raises((TypeError, ValueError), match=complaint):
            start(channel, kind, metadata=metadata)
        if is_ready:
            assert endpoint.pending == 0


async def test_metadata_that_grpc_can_carry_arrives(mesh, registry):
    """As pairs in any sequence, or as grpcio's own type."""
    async with EchoServer("one") as one:
        channel, _ = await one_ready(mesh, registry, one)
        for metadata in (
            [("a-1", "b c"), ["k-bin", b"\x00\xff"]],
            grpc.aio.Metadata(("a-1", "b c"), ("k-bin", b"\x00\xff")),
            iter((("a-1", "b c"), ("k-bin", b"\x00\xff"))),
        ):
            await channel.unary_unary(PLAIN)(b"", metadata=metadata)
            assert one.seen[-1]["a-1"] == "b c"
            assert one.seen[-1]["k-bin"] == b"\x00\xff"


@pytest.mark.parametrize("message", [None, "text", 5])
async def test_a_message_that_is_not_bytes_raises(mesh, registry, message):
    """grpcio's call would never end, or send nothing."""
    async with EchoServer("one") as one:
        channel, endpoint = await one_ready(mesh, registry, one)
        with pytest.raises(TypeError, match="sends bytes"):
            channel.unary_unary(PLAIN)(message)
        with pytest.raises(TypeError, match="sends bytes"):
            channel.unary_stream(COUNT_UP)(message)
        with pytest.raises(TypeError, match="sends bytes"):
            await channel.stream_unary(JOIN)(iter([message]))
        with pytest.raises(TypeError, match="sends bytes"):
            await read(channel.stream_stream(MIRROR)(iter([message])))
        assert endpoint.pending == 0


async def test_options_that_cannot_be_used_raise_and_leave_nothing(mesh, registry, ends):
    """A timeout, credentials or a compression of the wrong kind."""
    async with EchoServer("one") as one:
        channel, endpoint = await one_ready(mesh, registry, one)
        for error, options in (
            (TypeError, {"timeout": "5"}),
            (grpc.aio.UsageError, {"credentials": grpc.access_token_call_credentials("x")}),
            (KeyError, {"compression": "gzip"}),
        ):
            with pytest.raises(error):
                await channel.unary_unary(PLAIN)(b"", **options)
        assert endpoint.pending == 0


async def test_a_call_in_another_loop_or_in_none_is_told_so(mesh, registry):
    """Although the channel has been used before."""
    async with EchoServer("one") as one:
        channel, _ = await one_ready(mesh, registry, one)
        await channel.unary_unary(PLAIN)(b"")

        async def elsewhere():
            return await channel.unary_unary(PLAIN)(b"")

        with pytest.raises(grpc.aio.UsageError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())
        with pytest.raises(grpc.aio.UsageError, match="needs a running event loop"):
            await asyncio.to_thread(channel.unary_unary(PLAIN), b"")


# Who holds the call, and who is told.


@every_kind
async def test_a_done_callback_that_raises_harms_nobody(mesh, registry, kind):
    """The call, the other callbacks and the endpoint's count are as they would be without it."""
    problems = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: problems.append(context["message"])
    )
    told = []

    def broken(call):
        told.append("broken")
        raise RuntimeError("callback")

    async with EchoServer("one") as one:
        channel, endpoint = await one_ready(mesh, registry, one)
        call = start(channel, kind)
        call.add_done_callback(broken)
        call.add_done_callback(lambda _: told.append("other"))
        assert await read(call)
        assert await call.code() is OK
        assert told == ["broken", "other"]
        assert len([problem for problem in problems if "done callback" in problem]) == 1
        assert endpoint.pending == 0


async def test_a_done_callback_can_make_calls(mesh, registry):
    """Before and after completion."""
    async with EchoServer("one") as one:
        channel, _ = await one_ready(mesh, registry, one)
        stub = channel.unary_unary(PLAIN)
        made = []
        call = stub(b"1")
        call.add_done_callback(lambda _: made.append(stub(b"2")))
        assert await call == b"1@one"
        call.add_done_callback(lambda _: made.append(stub(b"3")))
        assert await asyncio.gather(*map(read, made)) == [b"2@one", b"3@one"]


async def test_several_tasks_can_await_one_call(mesh, registry):
    """Each gets the answer."""
    async with EchoServer("one") as one:
        channel, _ = await one_ready(mesh, registry, one)
        call = channel.unary_unary(PLAIN)(b"1")
        assert await asyncio.gather(*(read(call) for _ in range(5))) == [b"1@one"] * 5


async def test_a_second_reader_of_a_stream_is_told_so_and_harms_nobody(mesh, registry):
    """As in grpcio: a RuntimeError, and the first one gets every message."""
    async with EchoServer("one") as one:
        await registry.register(one.instance)
        call = mesh.channel("echo").unary_stream(COUNT_UP)(b"20")

        async def iterate():
            return [message async for message in call]

        async with asyncio.timeout(5):
            first, second = await asyncio.gather(iterate(), iterate(), return_exceptions=True)
        assert first == [b"%d" % number for number in range(20)]
        assert isinstance(second, RuntimeError)
        assert await call.code() is grpc.StatusCode.OK


async def test_a_unary_call_nobody_holds_runs_to_its_end(mesh, registry):
    """As in grpcio: it is executed, also when its first attempt fails."""
    async with EchoServer("bad", failing()) as bad, EchoServer("good") as good:
        channel = await two_ready(mesh, registry, bad, good)
        for _ in range(2):
            channel.unary_unary(IDEMPOTENT)(b"")
        gc.collect()
        await good.calls(2)
        await bad.calls(1)


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_stream_nobody_holds_is_cancelled_without_the_garbage_collector(
    mesh, registry, is_read
):
    """Dropped at once, or left in the middle of `async for`."""

    async def one_message(server, context):
        await context.write(b"0")
        await asyncio.Event().wait()

    gc.disable()
    try:
        async with EchoServer("one", one_message) as one:
            channel, endpoint = await one_ready(mesh, registry, one)
            stub = channel.unary_stream(COUNT_UP)
            if is_read:
                async for _ in stub(b"5"):
                    break
            else:
                call = stub(b"5")
                await one.calls(1)
                del call
            await one.cancelled.wait()
            assert endpoint.pending == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("has_failed", [False, True])
async def test_a_stream_that_waits_and_that_nobody_holds_is_not_waited_for(
    mesh, registry, has_failed
):
    """For its first endpoint, or for its next attempt: nothing is sent when there is one."""
    async with EchoServer("one", failing(trailers=(("grpc-retry-pushback-ms", "60000"),))) as one:
        channel = mesh.channel("echo")
        if has_failed:
            await registry.register(one.instance)
            await ready(channel, 1)
            policy(mesh, retry=Retry(non_idempotent=frozenset({COUNT_UP[1:]})))
        call = channel.unary_stream(COUNT_UP)(b"3", wait_for_ready=True)
        if call._attempt is not None:
            await call._attempt.over()
        await asyncio.sleep(0)  # the wait has begun
        waiting = call._next
        del call
        async with asyncio.timeout(5):
            await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert len(one.seen) == has_failed


async def test_a_stream_is_cancelled_from_whichever_thread_drops_it(mesh, registry):
    """A garbage collector runs in any thread."""
    async with EchoServer("one", hang) as one:
        channel, endpoint = await one_ready(mesh, registry, one)
        held = [channel.unary_stream(COUNT_UP)(b"5")]
        await one.calls(1)
        await asyncio.to_thread(held.clear)
        await one.cancelled.wait()
        assert endpoint.pending == 0


async def test_a_stream_with_a_done_callback_is_held(mesh, registry):
    """Somebody waits for it by callback."""
    release = asyncio.Event()

    async def wait(server, context):
        await release.wait()

    async with EchoServer("one", wait) as one:
        channel, _ = await one_ready(mesh, registry, one)
        told = asyncio.get_running_loop().create_future()
        channel.unary_stream(COUNT_UP)(b"0").add_done_callback(told.set_result)
        await one.calls(1)
        gc.collect()
        release.set()
        assert await (await told).code() is OK


async def test_a_call_that_is_over_is_freed_without_the_garbage_collector(mesh, registry):
    """Of any kind, answered, refused or cancelled."""
    async with EchoServer("one") as one:
        channel, _ = await one_ready(mesh, registry, one)
        gc.disable()
        try:
            for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
                for script in (None, failing()):
                    one.script = script
                    await asyncio.gather(read(start(channel, kind)), return_exceptions=True)
                start(channel, kind).cancel()
            async with asyncio.timeout(10):
                while any(call.done() for call in channel._calls):  # noqa: ASYNC110 - as grpc ends
                    await asyncio.sleep(0.001)
        finally:
            gc.enable()

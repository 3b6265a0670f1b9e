"""Streams with bounds: the policy's `stream: {idle, max}`, on the clock of the mesh."""

import asyncio
import gc
import time
import weakref
from pathlib import Path

import grpc
import pytest

import meshrpc
from meshrpc.client.call import StreamStreamCall, StreamUnaryCall, UnaryStreamCall, UnaryUnaryCall
from meshrpc.interceptors.server_call import CURRENT, ServerCall
from meshrpc.policy.model import Match, Outlier, Retry, Route, StreamBounds
from tests.echo import (
    COUNT_UP,
    JOIN,
    MIRROR,
    PLAIN,
    ROUND_ROBIN,
    UNAVAILABLE,
    EchoServer,
    hang,
    policy,
    ready,
)

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
GUIDE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
QUIET = [("grpc.keepalive_time_ms", 3_600_000)]
"""No pings: the clock of the connections is the real one, however slow the machine is."""
KINDS = ["unary_stream", "stream_unary", "stream_stream"]

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
async def timed(registry, virtual_clock):
    """A mesh on a clock that stands still until a test moves it."""
    async with meshrpc.Mesh(
        "shell", registry=registry, control="none", clock=virtual_clock
    ) as mesh:
        yield mesh


async def connect(mesh, registry, *servers, **options):
    for server in servers:
        await registry.register(server.instance)
    channel = mesh.channel("echo", options=QUIET, **options)
    await ready(channel, len(servers))
    return channel


def start(channel, kind, **options):
    if kind == "unary_stream":
        return channel.unary_stream(COUNT_UP)(b"3", **options)
    method = channel.stream_unary(JOIN) if kind == "stream_unary" else channel.stream_stream(MIRROR)
    return method(iter([b"x"]), **options)


async def read(call):
    """Read a call to its end."""
    if hasattr(call, "__await__"):
        return await call
    return [message async for message in call]


async def under_way(call, server, count=1):
    """Read a call in a task, and wait until it has arrived."""
    reading = asyncio.create_task(read(call))
    await server.calls(count)
    return reading


async def how(reading):
    """Return the status that a task was told."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async with asyncio.timeout(10):
            await reading
    return raised.value.code(), raised.value.details()


async def soon(awaitable):
    async with asyncio.timeout(10):
        return await awaitable


def said(name, seconds):
    """What the guide says that the user is told, with another service and so many seconds."""
    told = {part for part in GUIDE.split("`") if part.endswith("for 'payment')")}
    (words,) = {part for part in told if name in part}
    before, _, after = words.partition(f"{name}: ")
    return f"{before}{name}: {seconds:g} {after.partition(' ')[2]}".replace("payment", "echo")


async def ticking(server, context):
    """Send a message for each one that the test puts into `server.ticks`: a script."""
    server.ticks = asyncio.Queue()
    while True:
        await context.write(await server.ticks.get())


# Idle.


@every_kind
async def test_a_stream_on_which_nothing_passes_ends(timed, registry, virtual_clock, kind):
    """Not before its time; its server learns of it, and nothing says that the instance is bad."""
    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(idle=60.0))
        call = start(channel, kind)
        told = []
        call.add_done_callback(told.append)
        reading = await under_way(call, one)
        await virtual_clock.advance(59.9)
        assert not call.done()
        await virtual_clock.advance(0.2)
        assert call.done()
        assert told == [call]
        assert await how(reading) == (UNAVAILABLE, said("stream.idle", 60))
        assert (await call.code(), call.cancelled()) == (UNAVAILABLE, False)
        await soon(one.cancelled.wait())
        destination = channel.bound()
        (endpoint,) = destination.endpoints
        assert endpoint.pending == 0
        assert (endpoint.health.consecutive, destination.control.in_flight) == (0, 0)
        assert endpoint.health.window.counts(virtual_clock.now()) == (0, 0)
        assert "Window 0 of 0" in repr(destination.control)


async def test_messages_that_are_read_keep_a_stream_alive(timed, registry, virtual_clock):
    """However long it lasts in all: each of them begins the wait anew."""
    async with EchoServer("one", ticking) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(idle=60.0))
        call = start(channel, "unary_stream")
        for _ in range(5):
            reading = asyncio.create_task(call.read())
            await one.calls(1)
            await virtual_clock.advance(50)
            one.ticks.put_nowait(b"tick")
            assert await soon(reading) == b"tick"
        reading = asyncio.create_task(call.read())
        await virtual_clock.advance(60)
        assert (await how(reading))[0] is UNAVAILABLE
        assert await call.initial_metadata() is not None


async def test_messages_that_are_written_keep_a_stream_alive(timed, registry, virtual_clock):
    """Although none comes back."""
    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(idle=60.0))
        both, only_there = channel.stream_stream(MIRROR)(), channel.stream_unary(JOIN)()
        reading = await under_way(both, one, 2)
        for _ in range(5):
            await both.write(b"x")
            await only_there.write(b"x")
            await virtual_clock.advance(50)
        assert not both.done()
        assert not only_there.done()
        await virtual_clock.advance(10)
        assert both.done()
        assert only_there.done()
        assert (await how(reading))[0] is UNAVAILABLE


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
async def test_messages_of_an_iterator_keep_a_stream_alive(timed, registry, virtual_clock, kind):
    """They count when they are taken from it."""
    more = asyncio.Queue()

    async def messages():
        while True:
            yield await more.get()
            more.task_done()  # grpc has sent it, and asks for the next one

    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(idle=60.0))
        call = getattr(channel, kind)(JOIN if kind == "stream_unary" else MIRROR)(messages())
        reading = await under_way(call, one)
        for _ in range(5):
            await virtual_clock.advance(50)
            more.put_nowait(b"x")
            await soon(more.join())
        await virtual_clock.advance(59)
        assert not call.done()
        await virtual_clock.advance(1)
        assert (await how(reading))[0] is UNAVAILABLE


async def test_a_message_counts_when_it_is_through(timed, registry, virtual_clock, monkeypatch):
    """Not when it was written to a connection that took nothing for a while."""
    go_on = asyncio.Event()
    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(idle=60.0))
        call = channel.stream_unary(JOIN)()
        await one.calls(1)
        write = call._attempt.inner.write

        async def write_late(message):
            await go_on.wait()
            await write(message)

        monkeypatch.setattr(call._attempt.inner, "write", write_late)
        writing = asyncio.create_task(call.write(b"x"))
        await virtual_clock.advance(50)
        assert not writing.done()
        go_on.set()
        await soon(writing)
        await virtual_clock.advance(59)
        assert not call.done()
        await virtual_clock.advance(1)
        assert call.done()


async def test_a_stream_that_nobody_reads_just_now_is_not_idle(timed, registry, virtual_clock):
    """A message may have come; the time counts anew once it is asked for one."""
    async with EchoServer("one", ticking) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(idle=60.0))
        call = start(channel, "unary_stream")
        await one.calls(1)
        await virtual_clock.advance(3600)
        one.ticks.put_nowait(b"tick")
        assert await soon(call.read()) == b"tick"
        await virtual_clock.advance(3600)
        reading = asyncio.create_task(call.read())
        await virtual_clock.advance(59)
        assert not call.done()
        await virtual_clock.advance(1)
        assert await how(reading) == (UNAVAILABLE, said("stream.idle", 60))


async def test_who_sends_nothing_is_idle_where_there_is_one_answer(timed, registry, virtual_clock):
    """Whether it waits for the answer or not: nothing can have come that it has not seen."""
    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(idle=60.0))
        call = channel.stream_unary(JOIN)()
        await call.write(b"x")
        await virtual_clock.advance(60)
        assert call.done()
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(b"x")
        assert (await how(call))[0] is UNAVAILABLE


async def test_what_is_no_message_keeps_no_stream_alive(
    timed, registry, virtual_clock, monkeypatch
):
    """Neither to wait for the connection, nor for the answer, nor with a message for a way out."""

    async def stuck(message):
        await asyncio.Event().wait()

    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(idle=60.0))
        only_there, both = channel.stream_unary(JOIN)(), channel.stream_stream(MIRROR)()
        told = [await under_way(both, one, 2)]
        await virtual_clock.advance(50)
        await soon(only_there.wait_for_connection())
        await soon(both.wait_for_connection())
        monkeypatch.setattr(both._attempt.inner, "write", stuck)
        told.append(asyncio.create_task(both.write(b"x")))
        told.append(asyncio.create_task(read(only_there)))
        await virtual_clock.advance(10)
        assert only_there.done()
        assert both.done()
        told[1].cancel()  # nothing wakes what this test has put there
        for reading in told[::2]:
            assert (await how(reading))[0] is UNAVAILABLE


async def test_who_reads_is_told_although_who_writes_is_cancelled(timed, registry, virtual_clock):
    """When a stream has ended, it is the wait that a task is cancelled in, and not the call."""
    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(idle=60.0))
        call = channel.stream_stream(MIRROR)()
        reading = await under_way(call, one)
        waiting = asyncio.create_task(call._follow(lambda _: asyncio.Event().wait()))
        call.add_done_callback(lambda _: waiting.cancel())
        await virtual_clock.advance(60)
        assert (await how(reading))[0] is UNAVAILABLE
        assert waiting.cancelled()


async def test_idle_ends_in_no_other_attempt(timed, registry, virtual_clock):
    """Not even of a method that may be repeated for this very code."""
    async with EchoServer("one", hang) as one, EchoServer("two", hang) as two:
        channel = await connect(timed, registry, one, two)
        repeat = Retry(non_idempotent=frozenset({"test.Echo/CountUp"}))
        policy(timed, stream=StreamBounds(idle=60.0), retry=repeat)
        call = start(channel, "unary_stream")
        reading = asyncio.create_task(read(call))
        await virtual_clock.advance(60)
        assert (await how(reading))[0] is UNAVAILABLE
        assert len(one.seen) + len(two.seen) <= 1


async def test_each_attempt_has_its_own_time_to_be_idle(timed, registry, virtual_clock):
    """What the first one took is not held against the second; nor is the wait between them."""
    go_on = asyncio.Event()

    async def refuse(server, context):
        await go_on.wait()
        trailers = (("mesh-not-executed", "1"), ("grpc-retry-pushback-ms", "90000"))
        await context.abort(UNAVAILABLE, "no", trailers)

    async with EchoServer("bad", refuse) as bad, EchoServer("good", hang) as good:
        channel = await connect(timed, registry, bad)
        policy(timed, stream=StreamBounds(idle=60.0))
        call = start(channel, "unary_stream")
        reading = await under_way(call, bad)
        await virtual_clock.advance(50)
        go_on.set()
        async with asyncio.timeout(10):
            while call._next is None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.001)
        await registry.register(good.instance)
        await ready(channel, 2)
        await virtual_clock.advance(100)
        await good.calls(1)
        assert not call.done()
        await virtual_clock.advance(60)
        assert (await how(reading))[0] is UNAVAILABLE


async def test_waiting_for_an_instance_is_not_idle(timed, virtual_clock):
    """There is nobody with whom to exchange a message."""
    channel = timed.channel("echo")
    policy(timed, stream=StreamBounds(idle=60.0))
    call = start(channel, "unary_stream", wait_for_ready=True)
    reading = asyncio.create_task(read(call))
    await virtual_clock.advance(3600)
    assert not call.done()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_the_real_clock_ends_an_idle_stream_as_well(mesh, registry):
    """By a timer of the event loop, and that one is gone afterwards."""
    async with EchoServer("one", hang) as one:
        channel = await connect(mesh, registry, one)
        policy(mesh, stream=StreamBounds(idle=0.02))
        for kind in KINDS:
            call = start(channel, kind)
            assert await how(read(call)) == (UNAVAILABLE, said("stream.idle", 0.02))
            assert "resting" in repr(call._idle)


async def test_a_stream_that_ended_leaves_no_timer(mesh, registry):
    """Whether it was read to its end or cancelled."""
    async with EchoServer("one") as one:
        channel = await connect(mesh, registry, one)
        policy(mesh, stream=StreamBounds(idle=60.0))
        for kind in KINDS:
            call = start(channel, kind)
            timer = call._idle._timer
            assert "idle for" in repr(call._idle)
            await soon(read(call))
            assert timer.cancelled()
            call = start(channel, kind)
            timer = call._idle._timer
            call.cancel()
            assert timer.cancelled()


@pytest.mark.parametrize("is_virtual", [False, True])
async def test_a_forgotten_stream_goes_with_its_timer(mesh, timed, registry, is_virtual):
    """No garbage collector, no read and no iterator is needed for it, and nothing is held."""

    async def endless():
        yield b"x"
        await asyncio.Event().wait()

    mesh = timed if is_virtual else mesh
    gc.disable()
    try:
        async with EchoServer("one", hang) as one:
            channel = await connect(mesh, registry, one)
            policy(mesh, stream=StreamBounds(idle=60.0, max=3600.0))
            (endpoint,) = channel.bound().endpoints
            for number, kind in enumerate(("unary_stream", "stream_stream", "stream_stream")):
                one.cancelled.clear()
                if number == 2:
                    call = channel.stream_stream(MIRROR)(endless())
                else:
                    call = start(channel, kind)
                await one.calls(number + 1)
                timer, idle = call._idle._timer, weakref.ref(call._idle)
                del call
                await soon(one.cancelled.wait())
                assert idle() is None
                assert timer.cancelled()
                assert endpoint.pending == 0
    finally:
        gc.enable()


# The longest life.


@every_kind
async def test_a_stream_lasts_as_long_as_it_may_and_no_longer(timed, registry, virtual_clock, kind):
    """Its server knows its end from the start; nothing says that the instance is bad."""
    left = []

    async def ask(server, context):
        left.append(context.time_remaining())
        await hang(server, context)

    async with EchoServer("one", ask) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(max=600.0))
        call = start(channel, kind)
        reading = await under_way(call, one)
        assert 0 < left[0] < 601
        assert call.time_remaining() == 600
        await virtual_clock.advance(599.9)
        assert not call.done()
        await virtual_clock.advance(0.2)
        status = await how(reading)
        assert status == (DEADLINE_EXCEEDED, said("stream.max", 600))
        assert (await call.code(), await call.details()) == status
        destination = channel.bound()
        (endpoint,) = destination.endpoints
        assert (endpoint.pending, destination.control.in_flight) == (0, 0)
        assert endpoint.health.window.counts(virtual_clock.now()) == (0, 0)
        assert "Window 0 of 0" in repr(destination.control)


@every_kind
async def test_grpcs_own_deadline_has_the_name_of_the_bound(mesh, registry, kind):
    """On the real clock, where grpc is the one that ends the stream."""
    async with EchoServer("one", hang) as one:
        channel = await connect(mesh, registry, one)
        policy(mesh, stream=StreamBounds(idle=60.0, max=0.05))
        (endpoint,) = channel.bound().endpoints
        code, details = await how(read(start(channel, kind)))
        assert code is DEADLINE_EXCEEDED
        assert details.endswith(said("stream.max", 0.05).removeprefix("Deadline Exceeded"))
        assert (endpoint.pending, endpoint.health.consecutive) == (0, 0)


async def test_a_stream_that_ends_while_it_sends_names_the_bound(mesh, registry):
    """Also where grpcio only notices that it can write no more."""

    async def messages():
        yield b"x" * 70_000
        time.sleep(0.2)  # noqa: ASYNC251 - the deadline passes, and nobody sees it pass

    async with EchoServer("one", hang) as one:
        channel = await connect(mesh, registry, one)
        policy(mesh, stream=StreamBounds(max=0.1))
        code, details = await how(channel.stream_unary(JOIN)(messages()))
        assert code is DEADLINE_EXCEEDED
        assert details.endswith(said("stream.max", 0.1).removeprefix("Deadline Exceeded"))


async def test_streams_that_reach_their_end_together_eject_nobody(timed, registry, virtual_clock):
    """Where as many calls that time out would."""
    async with EchoServer("one", hang) as one, EchoServer("two", hang) as two:
        channel = await connect(timed, registry, one, two)
        bounds = StreamBounds(max=60.0)
        policy(timed, stream=bounds, balancer=ROUND_ROBIN, outlier=Outlier(consecutive_failures=2))
        streams = [start(channel, "unary_stream") for _ in range(8)]
        await one.calls(4)
        await two.calls(4)
        await virtual_clock.advance(60)
        assert [await stream.code() for stream in streams] == [DEADLINE_EXCEEDED] * 8
        states = [endpoint.health.admission.value for endpoint in channel.bound().endpoints]
        assert states == ["admitted"] * 2
        calls = [channel.unary_unary(PLAIN)(b"", timeout=60) for _ in range(8)]
        await one.calls(8)
        await two.calls(8)
        await virtual_clock.advance(60)
        assert [await call.code() for call in calls] == [DEADLINE_EXCEEDED] * 8
        states = [endpoint.health.admission.value for endpoint in channel.bound().endpoints]
        assert sorted(states) == ["admitted", "ejected"]


@pytest.mark.parametrize("details", ["the database took too long", "Deadline Exceeded"])
async def test_a_deadline_that_a_handler_reports_is_its_own(timed, registry, details):
    """It is a failure as ever, and does not bear the name of a bound that was not reached.

    Not even where the handler passes on what a call of its own ended with.
    """

    async def report(server, context):
        await context.abort(DEADLINE_EXCEEDED, details)

    async with EchoServer("one", report) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(max=60.0))
        call = start(channel, "unary_stream")
        assert await how(read(call)) == (DEADLINE_EXCEEDED, details)
        (endpoint,) = channel.bound().endpoints
        assert endpoint.health.consecutive == 1


@pytest.mark.parametrize("asked", [10.0, 900.0])
async def test_a_timeout_of_the_caller_wins(timed, registry, virtual_clock, asked):
    """Shorter or longer; the text does not name a bound that did not hold, and idle holds on."""
    async with EchoServer("one", ticking) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(idle=850.0, max=60.0))
        call = start(channel, "unary_stream", timeout=asked)
        reading = await under_way(call, one)
        await virtual_clock.advance(min(asked, 850.0) - 1)
        assert not call.done()
        await virtual_clock.advance(1)
        status = (DEADLINE_EXCEEDED, "Deadline Exceeded")
        assert await how(reading) == (
            status if asked < 850 else (UNAVAILABLE, said("stream.idle", 850))
        )


@pytest.mark.parametrize("left", [10.0, 900.0])
async def test_the_remaining_time_of_the_handler_caps_a_stream(
    timed, registry, virtual_clock, left
):
    """The smaller of both ends it, and the text says which it was."""
    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(max=60.0))

        async def handler():
            CURRENT.set(ServerCall("/test.Echo/Outer", timeout=left, clock=virtual_clock))
            return start(channel, "unary_stream")

        call = await asyncio.create_task(handler())
        assert call.time_remaining() == min(left, 60.0)
        reading = await under_way(call, one)
        await virtual_clock.advance(min(left, 60.0))
        details = "Deadline Exceeded" if left < 60 else said("stream.max", 60)
        assert await how(reading) == (DEADLINE_EXCEEDED, details)


async def test_the_wait_for_an_instance_is_part_of_a_streams_life(timed, virtual_clock):
    """What ended it is told, and that there was nobody."""
    channel = timed.channel("echo")
    policy(timed, stream=StreamBounds(max=60.0))
    reading = asyncio.create_task(read(start(channel, "unary_stream", wait_for_ready=True)))
    await virtual_clock.advance(60)
    code, details = await how(reading)
    assert code is DEADLINE_EXCEEDED
    assert details.startswith("deadline passed while waiting for service 'echo': no instance")
    assert details.endswith("(stream.max: 60 s, by the policy for 'echo')")


# What both have in common.


@every_kind
@pytest.mark.parametrize("bound", ["idle", "max"])
async def test_bounds_hold_beneath_interceptors(timed, registry, virtual_clock, kind, bound):
    """The call is made by grpcio's interceptors then, and ends as one without."""
    seen = []

    async def intercept(self, continuation, details, request):
        seen.append(details.timeout)
        return await continuation(details, request)

    name = "".join(word.title() for word in kind.split("_"))
    base = getattr(grpc.aio, f"{name}ClientInterceptor")
    interceptor = type("Passing", (base,), {f"intercept_{kind}": intercept})()
    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one, interceptors=[interceptor])
        policy(timed, stream=StreamBounds(**{bound: 60.0}))
        reading = await under_way(start(channel, kind), one)
        await virtual_clock.advance(60)
        code = UNAVAILABLE if bound == "idle" else DEADLINE_EXCEEDED
        assert await how(reading) == (code, said(f"stream.{bound}", 60))
        assert seen == [None if bound == "idle" else 60.0]
        (endpoint,) = channel.bound().endpoints
        async with asyncio.timeout(10):
            while endpoint.pending:  # noqa: ASYNC110 - interceptors take their time
                await asyncio.sleep(0.001)
        assert endpoint.health.consecutive == 0


@every_kind
async def test_a_stream_that_was_cancelled_is_not_idle(timed, registry, virtual_clock, kind):
    """It ends as its user said, however long an interceptor takes for it."""
    entered, let_go = asyncio.Event(), asyncio.Event()

    async def intercept(self, continuation, details, request):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await let_go.wait()

    name = "".join(word.title() for word in kind.split("_"))
    base = getattr(grpc.aio, f"{name}ClientInterceptor")
    interceptor = type("Slow", (base,), {f"intercept_{kind}": intercept})()
    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one, interceptors=[interceptor])
        policy(timed, stream=StreamBounds(idle=60.0))
        call = start(channel, kind)
        reading = asyncio.create_task(read(call))
        await soon(entered.wait())
        call.cancel()
        await virtual_clock.advance(60)
        let_go.set()
        assert await soon(call.code()) is grpc.StatusCode.CANCELLED
        with pytest.raises(asyncio.CancelledError):
            await soon(reading)


@pytest.mark.parametrize("bound", ["idle", "max"])
async def test_the_span_ends_once_with_the_status_of_the_stream(
    timed, registry, virtual_clock, bound, monkeypatch
):
    """With the code and the words that its user sees."""
    ends = []
    monkeypatch.setattr(
        "meshrpc.telemetry.tracing.end_client_span", lambda span, *status: ends.append(status)
    )
    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(**{bound: 60.0}))
        reading = await under_way(start(channel, "unary_stream"), one)
        await virtual_clock.advance(60)
        code, details = await how(reading)
        assert ends == [(code, "one", details)]


async def test_a_route_has_bounds_of_its_own_and_a_call_keeps_those_it_began_with(
    timed, registry, virtual_clock
):
    """Another policy is for the next call."""
    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one)
        own = Route("own", Match(method="test.Echo/CountUp"), stream=StreamBounds(idle=10.0))
        policy(timed, stream=StreamBounds(idle=60.0), routes=(own,))
        quick, slow = start(channel, "unary_stream"), start(channel, "stream_unary")
        reading = await under_way(quick, one, 2)
        policy(timed)
        free = start(channel, "unary_stream")
        await under_way(free, one, 3)
        await virtual_clock.advance(10)
        assert (await how(reading))[1] == said("stream.idle", 10)
        assert not slow.done()
        await virtual_clock.advance(50)
        assert slow.done()
        await virtual_clock.advance(3600)
        assert not free.done()
        free.cancel()


async def test_a_stream_with_bounds_that_are_not_reached_is_as_any_other(mesh, registry):
    """Its messages, its status, and how it ends when it is cancelled."""
    async with EchoServer("one") as one:
        channel = await connect(mesh, registry, one)
        policy(mesh, stream=StreamBounds(idle=60.0, max=3600.0))
        assert await soon(read(start(channel, "unary_stream"))) == [b"0", b"1", b"2"]
        assert await soon(start(channel, "stream_unary")) == b"x"
        assert await soon(read(start(channel, "stream_stream"))) == [b"x"]
        call = channel.stream_stream(MIRROR)()
        await call.write(b"y")
        assert await soon(call.read()) == b"y"
        await call.done_writing()
        assert await soon(call.read()) is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        call = channel.stream_stream(MIRROR)()
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED


async def test_calls_without_bounds_are_made_as_before(mesh, registry):
    """Nothing of it is there: not for a policy without the block, and never for unary calls."""
    async with EchoServer("one") as one:
        channel = await connect(mesh, registry, one)
        plain = (UnaryStreamCall, StreamUnaryCall, StreamStreamCall)
        for bounds in (None, StreamBounds()):
            policy(mesh, stream=bounds)
            for kind, made in zip(KINDS, plain, strict=True):
                call = start(channel, kind)
                assert type(call) is made
                assert call.time_remaining() is None
                await soon(read(call))
        policy(mesh, stream=StreamBounds(idle=60.0, max=3600.0))
        call = channel.unary_unary(PLAIN)(b"")
        assert type(call) is UnaryUnaryCall
        assert call.time_remaining() is None
        assert await soon(call) == b"@one"


async def test_a_life_of_more_than_a_day_is_as_long_as_it_says(timed, registry, virtual_clock):
    """Up to a year, which is the longest that a policy can say."""
    async with EchoServer("one", hang) as one:
        channel = await connect(timed, registry, one)
        policy(timed, stream=StreamBounds(max=8760 * 3600.0))
        call = start(channel, "unary_stream")
        assert call.time_remaining() == 8760 * 3600.0
        await one.calls(1)
        await virtual_clock.advance(48 * 3600.0)
        assert not call.done()
        call.cancel()

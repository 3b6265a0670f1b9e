"""The mesh's server interceptors alone on a bare `grpc.aio.server`, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from meshrpc.interceptors import SERVER_ORDER, in_order
from meshrpc.interceptors.arrival import DeadlineInterceptor, TargetInterceptor
from meshrpc.interceptors.compose import Refused, ServerInterceptor, compose
from meshrpc.interceptors.concurrency import ConcurrencyInterceptor
from meshrpc.interceptors.load_report import LoadReportInterceptor
from meshrpc.interceptors.rate_limit import RateLimitInterceptor
from meshrpc.interceptors.server_call import CURRENT, ServerCall, current_call
from meshrpc.interceptors.tracing import TracingInterceptor
from meshrpc.policy.model import LimitMode, RateLimit
from meshrpc.wire import NOT_EXECUTED, RETRY_AFTER, RETRY_PUSHBACK, WRONG_TARGET

OK, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.CANCELLED


class Recorder(ServerInterceptor):
    """Notes what its hooks see."""

    def __init__(self, name: str = "", log: list[str] | None = None) -> None:
        super().__init__()
        self.name = name
        self.log = [] if log is None else log
        self.began: list[ServerCall] = []
        self.ended: list[grpc.StatusCode] = []
        self.has_ended = asyncio.Event()

    def begin(self, call: ServerCall) -> None:
        self.log.append(f"begin {self.name}")
        self.began.append(call)

    def end(self, call: ServerCall, code: grpc.StatusCode) -> None:
        assert call is self.began[-1]
        self.log.append(f"end {self.name}")
        self.ended.append(code)
        self.has_ended.set()


class Gate(ServerInterceptor):
    """Refuses everything."""

    def begin(self, call: ServerCall) -> None:
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, "closed", (("why", "gate"),))


async def unary(request: bytes, context: Any) -> bytes:
    return request + b"!"


def plain_unary(request: bytes, context: Any) -> bytes:
    call = current_call()
    return (call.caller if call else "nobody").encode()


async def generate(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for part in (b"a", b"b"):
        yield request + part


async def write(request: bytes, context: Any) -> None:
    for part in (b"a", b"b"):
        await context.write(request + part)


def plain_generate(request: bytes, context: Any) -> Any:
    for part in (b"a", b"b"):
        yield request + part


async def collect(requests: Any, context: Any) -> bytes:
    return b"".join([request async for request in requests])


async def echo(requests: Any, context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def echo_by_hand(_requests: Any, context: Any) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request)


class AsyncObject:
    async def __call__(self, request: bytes, context: Any) -> bytes:
        return request + b"?"


HANDLERS = {
    "unary": grpc.unary_unary_rpc_method_handler(unary),
    "plain_unary": grpc.unary_unary_rpc_method_handler(plain_unary),
    "object": grpc.unary_unary_rpc_method_handler(AsyncObject()),
    "generate": grpc.unary_stream_rpc_method_handler(generate),
    "write": grpc.unary_stream_rpc_method_handler(write),
    "plain_generate": grpc.unary_stream_rpc_method_handler(plain_generate),
    "collect": grpc.stream_unary_rpc_method_handler(collect),
    "echo": grpc.stream_stream_rpc_method_handler(echo),
    "echo_by_hand": grpc.stream_stream_rpc_method_handler(echo_by_hand),
}


@asynccontextmanager
async def serving(
    *interceptors: grpc.aio.ServerInterceptor, **handlers: grpc.RpcMethodHandler[Any, Any]
) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=interceptors)
    table = grpc.method_handlers_generic_handler("t.T", {**HANDLERS, **handlers})
    server.add_generic_rpc_handlers((table,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


async def call(channel: grpc.aio.Channel, name: str, **options: Any) -> list[bytes]:
    """Call a method of any arity with b"x" (twice where it takes a stream)."""
    handler, path = HANDLERS[name], f"/t.T/{name}"
    request: Any = [b"x", b"y"] if handler.request_streaming else b"x"
    if handler.response_streaming:
        make = channel.stream_stream if handler.request_streaming else channel.unary_stream
        return [response async for response in make(path)(request, **options)]
    make = channel.stream_unary if handler.request_streaming else channel.unary_unary
    return [await make(path)(request, **options)]


ANSWERS = {
    "unary": [b"x!"],
    "plain_unary": [b"unknown"],
    "object": [b"x?"],
    "generate": [b"xa", b"xb"],
    "write": [b"xa", b"xb"],
    "plain_generate": [b"xa", b"xb"],
    "collect": [b"xy"],
    "echo": [b"x", b"y"],
    "echo_by_hand": [b"x", b"y"],
}


@pytest.mark.parametrize("name", HANDLERS)
async def test_a_concern_sees_each_shape_of_handler_begin_and_end(name: str):
    """Every arity and shape answers as before, with one begin and one end OK."""
    recorder = Recorder()
    async with serving(recorder) as channel:
        assert await call(channel, name) == ANSWERS[name]
        assert await call(channel, name) == ANSWERS[name]
    assert [seen.method for seen in recorder.began] == [f"/t.T/{name}"] * 2
    assert recorder.ended == [OK, OK]


@pytest.mark.parametrize("name", HANDLERS)
async def test_a_refusal_answers_for_each_shape_of_handler(name: str):
    """A refused call gets the status, text and trailers, and those begun before it end so."""
    outer, inner = Recorder(), Recorder()
    handler, path = HANDLERS[name], f"/t.T/{name}"
    async with serving(outer, Gate(), inner) as channel:
        running: Any
        if handler.request_streaming:  # nothing is written: grpcio's client fails when it is late
            make = channel.stream_stream if handler.response_streaming else channel.stream_unary
            running = make(path)()
        else:
            make = channel.unary_stream if handler.response_streaming else channel.unary_unary
            running = make(path)(b"x")
        assert await running.code() is grpc.StatusCode.PERMISSION_DENIED
        assert await running.details() == "closed"
        assert ("why", "gate") in tuple(await running.trailing_metadata())
    # The status goes out before those that began are told of the end.
    await asyncio.wait_for(outer.has_ended.wait(), 5)
    assert outer.ended == [grpc.StatusCode.PERMISSION_DENIED]
    assert inner.began == []


async def aborts(request: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
    raise AssertionError


async def sets_code(request: bytes, context: Any) -> bytes:
    context.set_code(grpc.StatusCode.ALREADY_EXISTS)
    return b""


async def raises(request: bytes, context: Any) -> bytes:
    raise ValueError("secret")


async def aborts_midway(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"a"
    await context.abort(grpc.StatusCode.ABORTED, "midway")


async def raises_midway(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"a"
    raise ValueError("secret")


@pytest.mark.parametrize(
    ("handler", "code"),
    [
        (grpc.unary_unary_rpc_method_handler(aborts), grpc.StatusCode.NOT_FOUND),
        (grpc.unary_unary_rpc_method_handler(sets_code), grpc.StatusCode.ALREADY_EXISTS),
        (grpc.unary_unary_rpc_method_handler(raises), grpc.StatusCode.UNKNOWN),
        (grpc.unary_stream_rpc_method_handler(aborts_midway), grpc.StatusCode.ABORTED),
        (grpc.unary_stream_rpc_method_handler(raises_midway), grpc.StatusCode.UNKNOWN),
    ],
)
async def test_a_concern_is_told_the_status_the_client_gets(
    handler: grpc.RpcMethodHandler[Any, Any], code: grpc.StatusCode
):
    """`end` gets the code that went to the client, for every way of failing."""
    recorder = Recorder()
    async with serving(recorder, it=handler) as channel:
        make = channel.unary_stream if handler.response_streaming else channel.unary_unary
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            if handler.response_streaming:
                [response async for response in make("/t.T/it")(b"")]
            else:
                await make("/t.T/it")(b"")
        async with asyncio.timeout(10):
            await recorder.has_ended.wait()
    assert failure.value.code() is code
    assert recorder.ended == [code]


async def test_a_unary_call_cancelled_by_its_client_ends_cancelled():
    """The end comes when the client goes away, not when the handler would have finished."""
    recorder, started = Recorder(), asyncio.Event()

    async def forever(request: bytes, context: Any) -> bytes:
        started.set()
        await asyncio.Event().wait()
        return b""

    async with (
        serving(recorder, it=grpc.unary_unary_rpc_method_handler(forever)) as channel,
        asyncio.timeout(5),
    ):
        running = channel.unary_unary("/t.T/it")(b"")
        await started.wait()
        running.cancel()
        await recorder.has_ended.wait()
    assert recorder.ended == [CANCELLED]


async def forever_generated(request: bytes, context: Any) -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 100_000


async def forever_written(request: bytes, context: Any) -> None:
    while True:
        await context.write(b"x" * 100_000)


@pytest.mark.parametrize("behavior", [forever_generated, forever_written])
async def test_a_stream_cancelled_in_mid_write_ends_cancelled_once(behavior: Callable[..., Any]):
    """A client that leaves while messages are on their way ends the call, once and at once."""
    recorder = Recorder()
    handler = grpc.unary_stream_rpc_method_handler(behavior)
    async with serving(recorder, it=handler) as channel, asyncio.timeout(5):
        running = channel.unary_stream("/t.T/it")(b"")
        await running.read()
        running.cancel()
        await recorder.has_ended.wait()
    assert recorder.ended == [CANCELLED]


async def test_a_write_that_fails_before_the_cancellation_comes_ends_cancelled():
    """grpcio learns first that it cannot write, and only then why: the client has gone."""
    recorder = Recorder()

    async def fails(message: bytes) -> None:
        raise grpc.aio.InternalError("execute_batch")

    context = SimpleNamespace(
        write=fails, invocation_metadata=tuple, time_remaining=lambda: None, code=lambda: None
    )
    handler = grpc.unary_stream_rpc_method_handler(forever_written)
    composed = compose("/t.T/it", handler, (recorder,)).unary_stream
    assert composed is not None
    with pytest.raises(grpc.aio.InternalError):
        await composed(b"", context)
    assert recorder.ended == [CANCELLED]


async def test_a_composed_handler_runs_its_concerns_in_order_and_keeps_its_shape():
    """First one outermost: begins come in order, ends in reverse."""
    log: list[str] = []
    handler = grpc.unary_stream_rpc_method_handler(generate)
    concerns = (Recorder("a", log), Recorder("b", log))
    composed = compose("/t.T/it", handler, concerns)
    async with serving(it=composed) as channel:
        assert [m async for m in channel.unary_stream("/t.T/it")(b"x")] == [b"xa", b"xb"]
    assert log == ["begin a", "begin b", "end b", "end a"]
    assert composed.unary_stream is not None
    assert composed.response_streaming
    assert not composed.request_streaming


async def test_a_concern_alone_wraps_each_method_once():
    """The wrapped handler is made at the first call and used for all others."""
    recorder = Recorder()
    async with serving(recorder) as channel:
        for _ in range(5):
            await call(channel, "unary")
        assert list(recorder._composed) == ["/t.T/unary"]
        first = recorder._composed["/t.T/unary"]
        await call(channel, "unary")
        assert recorder._composed["/t.T/unary"] is first


async def test_a_concern_that_breaks_at_the_beginning_still_answers(caplog):
    """The client gets INTERNAL without a word of the cause; the log has it."""

    class Broken(ServerInterceptor):
        def begin(self, call: ServerCall) -> None:
            raise KeyError("secret")

    outer = Recorder()
    async with serving(outer, Broken()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call(channel, "unary")
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(failure.value.details())
    assert outer.ended == [grpc.StatusCode.INTERNAL]
    assert "secret" in caplog.text


async def test_a_concern_that_breaks_at_the_end_changes_nothing(caplog):
    """The call's answer stands, and the other concerns still end."""

    class Broken(ServerInterceptor):
        def end(self, call: ServerCall, code: grpc.StatusCode) -> None:
            raise KeyError("oops")

    outer = Recorder()
    handler = compose("/t.T/it", HANDLERS["unary"], (outer, Broken()))
    async with serving(it=handler) as channel:
        assert await channel.unary_unary("/t.T/it")(b"x") == b"x!"
    assert outer.ended == [OK]
    assert "oops" in caplog.text


async def test_a_handler_sees_its_call():
    """`current_call()` has method, caller, metadata and the time left; outside there is none."""
    seen: list[ServerCall | None] = []

    async def look(request: bytes, context: Any) -> bytes:
        seen.append(current_call())
        return b""

    handler = grpc.unary_unary_rpc_method_handler(look)
    async with serving(ServerInterceptor(), it=handler) as channel:
        metadata = (("mesh-caller", "order"), ("x-group", "beta"))
        await channel.unary_unary("/t.T/it")(b"", timeout=5.0, metadata=metadata)
        await channel.unary_unary("/t.T/it")(b"")
    first, second = seen
    assert first is not None
    assert second is not None
    assert (first.method, first.caller) == ("/t.T/it", "order")
    assert ("x-group", "beta") in first.metadata
    remaining = first.time_remaining()
    assert remaining is not None
    assert 4.0 < remaining < 5.1  # grpcio rounds what it sends
    assert (second.caller, second.time_remaining()) == ("unknown", None)
    assert not second.draining.is_set()
    assert current_call() is None
    assert CURRENT.get() is None


def test_time_remaining_follows_the_monotonic_clock_alone(virtual_clock):
    """The deadline is fixed on arrival; it runs out by the clock given and stops at zero."""
    call = ServerCall("/t.T/it", timeout=2.0, clock=virtual_clock)
    assert call.time_remaining() == 2.0
    virtual_clock._now += 1.5
    assert call.time_remaining() == 0.5
    virtual_clock._now += 9
    assert call.time_remaining() == 0.0
    assert repr(call) == "<ServerCall /t.T/it from unknown 0ms left>"


async def refusal(channel: grpc.aio.Channel, **options: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(channel, "unary", **options)
    return refused.value


async def test_rate_limits_work_alone_on_a_bare_server(virtual_clock):
    """Above the limit calls get RESOURCE_EXHAUSTED and when to come back; below it they pass."""
    limits = RateLimitInterceptor(
        (RateLimit("per-caller", 0.4, 2, ("caller",)),), clock=virtual_clock
    )
    order, web = (("mesh-caller", "order"),), (("mesh-caller", "web"),)
    async with serving(limits) as channel:
        for _ in range(2):
            await call(channel, "unary", metadata=order)
        error = await refusal(channel, metadata=order)
        await call(channel, "unary", metadata=web)
        virtual_clock._now += 2.5
        await call(channel, "unary", metadata=order)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "rate limit 'per-caller' of 24/m refuses caller=order"
    trailers = dict(error.trailing_metadata())
    assert trailers[NOT_EXECUTED] == "1"
    assert trailers[RETRY_AFTER] == "3"
    assert trailers[RETRY_PUSHBACK] == "2500"
    assert limits.counts["per-caller"].refused == 1


async def test_rate_limits_change_while_the_server_runs(virtual_clock):
    """New limits hold from the next call on, and taking them away lets everything through."""
    limits = RateLimitInterceptor(clock=virtual_clock)
    async with serving(limits) as channel:
        await call(channel, "unary")
        limits.configure((RateLimit("all", 10.0, 1),))
        await call(channel, "unary")
        error = await refusal(channel)
        assert error.details() == "rate limit 'all' of 10/s is used up"
        assert dict(error.trailing_metadata())[RETRY_AFTER] == "1"
        limits.configure((RateLimit("all", 10.0, 1, mode=LimitMode.SHADOW),))
        await call(channel, "unary")
        assert limits.counts["all"].would_refuse == 1
        limits.configure(())
        await call(channel, "unary")


def test_health_checks_and_reflection_are_neither_limited_nor_traced():
    """A busy instance is not a dead one."""
    for concern in (RateLimitInterceptor(), TracingInterceptor()):
        assert not concern.applies_to("/grpc.health.v1.Health/Check")
        assert not concern.applies_to("/grpc.reflection.v1alpha.ServerReflection/Info")
        assert concern.applies_to("/payment.v1.PaymentService/Charge")


async def test_a_call_for_another_instance_is_refused_unexecuted():
    """`mesh-target` must be this instance's id, where there is one."""
    async with serving(TargetInterceptor("payment-1")) as channel:
        await call(channel, "unary")
        await call(channel, "unary", metadata=(("mesh-target", "payment-1"),))
        error = await refusal(channel, metadata=(("mesh-target", "payment-2"),))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "this is payment-1, not payment-2"
    assert dict(error.trailing_metadata()) == {NOT_EXECUTED: WRONG_TARGET}


def test_a_call_that_is_too_late_is_refused(virtual_clock):
    """No handler runs for a caller that has stopped waiting."""
    deadline = DeadlineInterceptor()
    deadline.begin(ServerCall("/t.T/it", clock=virtual_clock))
    deadline.begin(ServerCall("/t.T/it", timeout=0.1, clock=virtual_clock))
    with pytest.raises(Refused) as refused:
        deadline.begin(ServerCall("/t.T/it", timeout=0.0, clock=virtual_clock))
    assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.value.trailers == ((NOT_EXECUTED, "1"),)


def test_concerns_are_ordered_in_one_place():
    """Whatever order they are given in; strangers come last, in theirs."""
    kinds = [RateLimitInterceptor(), TracingInterceptor(), Gate(), DeadlineInterceptor()]
    kinds += [TargetInterceptor("a"), ConcurrencyInterceptor(), LoadReportInterceptor()]
    ordered = [type(each) for each in in_order(kinds)]
    assert ordered == [*SERVER_ORDER, Gate]


async def test_a_plain_handler_cannot_take_a_stream_of_requests_here(caplog):
    """It would hold a thread for as long as the stream lasts: the call fails and says why."""

    def plain(requests: Any, context: Any) -> bytes:
        return b""

    handler = grpc.stream_unary_rpc_method_handler(plain)
    async with serving(Recorder(), it=handler) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.stream_unary("/t.T/it")([b""])
    assert "make it async def" in str(failure.value.details())

"""What is not done any more because nobody waits for it: late on arrival, or late for a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import meshrpc
from meshrpc.clock import SystemClock
from meshrpc.interceptors import in_order
from meshrpc.interceptors.arrival import DeadlineInterceptor, TargetInterceptor
from meshrpc.interceptors.compose import ServerInterceptor
from meshrpc.interceptors.sync_handler import SyncHandlers
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.server.handler import HandlerTable
from meshrpc.wire import NOT_EXECUTED

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
UNSEEN = {NOT_EXECUTED: "1"}


class Record(ServerInterceptor):
    """Which calls began, and how they ended."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self.moved = asyncio.Event()

    def begin(self, call: meshrpc.ServerCall) -> None:
        self.begun.append(call.method.rpartition("/")[2])
        self.moved.set()

    def end(self, call: meshrpc.ServerCall, code: grpc.StatusCode) -> None:
        self.ended.append((call.method.rpartition("/")[2], code.name))
        self.moved.set()

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds. A call that has begun has then also gone as far as it can at once."""
        async with asyncio.timeout(5):
            while not condition():
                self.moved.clear()
                await self.moved.wait()


class Clock(SystemClock):
    """The real time, and as much more as a test adds."""

    added = 0.0

    def now(self) -> float:
        return super().now() + self.added


@contextlib.asynccontextmanager
async def serving(
    handlers: dict[str, Any], record: Record, *, clock: SystemClock, threads: int = 1
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve `/t.T/…` with the concerns of a service; a bare channel to it."""
    sync_handlers = SyncHandlers(threads)
    table = HandlerTable(sync_handlers)
    table.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    table.wrap(
        in_order((record, TargetInterceptor("t-1"), DeadlineInterceptor())),
        clock=clock,
    )
    server = grpc.aio.server(handlers=(table,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)
        sync_handlers.close()


async def end_of(call: Any) -> None:
    if isinstance(call, (grpc.aio.UnaryStreamCall, grpc.aio.StreamStreamCall)):
        async for _ in call:
            pass
    else:
        await call


async def failure(call: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    """Read the call to its end: status, details and trailers."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await end_of(call)
    error = failed.value
    return error.code(), str(error.details()), dict(error.trailing_metadata())


# --- Late on arrival ----------------------------------------------------------------------


@pytest.fixture
def delay(monkeypatch) -> Callable[[float], None]:
    """Let seconds pass between a call's start and its arrival.

    Callers fix the deadline as a point in wall time when they start a call, and grpcio's server
    compares that with wall time. gRPC's own timers, which would end the call first, know nothing.
    """

    def pass_by(seconds: float) -> None:
        wall_time = time.time
        monkeypatch.setattr(time, "time", lambda: wall_time() + seconds)

    return pass_by


async def unary(request: bytes, context: Any) -> bytes:
    raise AssertionError("nobody waits for this")


def plain_unary(request: bytes, context: Any) -> bytes:
    raise AssertionError("nobody waits for this")


async def generate(request: bytes, context: Any) -> AsyncIterator[bytes]:
    raise AssertionError("nobody waits for this")
    yield b""


async def write(request: bytes, context: Any) -> None:
    raise AssertionError("nobody waits for this")


def plain_generate(request: bytes, context: Any) -> Iterator[bytes]:
    raise AssertionError("nobody waits for this")
    yield b""


HANDLERS: dict[str, Any] = {
    "unary": grpc.unary_unary_rpc_method_handler(unary),
    "plain_unary": grpc.unary_unary_rpc_method_handler(plain_unary),
    "generate": grpc.unary_stream_rpc_method_handler(generate),
    "write": grpc.unary_stream_rpc_method_handler(write),
    "plain_generate": grpc.unary_stream_rpc_method_handler(plain_generate),
    "collect": grpc.stream_unary_rpc_method_handler(unary),
    "echo": grpc.stream_stream_rpc_method_handler(generate),
}


@pytest.mark.parametrize("name", HANDLERS)
async def test_a_call_without_time_left_is_refused_before_anything_else(name: str, delay: Any):
    """Neither another concern nor the handler sees it, and its caller knows that none did."""
    record = Record()
    async with serving(HANDLERS, record, clock=Clock()) as channel:
        handler = HANDLERS[name]
        kind = "unary_" if not handler.request_streaming else "stream_"
        kind += "unary" if not handler.response_streaming else "stream"
        # The target is wrong as well: what is said of it would come from a later concern.
        is_over = asyncio.Event()

        async def silence() -> AsyncIterator[bytes]:
            await is_over.wait()
            for nothing in ():
                yield nothing

        call = getattr(channel, kind)(f"/t.T/{name}")(
            silence() if handler.request_streaming else b"a",
            timeout=20,
            metadata=(("mesh-target", "t-2"),),
        )
        delay(21)
        assert await failure(call) == (DEADLINE_EXCEEDED, "the deadline passed on the way", UNSEEN)
        is_over.set()
    assert record.begun == record.ended == []


async def test_a_health_check_without_time_left_is_refused_too(delay: Any):
    """Whoever asked has judged already."""
    service = meshrpc.Service("t", registry=MemoryRegistry(), control="none", clock=Hasty())
    async with service, grpc.aio.insecure_channel(service.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=20
        )
        delay(21)
        assert await failure(check) == (DEADLINE_EXCEEDED, "the deadline passed on the way", UNSEEN)


class Hasty(SystemClock):
    """Leaves without waiting for callers that are not there."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01) if seconds <= 3 else seconds)


# --- Late for a thread --------------------------------------------------------------------


class Plain:
    """Plain `def` handlers: `hold` keeps its thread until it is let go, the others are counted."""

    def __init__(self) -> None:
        self.holding = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)
        self.ran: list[str] = []
        self.handlers = {
            "hold": grpc.unary_unary_rpc_method_handler(self.hold),
            "answer": grpc.unary_unary_rpc_method_handler(self.answer),
            "generate": grpc.unary_stream_rpc_method_handler(self.generate),
            "iterate": grpc.unary_stream_rpc_method_handler(self.iterate),
        }

    def hold(self, request: bytes, context: Any) -> bytes:
        self.holding.release()
        assert self.let_go.acquire(timeout=10)
        return b"held"

    def answer(self, request: bytes, context: Any) -> bytes:
        self.ran.append("answer")
        return b"answered"

    def generate(self, request: bytes, context: Any) -> Iterator[bytes]:
        try:
            self.ran.append("generate")
            yield b"first"
            self.ran.append("generate on")
            yield b"second"
        finally:
            self.ran.append("closed")

    def iterate(self, request: bytes, context: Any) -> Iterator[bytes]:
        self.ran.append("iterate")
        return iter([b"answered"])

    async def is_held(self) -> None:
        """Wait until a thread is."""
        assert await asyncio.to_thread(self.holding.acquire, timeout=5)


LATE = "the deadline passed while the call waited for a thread"


def waiting_call(channel: grpc.aio.Channel, name: str, timeout: float = 30) -> Any:
    kind = channel.unary_unary if name in ("answer", "hold") else channel.unary_stream
    return kind(f"/t.T/{name}")(b"", timeout=timeout)


@pytest.mark.parametrize("name", ["answer", "generate", "iterate"])
async def test_a_call_that_waits_for_a_thread_beyond_its_deadline_is_not_run(name: str):
    """By the time there is one, the answer would be for nobody."""
    plain, record, clock = Plain(), Record(), Clock()
    async with serving(plain.handlers, record, clock=clock) as channel:
        held = channel.unary_unary("/t.T/hold")(b"")
        await plain.is_held()
        late = waiting_call(channel, name)
        in_time = waiting_call(channel, name, timeout=300)
        await record.wait(lambda: record.begun == ["hold", name, name])
        clock.added = 31
        plain.let_go.release()
        assert await failure(late) == (DEADLINE_EXCEEDED, LATE, UNSEEN)
        assert await held == b"held"
        await end_of(in_time)
        await record.wait(lambda: len(record.ended) == 3)
    assert plain.ran.count(name) == 1
    assert sorted(record.ended) == sorted(
        [("hold", "OK"), (name, "DEADLINE_EXCEEDED"), (name, "OK")]
    )


@pytest.mark.parametrize("name", ["answer", "generate", "iterate"])
async def test_a_call_whose_client_leaves_while_it_waits_for_a_thread_is_not_run(name: str):
    """It gives its place in the queue to those who still wait."""
    plain, record = Plain(), Record()
    async with serving(plain.handlers, record, clock=Clock()) as channel:
        held = channel.unary_unary("/t.T/hold")(b"")
        await plain.is_held()
        gone = waiting_call(channel, name)
        await record.wait(lambda: record.begun == ["hold", name])
        gone.cancel()
        await record.wait(lambda: record.ended == [(name, "CANCELLED")])
        plain.let_go.release()
        assert await held == b"held"
        # One thread, in turn: had the other one been run, then before this.
        assert await waiting_call(channel, "answer") == b"answered"
    assert plain.ran == ["answer"]


@pytest.mark.parametrize("name", ["generate", "iterate"])
async def test_a_stream_that_waits_for_each_thread_ends_at_its_deadline(name: str):
    """Every message takes a turn in the queue, and none is made for nobody."""
    plain, record, clock = Plain(), Record(), Clock()
    async with serving(plain.handlers, record, clock=clock) as channel:
        first = channel.unary_unary("/t.T/hold")(b"")
        await plain.is_held()
        late = waiting_call(channel, name)
        await record.wait(lambda: len(record.begun) == 2)
        # Behind the beginning of the stream, and before its first message.
        second = channel.unary_unary("/t.T/hold")(b"")
        await record.wait(lambda: len(record.begun) == 3)
        plain.let_go.release()
        assert await first == b"held"
        await plain.is_held()
        clock.added = 31
        plain.let_go.release()
        code, details, trailers = await failure(late)
        assert await second == b"held"
    assert (code, details) == (DEADLINE_EXCEEDED, LATE)
    # Making the iterator may have been all the work there was.
    assert trailers == {}
    assert plain.ran == (["iterate"] if name == "iterate" else [])

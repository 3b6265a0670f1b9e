"""Plain `def` handlers in an overload: what waits for a thread is bounded, and stands in nobody's way."""

import asyncio
import threading
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from meshrpc.interceptors.admission_lane import IN_RESERVE
from meshrpc.interceptors.concurrency import ConcurrencyInterceptor
from meshrpc.interceptors.sync_handler import DEFAULT_THREADS
from meshrpc.policy.model import Concurrency, ConcurrencyMode

MOST = DEFAULT_THREADS + IN_RESERVE
OK, EXHAUSTED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED


class Handlers:
    """A `def` method that holds its thread until it is let go, and an `async` one."""

    def __init__(self):
        self.free = threading.Event()
        self.begun = 0

    def hold(self, request, _context):
        self.begun += 1
        self.free.wait(30)
        return request

    async def answer(self, request, _context):
        return request

    @property
    def table(self):
        methods = {
            "Hold": grpc.unary_unary_rpc_method_handler(self.hold),
            "Answer": grpc.unary_unary_rpc_method_handler(self.answer),
        }
        return (grpc.method_handlers_generic_handler("test.Threads", methods),)


@asynccontextmanager
async def served(concern):
    handlers = Handlers()
    server = grpc.aio.server(interceptors=[concern], options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(handlers.table)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            handlers.call = channel.unary_unary("/test.Threads/Hold")
            handlers.quick = channel.unary_unary("/test.Threads/Answer")
            yield handlers
    finally:
        handlers.free.set()
        await server.stop(5)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what changes tells nobody
            await asyncio.sleep(0.001)


async def test_what_no_thread_has_time_for_is_refused_and_others_go_on():
    """As many as there are threads, and two, are begun; the rest is told, and async calls pass."""
    concern = ConcurrencyInterceptor()
    async with served(concern) as handlers:
        calls = [handlers.call(b"", timeout=30) for _ in range(MOST)]
        await until(lambda: concern.counts.running == MOST)
        more = [handlers.call(b"", timeout=30) for _ in range(10)]
        assert [await call.code() for call in more] == [EXHAUSTED] * 10
        assert await handlers.quick(b"quick", timeout=30) == b"quick"
        assert handlers.begun == DEFAULT_THREADS
        handlers.free.set()
        assert [await call.code() for call in calls] == [OK] * MOST
        await until(lambda: concern.counts.running == 0)
        assert concern.counts.refused["waited"] == 10


async def test_a_call_is_released_where_it_was_admitted_whatever_the_policy_says_by_then():
    """From two limits to one, and back: nobody's place is lost, or given twice."""
    concern = ConcurrencyInterceptor()
    async with served(concern) as handlers:
        calls = [handlers.call(b"", timeout=30) for _ in range(3)]
        await until(lambda: concern.counts.running == 3)
        concern.configure(Concurrency(ConcurrencyMode.FIXED, 5))
        calls += [handlers.call(b"", timeout=30) for _ in range(2)]
        await until(lambda: concern.counts.running == 5)
        concern.configure(Concurrency())
        handlers.free.set()
        assert [await call.code() for call in calls] == [OK] * 5
        await until(lambda: concern.counts.running == 0)
        assert all(lane.gate.running == 0 for lane in concern._lanes.values())

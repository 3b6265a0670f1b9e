"""What a service does with more calls than it may run: over real connections."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import meshrpc
from meshrpc.interceptors.compose import Refused, ServerInterceptor
from meshrpc.interceptors.concurrency import ConcurrencyInterceptor
from meshrpc.policy.model import Concurrency, ConcurrencyMode
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.wire import CALLER, CRITICALITY, NOT_EXECUTED, RETRY_PUSHBACK

OK, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.CANCELLED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
ONE = Concurrency(ConcurrencyMode.FIXED, 1)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what changes tells nobody
            await asyncio.sleep(0.001)


class Handlers:
    """Methods that hold until they are let go, and note in which order they were begun."""

    def __init__(self):
        self.begun = []
        self.free = asyncio.Event()

    async def work(self, request, _context):
        self.begun.append(request.decode())
        await self.free.wait()
        return request

    async def flow(self, request, _context):
        self.begun.append(request.decode())
        yield request
        await self.free.wait()

    @property
    def table(self):
        methods = {
            "Work": grpc.unary_unary_rpc_method_handler(self.work),
            "Flow": grpc.unary_stream_rpc_method_handler(self.flow),
        }
        return (grpc.method_handlers_generic_handler("test.Busy", methods),)


class PatientClock:
    """Time that stands still: nobody waits for too long."""

    def now(self):
        return 100.0


@asynccontextmanager
async def bare(*concerns):
    """A bare server of grpcio's with these concerns; gives its handlers and a channel."""
    handlers = Handlers()
    server = grpc.aio.server(interceptors=concerns, options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(handlers.table)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        handlers.say = channel.unary_unary("/test.Busy/Work")
        handlers.flowing = channel.unary_stream("/test.Busy/Flow")
        yield handlers
        handlers.free.set()
    await server.stop(None)


def call(method, word, caller="a", criticality="default", timeout=30):
    metadata = ((CALLER, caller), (CRITICALITY, criticality))
    return method(word.encode(), timeout=timeout, metadata=metadata)


async def test_who_waits_is_served_by_criticality_and_callers_take_turns():
    """The greedy caller's later calls come after everybody else's of their class."""
    concern = ConcurrencyInterceptor(ONE, clock=PatientClock())
    async with bare(concern) as handlers:
        calls = [call(handlers.say, "held")]
        await until(lambda: handlers.begun)
        for word, caller, criticality in (
            ("greedy1", "greedy", "default"),
            ("greedy2", "greedy", "default"),
            ("greedy3", "greedy", "default"),
            ("late", "b", "sheddable"),
            ("modest", "c", "default"),
            ("urgent", "d", "critical"),
        ):
            waiting = concern.counts.waiting
            calls.append(call(handlers.say, word, caller, criticality))
            await until(lambda waiting=waiting: concern.counts.waiting == waiting + 1)
        handlers.free.set()
        await asyncio.gather(*calls)
        assert handlers.begun == [
            *("held", "urgent", "greedy1", "modest", "greedy2", "greedy3", "late"),
        ]
        assert (concern.counts.running, concern.counts.waiting) == (0, 0)


async def test_a_refusal_says_overloaded_and_when_to_come_back():
    """What callers of the mesh hold back for, and others may read."""
    concern = ConcurrencyInterceptor(ONE)
    async with bare(concern) as handlers:
        held = call(handlers.say, "held")
        await until(lambda: handlers.begun)
        late = call(handlers.say, "late")
        assert await late.code() is EXHAUSTED
        assert (await late.details()).startswith("overloaded: waited ")
        trailers = dict(await late.trailing_metadata())
        assert trailers[NOT_EXECUTED] == "1"
        assert int(trailers[RETRY_PUSHBACK]) >= 100
        handlers.free.set()
        assert await held == b"held"
        assert handlers.begun == ["held"]


async def test_a_caller_who_goes_while_its_call_waits_leaves_no_trace():
    """Its place in the queue is free, and its handler never runs."""
    concern = ConcurrencyInterceptor(ONE, clock=PatientClock())
    async with bare(concern) as handlers:
        held = call(handlers.say, "held")
        await until(lambda: handlers.begun)
        gone = call(handlers.say, "gone")
        await until(lambda: concern.counts.waiting == 1)
        gone.cancel()
        await until(lambda: concern.counts.waiting == 0)
        handlers.free.set()
        await held
        await until(lambda: concern.counts.running == 0)
        assert handlers.begun == ["held"]


async def test_a_stream_waits_to_begin_as_other_calls_do():
    """After that it holds no place where the limit is adaptive, and one where it is fixed."""
    for concern, running in (
        (ConcurrencyInterceptor(clock=PatientClock()), 0),
        (ConcurrencyInterceptor(ONE, clock=PatientClock()), 1),
    ):
        async with bare(concern) as handlers:
            stream = call(handlers.flowing, "stream")
            assert await stream.read() == b"stream"
            assert concern.counts.running == running
            if running:
                waiting = call(handlers.flowing, "second")
                await until(lambda concern=concern: concern.counts.waiting == 1)
                handlers.free.set()
                assert [each async for each in waiting] == [b"second"]
            handlers.free.set()
            assert await stream.read() is grpc.aio.EOF
            await until(lambda concern=concern: concern.counts.running == 0)


class Waits(ServerInterceptor):
    """Has each call wait until it is told, or refuses it then."""

    def __init__(self):
        super().__init__()
        self.told = asyncio.Event()
        self.error = None
        self.ended = []

    async def _wait(self):
        await self.told.wait()
        if self.error is not None:
            raise self.error

    def begin(self, call):
        return self._wait()

    def end(self, call, code):
        self.ended.append(code)


class Watches(ServerInterceptor):
    """Notes how calls end."""

    def __init__(self):
        super().__init__()
        self.began, self.ended = 0, []

    def begin(self, call):
        self.began += 1

    def end(self, call, code):
        self.ended.append(code)


@pytest.fixture
def around():
    """A concern that has calls wait, and those outside and inside of it."""
    return Watches(), Waits(), Watches()


@asynccontextmanager
async def composed(around):
    service = meshrpc.Service(
        "busy", control="none", registry=MemoryRegistry(), interceptors=around, grace=1
    )
    handlers = Handlers()
    handlers.free.set()
    service.add_generic_rpc_handlers(handlers.table)
    async with service, grpc.aio.insecure_channel(service.address) as channel:
        handlers.say = channel.unary_unary("/test.Busy/Work")
        handlers.flowing = channel.unary_stream("/test.Busy/Flow")
        yield handlers


async def test_a_concern_may_have_a_call_wait_and_the_next_ones_begin_after_that(around):
    """In the order in which they stand."""
    outer, waits, inner = around
    async with composed(around) as handlers:
        waiting = call(handlers.say, "word")
        await until(lambda: outer.began)
        assert not inner.began
        waits.told.set()
        assert await waiting == b"word"
        await until(lambda: outer.ended)
        assert outer.ended == waits.ended == inner.ended == [OK]


async def test_a_concern_may_refuse_a_call_that_it_had_wait(around):
    """Then those before it see it end, and neither it nor those after it do."""
    outer, waits, inner = around
    waits.error = Refused(EXHAUSTED, "no", (("why", "because"),))
    waits.told.set()
    async with composed(around) as handlers:
        refused = call(handlers.say, "word")
        assert await refused.code() is EXHAUSTED
        assert ("why", "because") in tuple(await refused.trailing_metadata())
        assert (outer.ended, waits.ended, inner.began) == ([EXHAUSTED], [], 0)
        assert handlers.begun == []


async def test_a_concern_that_fails_while_a_call_waits_answers_internal(around):
    """Its caller would wait for ever otherwise."""
    outer, waits, _ = around
    waits.error = RuntimeError("a defect")
    waits.told.set()
    async with composed(around) as handlers:
        failed = call(handlers.say, "word")
        assert await failed.code() is grpc.StatusCode.INTERNAL
        assert "defect" not in await failed.details()
        assert outer.ended == [grpc.StatusCode.INTERNAL]


@pytest.mark.parametrize("kind", ["say", "flowing"])
async def test_a_call_that_is_cancelled_while_it_waits_ends_for_those_before(around, kind):
    """For unary calls and streams, once each."""
    outer, waits, inner = around
    async with composed(around) as handlers:
        gone = call(getattr(handlers, kind), "word")
        await until(lambda: outer.began)
        gone.cancel()
        await until(lambda: outer.ended)
        assert (outer.ended, waits.ended, inner.began) == ([CANCELLED], [], 0)
        assert handlers.begun == []


async def test_a_service_follows_its_policy_and_answers_health_checks_meanwhile(local_mesh):
    """`concurrency: {fixed: {limit: 1}}`: the second call waits, and a probe does not."""
    local_mesh.policy("""
        schema: meshrpc.policy/v1
        service: busy
        concurrency: {fixed: {limit: 1}}
    """)
    service = meshrpc.Service("busy")
    handlers = Handlers()
    service.add_generic_rpc_handlers(handlers.table)
    await local_mesh.serve(service)
    async with grpc.aio.insecure_channel(service.address) as channel:
        say = channel.unary_unary("/test.Busy/Work")
        first = call(say, "first")
        await until(lambda: handlers.begun)
        second = call(say, "second")
        await until(lambda: service._concurrency.counts.waiting == 1)
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = await check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        handlers.free.set()
        assert await asyncio.gather(first, second) == [b"first", b"second"]
        assert service._concurrency.counts.limit == 1

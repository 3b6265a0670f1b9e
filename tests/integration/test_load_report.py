"""What servers say of their load: in the trailers of their answers, and in the registry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshrpc.clock import SystemClock
from meshrpc.interceptors.compose import Refused, ServerInterceptor
from meshrpc.interceptors.load_report import ENCODE_EVERY, LoadReportInterceptor
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.load_report import LoadReport
from meshrpc.registry import registration
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.server.service import Service
from meshrpc.testing.policies import LocalPolicies
from meshrpc.wire import LOAD_REPORT, TARGET

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
OWN = ("own", "1")

unary = grpc.unary_unary_rpc_method_handler
server_stream = grpc.unary_stream_rpc_method_handler
client_stream = grpc.stream_unary_rpc_method_handler
both_streams = grpc.stream_stream_rpc_method_handler


class HastyClock(SystemClock):
    """The real time, without the waits of draining."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.1 if seconds > 3 else 0.01))


@pytest.fixture
def renews_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have leases renewed ten times a second."""
    monkeypatch.setattr(registration, "RENEW_EVERY", 0.1)


# --- Handlers -----------------------------------------------------------------------------


async def answers(request: Any, context: Any) -> bytes:
    return b"x"


async def sets_trailers(request: Any, context: Any) -> bytes:
    context.set_trailing_metadata((OWN,))
    return b"x"


async def aborts(request: Any, context: Any) -> bytes:
    await context.abort(UNAVAILABLE, "no")


async def aborts_with_trailers(request: Any, context: Any) -> bytes:
    await context.abort(UNAVAILABLE, "no", (OWN,))


async def aborts_after_setting_trailers(request: Any, context: Any) -> bytes:
    context.set_trailing_metadata((OWN,))
    await context.abort(UNAVAILABLE, "no")


async def raises(request: Any, context: Any) -> bytes:
    raise ValueError("secret")


async def sets_a_code_and_trailers(request: Any, context: Any) -> bytes:
    context.set_code(UNAVAILABLE)
    context.set_trailing_metadata((OWN,))
    return b""


async def cancels_itself(request: Any, context: Any) -> bytes:
    raise asyncio.CancelledError


def answers_in_a_thread(request: Any, context: Any) -> bytes:
    return b"x"


def aborts_in_a_thread(request: Any, context: Any) -> bytes:
    context.abort(UNAVAILABLE, "no")


def aborts_in_a_thread_with_trailers(request: Any, context: Any) -> bytes:
    context.abort(UNAVAILABLE, "no", (OWN,))


async def generates(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    yield b"second"


async def generates_and_sets_trailers(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    context.set_trailing_metadata((OWN,))


async def generates_and_raises(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    raise ValueError("secret")


async def generates_and_aborts(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    await context.abort(UNAVAILABLE, "no")


async def writes(request: Any, context: Any) -> None:
    await context.write(b"first")


async def writes_and_aborts(request: Any, context: Any) -> None:
    await context.write(b"first")
    await context.abort(UNAVAILABLE, "no")


def generates_in_a_thread(request: Any, context: Any) -> Iterator[bytes]:
    yield b"first"


ONE = (
    *(answers, sets_trailers, aborts, aborts_with_trailers, aborts_after_setting_trailers),
    *(raises, sets_a_code_and_trailers, cancels_itself),
)
PLAIN = (answers_in_a_thread, aborts_in_a_thread, aborts_in_a_thread_with_trailers)
MANY = (
    *(generates, generates_and_sets_trailers, generates_and_raises, generates_and_aborts),
    *(writes, writes_and_aborts),
)
CASES = [
    *((unary, behavior) for behavior in (*ONE, *PLAIN)),
    *((client_stream, behavior) for behavior in ONE),
    *((server_stream, behavior) for behavior in (*MANY, generates_in_a_thread)),
    *((both_streams, behavior) for behavior in MANY),
]
WITH_OWN = {
    *(sets_trailers, aborts_with_trailers, aborts_after_setting_trailers),
    *(sets_a_code_and_trailers, aborts_in_a_thread_with_trailers, generates_and_sets_trailers),
}
BEYOND_A_CONCERN_ALONE = {
    *(aborts_with_trailers, aborts_after_setting_trailers, aborts_in_a_thread_with_trailers),
    cancels_itself,
}
"""On a bare server: an abort with trailers of its own, and what never gets an answer at all."""

HANDLERS = {
    f"{kind.__name__.split('_rpc')[0]}-{behavior.__name__}": kind(behavior)
    for kind, behavior in CASES
}


def named(behaviors: set[Any]) -> set[str]:
    """The handlers that behave so."""
    names = {each.__name__ for each in behaviors}
    return {name for name in HANDLERS if name.rpartition("-")[2] in names}


BLOCKED = 0.03


async def blocks(request: Any, context: Any) -> bytes:
    time.sleep(BLOCKED)  # noqa: ASYNC251 - what is measured
    return b"x"


async def waits(request: Any, context: Any) -> bytes:
    await asyncio.sleep(BLOCKED)
    return b"x"


async def lasts(request: Any, context: Any) -> bytes:
    await asyncio.sleep(1.0)
    return b"x"


def waits_in_a_thread(request: Any, context: Any) -> bytes:
    time.sleep(BLOCKED)
    return b"x"


HANDLERS |= {
    each.__name__: unary(each) for each in (answers, blocks, waits, lasts, waits_in_a_thread)
}


# --- Serving ------------------------------------------------------------------------------


class Caller:
    """Calls `/t.T/…` of one address, and reads what comes with the answers."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    async def call(
        self, name: str, metadata: Any = ()
    ) -> tuple[grpc.StatusCode, list[tuple[str, str | bytes]]]:
        """Return the status and the trailers."""
        handler = HANDLERS[name]
        kinds: Any = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, False): self.channel.stream_unary,
            (True, True): self.channel.stream_stream,
        }
        make = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
        request = iter([b"a"]) if handler.request_streaming else b"a"
        called = make(f"/t.T/{name}")(request, metadata=metadata, timeout=10)
        if handler.response_streaming:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in called:
                    pass
        return await called.code(), [tuple(each) for each in await called.trailing_metadata()]

    async def report(self, name: str = "answers", metadata: Any = ()) -> LoadReport | None:
        """Return the report that comes with the answer, if one does."""
        _, trailers = await self.call(name, metadata)
        found = [value for key, value in trailers if key == LOAD_REPORT]
        assert len(found) <= 1
        return LoadReport.from_wire(found[0]) if found else None

    async def until(
        self,
        is_so: Callable[[LoadReport | None], bool] = lambda report: report is not None,
        name: str = "answers",
    ) -> Any:
        """Call until the report is as it should be; return that one."""
        async with asyncio.timeout(30):
            while not is_so(report := await self.report(name)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return report


def counting(counts: list[int], index: int) -> None:
    counts[index] += 1


def balanced(kind: str) -> dict[str, Any]:
    return {"schema": "meshrpc.policy/v1", "service": "t", "balancer": kind}


WEIGHTED = balanced("weighted_round_robin")


def make_service(policies: LocalPolicies, registry: Any = None, **arguments: Any) -> Service:
    service = Service(
        "t",
        registry=registry or MemoryRegistry(),
        control="none",
        clock=arguments.pop("clock", HastyClock()),
        **arguments,
    )
    service.mesh.policy_source = policies
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", HANDLERS),))
    return service


@contextlib.asynccontextmanager
async def serving(service: Service) -> AsyncIterator[Caller]:
    async with service, grpc.aio.insecure_channel(service.address) as channel:
        yield Caller(channel)


@pytest.fixture
def policies() -> LocalPolicies:
    """The policies of the service; its balancer reads the reports."""
    policies = LocalPolicies()
    policies.apply(WEIGHTED)
    return policies


@pytest.fixture
async def caller(policies) -> AsyncIterator[Caller]:
    """Of a service whose balancer reads the reports, and that has some to send."""
    async with serving(make_service(policies)) as caller:
        await caller.until()
        yield caller


@contextlib.asynccontextmanager
async def bare(*interceptors: grpc.aio.ServerInterceptor) -> AsyncIterator[Caller]:
    """Callers of a server of grpcio's own."""
    server = grpc.aio.server(interceptors=interceptors)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", HANDLERS),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Caller(channel)
    finally:
        await server.stop(None)


def is_measured() -> bool:
    """Whether the running loop is being measured."""
    return "select" in vars(asyncio.get_running_loop()._selector)  # type: ignore[attr-defined]


# --- In the trailers ----------------------------------------------------------------------


async def test_every_answer_tells_the_load(caller):
    """Whatever kind of call it is and whatever way it ends, and what handlers send stays."""
    for name in HANDLERS:
        code, trailers = await caller.call(name)
        fails = any(word in name for word in ("abort", "raise", "code", "cancel"))
        assert (code is not OK) is fails, name
        own = ["own"] if name in named(WITH_OWN) else []
        assert [key for key, _ in trailers] == [*own, LOAD_REPORT], name


async def test_without_weighted_round_robin_nobody_pays(policies):
    """No trailer, and nothing is measured."""
    policies.apply(balanced("peak_ewma"))
    async with serving(make_service(policies)) as caller:
        assert not is_measured()
        for name in HANDLERS:
            _, trailers = await caller.call(name)
            assert LOAD_REPORT not in dict(trailers), name
        assert not is_measured()


async def test_reports_follow_the_policy(policies):
    """They come with the balancer that reads them and go with it; then nothing is measured."""
    policies.apply(balanced("round_robin"))
    async with serving(make_service(policies)) as caller:
        assert await caller.report() is None
        policies.apply(WEIGHTED)
        assert is_measured()
        await caller.until()
        policies.apply(balanced("round_robin"))
        assert not is_measured()
        assert await caller.report() is None
        policies.apply(WEIGHTED)
        await caller.until()
    assert not is_measured()


@pytest.mark.soak
async def test_refusals_tell_the_load_and_do_not_count(policies):
    """They are the answers of those who are busiest, and no work done."""

    class Gate(ServerInterceptor):
        def begin(self, call: ServerCall) -> None:
            if ("refuse", "1") in call.metadata:
                raise Refused(UNAVAILABLE, "closed", (OWN,))

    async with serving(make_service(policies, interceptors=[Gate()])) as caller:
        await caller.until()
        refused = 0
        async with asyncio.timeout(30):
            while (report := await caller.report("answers", (("refuse", "1"),))) is not None:
                refused += 1
                if report.rps == 0 and refused > 10:
                    break
        assert report is not None
        assert report.eps == 0
        code, trailers = await caller.call("answers", (("refuse", "1"),))
        assert (code, [key for key, _ in trailers]) == (UNAVAILABLE, ["own", LOAD_REPORT])
        code, trailers = await caller.call("answers", ((TARGET, "another"),))
        assert (code, trailers[-1][0]) == (UNAVAILABLE, LOAD_REPORT)


async def test_a_handler_s_own_report_goes_before_ours(policies):
    """Who knows better than the event loop how busy it is, says so."""

    async def reports(request: Any, context: Any) -> bytes:
        context.set_trailing_metadata(((LOAD_REPORT, LoadReport(0.75, 3.0).to_wire()),))
        return b"x"

    service = make_service(policies)
    service.add_registered_method_handlers("t.T", {"answers": unary(reports)})
    async with serving(service) as caller:
        async with asyncio.timeout(30):
            while service._load_reports.report() is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await caller.report() == LoadReport(0.75, 3.0)


async def test_calls_close_together_carry_the_same_report(policies):
    """It is encoded once for all of them."""
    service = make_service(policies)
    async with serving(service) as caller:
        await caller.until()
        began = time.monotonic()
        values = [dict((await caller.call("answers"))[1])[LOAD_REPORT] for _ in range(50)]
        assert len(set(values)) <= (time.monotonic() - began) / ENCODE_EVERY + 2


async def test_health_checks_are_neither_told_nor_counted(policies):
    """They are no work."""
    service = make_service(policies)
    async with serving(service) as caller:
        await caller.until()
        stub = health_pb2_grpc.HealthStub(caller.channel)
        before = service._load_reports._calls
        for _ in range(5):
            call = stub.Check(health_pb2.HealthCheckRequest())
            await call
            assert LOAD_REPORT not in dict(await call.trailing_metadata())
        assert service._load_reports._calls == before


async def test_grpc_s_own_weighted_round_robin_reads_the_reports(policies, monkeypatch):
    """Its C-core hides them from us, and balances by them: three times as strong, so many calls."""
    config = json.dumps(
        {
            "loadBalancingConfig": [
                {"weighted_round_robin": {"blackoutPeriod": "0s", "weightUpdatePeriod": "0.1s"}}
            ]
        }
    )
    services = [make_service(policies) for _ in range(2)]
    counts = [0, 0]
    async with services[0], services[1]:
        for index, (service, utilization) in enumerate(zip(services, (0.25, 0.75), strict=True)):
            report = LoadReport(utilization, 100.0)
            monkeypatch.setattr(service._load_reports, "report", lambda report=report: report)
            monkeypatch.setattr(
                service._load_reports, "end", lambda *_, index=index: counting(counts, index)
            )
        target = "ipv4:" + ",".join(each.address for each in services)
        options = [("grpc.service_config", config), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            caller = Caller(channel)
            async with asyncio.timeout(60):
                while sum(counts) == 0 or not 0.7 < counts[0] / sum(counts) < 0.8:
                    counts[:] = [0, 0]
                    for _ in range(200):
                        await caller.call("answers")


# --- Alone on a bare server ---------------------------------------------------------------


async def test_alone_on_a_bare_server_it_is_always_on():
    """Every answer that grpcio lets it have a word in; handlers' own trailers stay."""
    interceptor = LoadReportInterceptor()
    try:
        async with bare(interceptor) as caller:
            await caller.until()
            for name in HANDLERS.keys() - named(BEYOND_A_CONCERN_ALONE):
                _, trailers = await caller.call(name)
                own = ["own"] if name in named(WITH_OWN) else []
                assert [key for key, _ in trailers] == [*own, LOAD_REPORT], name
    finally:
        interceptor.disable()
    assert not is_measured()


async def test_one_s_own_interceptor_takes_the_place_of_the_built_in_one(policies):
    """So that it can be asked for its report; policy decides for it as well."""
    own = LoadReportInterceptor()
    service = make_service(policies, interceptors=[own])
    async with serving(service) as caller:
        await caller.until()
        assert own.is_enabled
        assert own.report() is not None
        assert repr(own).startswith("<LoadReportInterceptor LoadReport(utilization=")
        policies.apply(balanced("random"))
        assert own.report() is None
        assert repr(own) == "<LoadReportInterceptor disabled>"


# --- What it says -------------------------------------------------------------------------


async def load_for(caller: Caller, name: str, *, pause: float, seconds: float = 2.5) -> float:
    """Call one after another with pauses between them; return calls per second."""
    began, count = time.monotonic(), 0
    while time.monotonic() < began + seconds:
        await caller.call(name)
        count += 1
        await asyncio.sleep(pause)
    return count / (time.monotonic() - began)


@pytest.mark.soak
async def test_an_idle_service_is_not_busy(caller):
    """Nothing but its heartbeats and our question."""
    await load_for(caller, "answers", pause=0.25)
    report = await caller.report()
    assert report is not None
    assert report.utilization < 0.2
    assert report.rps < 6
    assert report.eps == 0.0


async def test_a_handler_that_blocks_half_of_the_time_makes_it_half_busy(caller):
    """And what is due waits meanwhile. The test itself, on the same loop, works a little too."""
    rate = await load_for(caller, "blocks", pause=BLOCKED)
    report = await caller.report()
    assert report is not None
    share = rate * BLOCKED
    assert share - 0.1 < report.utilization < share + 0.35
    assert report.rps == pytest.approx(rate, rel=0.3)
    assert report.queue_time > 0.001
    assert report.cpu < report.utilization  # blocking is not computing


@pytest.mark.soak
async def test_a_handler_that_awaits_does_not(caller):
    """However many wait at a time."""

    async def one() -> None:
        await load_for(caller, "waits", pause=0.2)

    await asyncio.gather(*(one() for _ in range(4)))
    report = await caller.report()
    assert report is not None
    assert report.rps > 5
    assert report.utilization < 0.4


@pytest.mark.soak
async def test_threads_that_are_taken_are_what_it_has_to_give(policies):
    """Plain handlers that wait leave the loop idle; when their threads are gone it is full."""
    service = make_service(policies)
    async with serving(service) as caller:
        await caller.until()
        threads = service._sync_handlers.load.threads

        async def one() -> None:
            await load_for(caller, "waits_in_a_thread", pause=0.0)

        await asyncio.gather(*(one() for _ in range(2 * threads)))
        report = await caller.report()
    assert report is not None
    assert report.utilization > 0.7
    assert report.queue_time > BLOCKED / 4  # for half of them there was no thread


async def tells_the_load_of_its_end(caller: Caller) -> None:
    at_its_beginning = await caller.until()
    lasting = asyncio.create_task(caller.report("lasts"))
    while not lasting.done():
        await asyncio.gather(*(caller.call("answers") for _ in range(20)))
        await asyncio.sleep(0.05)
    report = await lasting
    assert report is not None
    assert report.rps > at_its_beginning.rps + 50


@pytest.mark.soak
async def test_a_long_call_tells_the_load_of_its_end(policies):
    """What was when it began may be an hour old."""
    async with serving(make_service(policies)) as caller:
        await tells_the_load_of_its_end(caller)
    interceptor = LoadReportInterceptor()
    async with bare(interceptor) as caller:
        await tells_the_load_of_its_end(caller)
    interceptor.disable()


async def test_failing_calls_are_told_apart(caller):
    """Those that the server is to blame for."""
    for name in ("raises", "aborts", "answers", "answers"):
        await caller.call(name if name == "answers" else f"unary_unary-{name}")
    report = await caller.until(lambda report: report.eps > 0)
    assert 0 < report.eps < report.rps


@pytest.mark.soak
async def test_two_services_of_one_loop_both_tell_how_busy_it_is(policies):
    """Each with its own calls; when one leaves, the other goes on."""
    one, other = (make_service(policies) for _ in range(2))
    async with serving(one) as busy:
        async with serving(other) as idle:
            await idle.until()
            rate = await load_for(busy, "blocks", pause=BLOCKED)
            told, elsewhere = await busy.report(), await idle.report()
        assert told is not None
        assert elsewhere is not None
        assert elsewhere.utilization == pytest.approx(told.utilization, abs=0.15)
        assert told.utilization > rate * BLOCKED - 0.1
        assert elsewhere.rps < told.rps / 4
        assert is_measured()
        await busy.until()
    assert not is_measured()


def test_a_service_measures_the_loop_it_runs_in(policies):
    """Entered again in another one, too."""
    service = make_service(policies)

    async def serve() -> None:
        async with serving(service) as caller:
            await caller.until()

    for _ in range(2):
        asyncio.run(serve())


# --- In the registry ----------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.usefixtures("renews_often")
async def test_the_registry_hears_of_the_load_when_it_matters(policies, monkeypatch):
    """The record gets it, follows what changes much, and is not written for what changes little."""
    renewals = 0

    renew = MemoryRegistry.renew

    async def counting_renew(self: MemoryRegistry, instance: Any) -> bool:
        nonlocal renewals
        renewals += 1
        return await renew(self, instance)

    monkeypatch.setattr(MemoryRegistry, "renew", counting_renew)
    async with MemoryRegistry() as registry:
        records: list[LoadReport | None] = []
        changed = asyncio.Event()

        def on_snapshot(snapshot: Any) -> None:
            if snapshot.instances:
                records.append(snapshot.instances[0].load)
                changed.set()

        async def until(is_so: Callable[[LoadReport | None], bool]) -> None:
            async with asyncio.timeout(30):
                while not (records and is_so(records[-1])):
                    changed.clear()
                    await changed.wait()

        registry.watch("t", on_snapshot)
        service = make_service(policies, registry)
        async with serving(service) as caller:
            await until(lambda load: load is not None)
            assert records[0] is None
            (listed,) = await registry.instances("t")
            assert listed == service.instance
            assert listed.to_json()["load"]["utilization"] < 0.3

            async def work() -> None:
                while True:
                    await caller.call("blocks")

            working = asyncio.create_task(work())
            try:
                await until(lambda load: load is not None and load.utilization > 0.5)
                async with asyncio.timeout(30):
                    while renewals < 40:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                assert len(records) < renewals / 2
            finally:
                working.cancel()
                await asyncio.wait([working])
            policies.apply(balanced("round_robin"))
            await until(lambda load: load is None)


@pytest.mark.usefixtures("renews_often")
async def test_a_policy_that_wants_no_reports_leaves_none_in_the_registry(policies):
    """The record is as it always was, renewal by renewal."""
    policies.apply(balanced("peak_ewma"))
    async with MemoryRegistry() as registry:
        seen: list[Any] = []
        registry.watch("t", seen.append)
        async with serving(make_service(policies, registry)) as caller:
            for _ in range(10):
                await caller.call("answers")
                await asyncio.sleep(0.05)
            assert [each.load for each in seen[-1].instances] == [None]
            assert len(seen) == 2

"""Spans across services: one trace, one span per side of a call, ended whatever happens."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.grpc import (
    GrpcAioInstrumentorServer,
    client_interceptor,
    filters,
    grpcext,
)
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from meshrpc.clock import SystemClock
from meshrpc.interceptors.tracing import TracingInterceptor
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.server.service import Service
from meshrpc.telemetry.export import start_export
from meshrpc.telemetry.tracing import (
    end_client_span,
    inject,
    record_attempt,
    start_client_span,
)

PATH = "/t.T/it"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Spans of this process; a provider can be installed once, so tests share it."""
    exporter = InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    exporter.clear()


async def echo(request: bytes, context: Any) -> bytes:
    return request


@asynccontextmanager
async def bare(
    interceptor: grpc.aio.ServerInterceptor, behavior: Any = echo
) -> AsyncIterator[grpc.aio.Channel]:
    """One handler on a bare grpcio server with this interceptor."""
    server = grpc.aio.server(interceptors=[interceptor])
    handler = grpc.unary_unary_rpc_method_handler(behavior)
    names = {"it": handler, "other": handler}
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(service, names)
            for service in ("t.T", "grpc.health.v1.Health")
        ]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(5)  # a span ends after its client has the answer


class Clock(SystemClock):
    """Real time without the waits of draining."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


def make_service(**handlers: grpc.RpcMethodHandler[Any, Any]) -> Service:
    service = Service("shop", registry=MemoryRegistry(), control="none", clock=Clock())
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    return service


def one(spans: InMemorySpanExporter, kind: SpanKind = SpanKind.SERVER) -> ReadableSpan:
    (span,) = [span for span in spans.get_finished_spans() if span.kind is kind]
    return span


async def test_a_server_span_follows_the_conventions_and_its_callers_trace(spans):
    """Name, kind, attributes; child of the span in the metadata; current in the handler."""
    inside: list[trace.Span] = []

    async def look(request: bytes, context: Any) -> bytes:
        inside.append(trace.get_current_span())
        return request

    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    metadata = (("traceparent", f"00-{trace_id}-{parent_id}-01"), ("mesh-caller", "order"))
    async with bare(TracingInterceptor(), look) as channel:
        await channel.unary_unary(PATH)(b"", metadata=metadata)
    span = one(spans)
    assert span.name == "t.T/it"
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "t.T",
        "rpc.method": "it",
        "rpc.grpc.status_code": 0,
        "mesh.caller": "order",
    }
    assert span.status.status_code is StatusCode.UNSET
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == trace_id
    assert f"{span.parent.span_id:016x}" == parent_id
    assert inside[0].get_span_context() == span.context
    assert not trace.get_current_span().get_span_context().is_valid


async def test_a_call_without_a_trace_starts_one_of_its_own(spans):
    """Two such calls are two traces: nothing is inherited from the server's start."""
    async with bare(TracingInterceptor()) as channel:
        with trace.get_tracer("test").start_as_current_span("around"):
            await channel.unary_unary(PATH)(b"")
            await channel.unary_unary(PATH)(b"")
    first, second, _around = spans.get_finished_spans()
    assert first.parent is None
    assert first.context.trace_id != second.context.trace_id


@pytest.mark.parametrize(
    ("code", "is_error"),
    [
        (grpc.StatusCode.NOT_FOUND, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False),
        (grpc.StatusCode.INTERNAL, True),
        (grpc.StatusCode.UNAVAILABLE, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, True),
    ],
)
async def test_only_the_servers_own_faults_are_errors_of_its_span(spans, code, is_error: bool):
    """What the caller did wrong is no error of the server."""

    async def fails(request: bytes, context: Any) -> bytes:
        await context.abort(code, "why")
        raise AssertionError

    async with bare(TracingInterceptor(), fails) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(PATH)(b"")
    span = one(spans)
    assert (span.attributes or {})["rpc.grpc.status_code"] == code.value[0]
    assert (span.status.status_code is StatusCode.ERROR) is is_error


async def test_a_call_its_client_cancelled_has_a_span_that_ended(spans):
    """CANCELLED, and no error."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def forever(request: bytes, context: Any) -> bytes:
        context.add_done_callback(lambda _context: ended.set())
        started.set()
        await asyncio.Event().wait()
        return b""

    async with bare(TracingInterceptor(), forever) as channel, asyncio.timeout(5):
        call = channel.unary_unary(PATH)(b"")
        await started.wait()
        call.cancel()
        await ended.wait()
    span = one(spans)
    assert (span.attributes or {})["rpc.grpc.status_code"] == 1
    assert span.status.status_code is StatusCode.UNSET


async def test_an_exception_is_on_the_span_though_not_in_the_answer(spans):
    """Whoever reads the trace finds what the client must not see."""

    async def broken(request: bytes, context: Any) -> bytes:
        raise ValueError("secret")

    service = make_service(it=grpc.unary_unary_rpc_method_handler(broken))
    async with service, grpc.aio.insecure_channel(service.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary(PATH)(b"")
    assert "secret" not in str(failed.value)
    span = one(spans)
    assert span.status.status_code is StatusCode.ERROR
    (event,) = span.events
    assert event.name == "exception"
    assert (event.attributes or {})["exception.message"] == "secret"


async def test_filters_of_the_instrumentation_package_choose_what_is_traced(spans):
    """`filter_` takes them as they are; without one, only health and reflection are left out."""
    only = TracingInterceptor(filters.negate(filters.method_name("other")))
    for interceptor, traced in (
        (only, ["t.T/it", "grpc.health.v1.Health/it"]),
        (TracingInterceptor(filters.negate(filters.health_check())), ["t.T/it", "t.T/other"]),
        (TracingInterceptor(), ["t.T/it", "t.T/other"]),
    ):
        spans.clear()
        async with bare(interceptor) as channel:
            for path in (PATH, "/t.T/other", "/grpc.health.v1.Health/it"):
                await channel.unary_unary(path)(b"")
        assert [span.name for span in spans.get_finished_spans()] == traced


def test_an_instrumented_plain_client_joins_one_trace_without_double_spans(spans):
    """opentelemetry-instrumentation-grpc on a synchronous client, and on this process's servers.

    One client span, one server span under it, one trace: also with the package's own server
    instrumentation switched on, which replaces `grpc.aio.server`.
    """
    service = make_service(it=grpc.unary_unary_rpc_method_handler(echo))

    def call(address: str) -> bytes:
        with grpc.insecure_channel(address) as plain:
            channel = grpcext.intercept_channel(plain, client_interceptor())
            answer: bytes = channel.unary_unary(PATH)(b"x", timeout=5)
            return answer

    async def main() -> bytes:
        async with service:
            with futures.ThreadPoolExecutor(1) as pool:
                return await asyncio.get_running_loop().run_in_executor(pool, call, service.address)

    instrumentor = GrpcAioInstrumentorServer()
    instrumentor.instrument()
    try:
        assert asyncio.run(main()) == b"x"
    finally:
        instrumentor.uninstrument()
    finished = spans.get_finished_spans()
    assert sorted(span.kind.name for span in finished) == ["CLIENT", "SERVER"]
    client, server = one(spans, SpanKind.CLIENT), one(spans)
    assert server.parent is not None
    assert server.parent.span_id == client.context.span_id
    assert server.context.trace_id == client.context.trace_id


def test_a_client_span_tells_the_whole_call(spans):
    """Each attempt is an event; the status is that of the call; its parent is the current span."""
    with trace.get_tracer("test").start_as_current_span("handler") as parent:
        span = start_client_span("/payment.v1.PaymentService/Charge", "payment")
    record_attempt(span, "payment-1", grpc.StatusCode.UNAVAILABLE)
    record_attempt(span, "payment-2", grpc.StatusCode.OK)
    end_client_span(span, grpc.StatusCode.OK, "payment-2")
    seen = one(spans, SpanKind.CLIENT)
    assert seen.name == "payment.v1.PaymentService/Charge"
    assert seen.parent is not None
    assert seen.parent.span_id == parent.get_span_context().span_id
    attributes = dict(seen.attributes or {})
    assert attributes == {
        "rpc.system": "grpc",
        "rpc.service": "payment.v1.PaymentService",
        "rpc.method": "Charge",
        "peer.service": "payment",
        "rpc.grpc.status_code": 0,
        "mesh.instance": "payment-2",
    }
    assert [(event.name, dict(event.attributes or {})) for event in seen.events] == [
        ("attempt", {"mesh.instance": "payment-1", "rpc.grpc.status_code": 14}),
        ("attempt", {"mesh.instance": "payment-2", "rpc.grpc.status_code": 0}),
    ]
    assert seen.status.status_code is StatusCode.UNSET


def test_a_failed_client_call_is_an_error_with_its_details(spans):
    """For a client every status but OK is one."""
    span = start_client_span(PATH, "t")
    end_client_span(span, grpc.StatusCode.NOT_FOUND, None, "no such thing")
    seen = one(spans, SpanKind.CLIENT)
    assert seen.status.status_code is StatusCode.ERROR
    assert seen.status.description == "no such thing"


def test_what_is_injected_is_metadata_that_continues_the_span(spans):
    """traceparent of the span, and the baggage of the context, with keys that gRPC accepts."""
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    try:
        span = start_client_span(PATH, "t")
        injected = dict(inject(span))
    finally:
        context.detach(token)
    ids = span.get_span_context()
    assert injected == {
        "traceparent": f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}",
        "baggage": "tenant=acme",
    }
    span.end()


WITHOUT_SDK = """
from opentelemetry import context, propagate, trace
from meshrpc.telemetry.tracing import end_client_span, inject, start_client_span
import grpc, sys
span = start_client_span("/t.T/it", "t")
assert inject(span) == (), inject(span)
end_client_span(span, grpc.StatusCode.OK, "a")
came = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
context.attach(propagate.extract(came))
span = start_client_span("/t.T/it", "t")
assert dict(inject(span)) == came, inject(span)
assert "opentelemetry.sdk" not in sys.modules
"""


def test_without_an_sdk_the_trace_of_others_passes_through():
    """A service that records nothing injects nothing of its own and breaks no trace."""
    subprocess.run([sys.executable, "-c", WITHOUT_SDK], check=True, timeout=30)


EXPORTING = """
import asyncio, sys
import grpc, grpc.aio
from meshrpc.server.service import Service

async def echo(request, context):
    return request

async def main():
    service = Service("shop", version="v7", control="none", registry="memory:")
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
        "t.T", {"it": grpc.unary_unary_rpc_method_handler(echo)}),))
    async with service:
        async with grpc.aio.insecure_channel(service.address) as channel:
            await channel.unary_unary("/t.T/it")(b"")
        print(service.instance.id)

assert "opentelemetry.sdk" not in sys.modules
asyncio.run(main())
"""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:
        self.spans += request.resource_spans
        return trace_service_pb2.ExportTraceServiceResponse()


async def run_exporting(endpoint: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        EXPORTING,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            # A patient exporter: what bounds the wait has to be ours.
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
            "PYTHONPATH": ".",
        },
    )
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out.decode().strip()


@pytest.mark.process
async def test_spans_go_to_the_collector_that_the_environment_names():
    """With an endpoint set, a service sends its spans, the last ones before it has left."""
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        instance_id = await run_exporting(f"http://127.0.0.1:{port}")
    finally:
        await server.stop(None)
    (resource,) = collector.spans
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert attributes["service.name"] == "shop"
    assert attributes["service.instance.id"] == instance_id
    assert attributes["service.version"] == "v7"
    assert [span.name for span in resource.scope_spans[0].spans] == ["t.T/it"]


def test_an_exporter_that_cannot_be_made_is_a_warning(monkeypatch, caplog):
    """A variable of OpenTelemetry's that makes no sense keeps no service from serving."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setattr(trace, "set_tracer_provider", lambda provider: None)
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert start_export("shop", "shop-1", environ=environ) is None
    assert "spans are not exported: could not convert string to float: 'soon'" in caplog.text


@pytest.mark.process
async def test_a_collector_that_is_gone_holds_nobody_up():
    """The process serves, leaves and ends in time, with exit code 0."""
    started = asyncio.get_running_loop().time()
    await run_exporting("http://127.0.0.1:1")
    assert asyncio.get_running_loop().time() - started < 15

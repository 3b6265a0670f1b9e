"""The demo's span collector: OTLP over gRPC, kept in memory.

Every process of the demo sends its spans here, as it would send them to Jaeger or Tempo. From
the callers' spans come the live figures per instance; whole traces are kept to draw one. It
listens in a thread of its own: processes send their last spans while they are being ended, and the
demo's loop waits for that.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from meshrpc.telemetry import tracing

_TRACES = 500
"""Traces kept; the oldest goes first."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One failed attempt of a call, from its event on the caller's span."""

    instance: str
    code: grpc.StatusCode


@dataclass(frozen=True, slots=True)
class Span:
    """One span, as far as the demo looks at it. Times are seconds."""

    trace: bytes
    id: bytes
    parent: bytes
    name: str
    service: str
    """The process that made it, by service name."""
    instance: str
    """The instance that made it."""
    is_client: bool
    callee: str
    """Client spans: the service called."""
    callee_instance: str
    """Client spans: the instance that answered last."""
    start: float
    duration: float
    code: grpc.StatusCode
    attempts: tuple[Attempt, ...]
    """Client spans: the attempts that failed before the last one."""


OnSpan = Callable[[Span], None]


_LAST_BATCH = 1.0
"""Seconds that a batch of spans which is being taken in has to get there."""


class SpanCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives spans on a free port of this machine while its block lasts."""

    def __init__(self, on_span: OnSpan) -> None:
        self.endpoint = ""
        """What OTEL_EXPORTER_OTLP_ENDPOINT is set to."""
        self._on_span = on_span
        self._traces: OrderedDict[bytes, list[Span]] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop
        self._server: grpc.Server

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._server = grpc.server(
            ThreadPoolExecutor(1, "span-collector"), options=[("grpc.so_reuseport", 0)]
        )
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.endpoint = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._server.stop(_LAST_BATCH).wait)

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Take in one batch of one process."""
        del context
        self._loop.call_soon_threadsafe(self._take_in, tuple(_read(request)))
        return trace_service_pb2.ExportTraceServiceResponse()

    def _take_in(self, spans: Iterable[Span]) -> None:
        for span in spans:
            trace = self._traces.setdefault(span.trace, [])
            trace.append(span)
            self._on_span(span)
        while len(self._traces) > _TRACES:
            self._traces.popitem(last=False)

    def best_trace(self) -> list[Span]:
        """Return the trace that shows most: over most services, then with most failed attempts.

        Only whole ones count, in which every span but the root has its parent.
        """
        whole = [trace for trace in self._traces.values() if _is_whole(trace)]
        return max(whole, key=_worth, default=[])


def _is_whole(trace: list[Span]) -> bool:
    ids = {span.id for span in trace}
    return sum(span.parent not in ids for span in trace) == 1


def _worth(trace: list[Span]) -> tuple[int, int, int]:
    failed = sum(len(span.attempts) for span in trace)
    return len({span.service for span in trace}), min(failed, 1), len(trace)


def _read(request: trace_service_pb2.ExportTraceServiceRequest) -> Iterator[Span]:
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _read_span(span, resource)


def _read_span(span: trace_pb2.Span, resource: dict[str, Any]) -> Span:
    attributes = _attributes(span.attributes)
    return Span(
        trace=span.trace_id,
        id=span.span_id,
        parent=span.parent_span_id,
        name=span.name,
        service=resource.get("service.name", ""),
        instance=resource.get("service.instance.id", ""),
        is_client=span.kind == trace_pb2.Span.SPAN_KIND_CLIENT,
        callee=attributes.get(tracing.PEER_SERVICE, ""),
        callee_instance=attributes.get(tracing.MESH_INSTANCE, ""),
        start=span.start_time_unix_nano / 1e9,
        duration=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        code=_code(attributes.get(tracing.RPC_STATUS, 0)),
        attempts=tuple(
            Attempt(said.get(tracing.MESH_INSTANCE, ""), _code(said.get(tracing.RPC_STATUS, 2)))
            for event in span.events
            if event.name == tracing.ATTEMPT_EVENT
            for said in (_attributes(event.attributes),)
        ),
    )


_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _code(number: int) -> grpc.StatusCode:
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None

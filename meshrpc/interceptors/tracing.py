"""Server spans: each call handled is one, under the span of its caller.

By OpenTelemetry's semantic conventions for gRPC. The span is current in the handler's own task
and nowhere else, and ends on every way out. Health checks and reflection are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import SpanKind, Status, StatusCode

from meshrpc.interceptors.compose import ServerInterceptor
from meshrpc.interceptors.method_handler import is_infrastructure
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.telemetry.tracing import (
    MESH_CALLER,
    RPC_STATUS,
    TRACER,
    span_name_and_attributes,
)
from meshrpc.wire import Metadata

Filter = Callable[[grpc.HandlerCallDetails], bool]

# The server's own faults; what the caller did wrong is no error of this span.
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class TracingInterceptor(ServerInterceptor):
    """Makes a server span of each call that `filter_` lets through.

    `filter_` is a method filter of opentelemetry-instrumentation-grpc, or any function of
    grpcio's HandlerCallDetails; without one, all but health checks and reflection are traced.
    """

    def __init__(self, filter_: Filter | None = None) -> None:
        super().__init__()
        self._filter = filter_

    def applies_to(self, method: str) -> bool:
        """Every method but those of health checks and reflection; any, when there is a filter."""
        return self._filter is not None or not is_infrastructure(method)

    def begin(self, call: ServerCall) -> None:
        """Start the span and make it current for the rest of this task."""
        if call.span is not None:
            return
        if self._filter is not None and not self._filter(_Details(call.method, call.metadata)):
            return
        # The caller's context, on top of nothing: what this task inherited is another trace.
        came_with = propagate.extract(call.metadata, otel_context.Context(), _METADATA)
        name, attributes = span_name_and_attributes(call.method)
        span = TRACER.start_span(name, came_with, SpanKind.SERVER, attributes)
        if span.is_recording():
            span.set_attribute(MESH_CALLER, call.caller)
        call.span = span
        otel_context.attach(trace.set_span_in_context(span, came_with))

    def end(self, call: ServerCall, code: grpc.StatusCode) -> None:
        """End the span with the call's status."""
        span = call.span
        if span is None:
            return
        if span.is_recording():
            span.set_attribute(RPC_STATUS, code.value[0])
            if code in _FAULTS:
                span.set_status(Status(StatusCode.ERROR, code.name))
        span.end()


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str, invocation_metadata: Metadata) -> None:
        self.method = method
        self.invocation_metadata = invocation_metadata


class _MetadataGetter(Getter[Metadata]):
    def get(self, carrier: Metadata, key: str) -> list[str] | None:
        wanted = key.lower()
        found = [value for name, value in carrier if name == wanted and isinstance(value, str)]
        return found or None

    def keys(self, carrier: Metadata) -> list[str]:
        return [name for name, _value in carrier]


_METADATA = _MetadataGetter()

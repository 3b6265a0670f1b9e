"""Spans of calls, by OpenTelemetry's semantic conventions for gRPC, with its API alone.

One client span covers a logical call; its attempts are events on it. Spans are started and ended
by hand, never as a context manager: a call outlives the code that starts it. Without an SDK
nothing records, and what came in is passed on: a service that does not trace never breaks the
trace of those around it. Sampling and exporting are the SDK's business (`export.py`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import grpc
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import Setter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from meshrpc.wire import split_method

RPC_SYSTEM: Final = "rpc.system"
RPC_SERVICE: Final = "rpc.service"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.grpc.status_code"
PEER_SERVICE: Final = "peer.service"
MESH_INSTANCE: Final = "mesh.instance"
MESH_CALLER: Final = "mesh.caller"

ATTEMPT_EVENT: Final = "attempt"

# Follows whichever provider is installed, also one installed later.
TRACER: Final = trace.get_tracer("meshrpc")

_Pairs = list[tuple[str, str]]


class _PairsSetter(Setter[_Pairs]):
    def set(self, carrier: _Pairs, key: str, value: str) -> None:
        carrier.append((key.lower(), value))  # gRPC refuses keys with capitals; B3 has them


_SETTER = _PairsSetter()


@lru_cache(maxsize=1024)  # methods of a program are few; names sent by strangers must not pile up
def span_name_and_attributes(path: str) -> tuple[str, dict[str, AttributeValue]]:
    """Return name and attributes of a span for `/pkg.Service/Method`. Do not change the dict."""
    service, method = split_method(path)
    return path.lstrip("/"), {RPC_SYSTEM: "grpc", RPC_SERVICE: service, RPC_METHOD: method}


@lru_cache(maxsize=1024)
def _client_name_and_attributes(path: str, service: str) -> tuple[str, dict[str, AttributeValue]]:
    name, attributes = span_name_and_attributes(path)
    return name, {**attributes, PEER_SERVICE: service}


def start_client_span(path: str, service: str) -> Span:
    """Start the span of one logical call of `/pkg.Service/Method` on the mesh's `service`.

    Its parent is the current span. It must be ended with `end_client_span`.
    """
    name, attributes = _client_name_and_attributes(path, service)
    return TRACER.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)


def inject(span: Span) -> tuple[tuple[str, str], ...]:
    """Return the metadata that makes the called service continue `span`, baggage included.

    Without a trace this is what the current context carries, most often nothing.
    """
    if not span.get_span_context().is_valid and not otel_context.get_current():
        return ()
    carrier: _Pairs = []
    propagate.inject(carrier, trace.set_span_in_context(span), _SETTER)
    return tuple(carrier)


def record_attempt(span: Span, instance_id: str | None, code: grpc.StatusCode) -> None:
    """Note on the call's span that one attempt ended: on which instance, and how."""
    if span.is_recording():
        span.add_event(ATTEMPT_EVENT, {MESH_INSTANCE: instance_id or "", RPC_STATUS: code.value[0]})


def end_client_span(
    span: Span, code: grpc.StatusCode, instance_id: str | None = None, details: str | None = None
) -> None:
    """End the call's span; for a client every status but OK is an error."""
    if span.is_recording():
        span.set_attribute(RPC_STATUS, code.value[0])
        if instance_id is not None:
            span.set_attribute(MESH_INSTANCE, instance_id)
        if code is not grpc.StatusCode.OK:
            span.set_status(Status(StatusCode.ERROR, details or code.name))
    span.end()

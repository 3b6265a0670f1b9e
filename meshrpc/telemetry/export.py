"""Sending spans to a collector, when the environment names one.

The SDK is imported only then: a process that exports nothing pays neither its start-up time nor
its memory. A tracer provider that the program has installed itself is left alone.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping

from opentelemetry import trace

_LOG = logging.getLogger("meshrpc.telemetry")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

# A collector that does not answer must not hold up a process that wants to end.
FLUSH_WITHIN = 3.0


def start_export(
    service: str,
    instance_id: str,
    version: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Callable[[], None] | None:
    """Export spans over OTLP/gRPC as OpenTelemetry's environment variables say.

    Returns a function that sends what is left, within `FLUSH_WITHIN` seconds; it blocks, and may be
    called more than once. None when there is no endpoint, or the program has a provider.
    """
    environ = os.environ if environ is None else environ
    if not any(environ.get(name) for name in _ENDPOINTS):
        return None
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), "grpc")
    if protocol != "grpc":
        _LOG.warning("spans are not exported: OTLP over %r; meshrpc has grpc", protocol)
        return None
    try:
        return _install(service, instance_id, version, environ)
    except Exception as error:  # noqa: BLE001 - a variable of OpenTelemetry's that makes no sense
        _LOG.warning("spans are not exported: %s", error)
        return None


def _install(
    service: str, instance_id: str, version: str | None, environ: Mapping[str, str]
) -> Callable[[], None]:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    attributes = {"service.instance.id": instance_id}
    if not environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = service
    if version is not None:
        attributes["service.version"] = version
    # Not shut down with the service: it may be entered again, and a provider cannot be replaced.
    # Nor by the SDK at exit, which waits for a collector that is gone.
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    def flush() -> None:
        # The SDK takes a timeout here and ignores it. A daemon thread can be left behind.
        flushing = threading.Thread(target=provider.force_flush, daemon=True)
        flushing.start()
        flushing.join(FLUSH_WITHIN)
        if flushing.is_alive():
            _LOG.warning("the collector did not take the last spans in time")

    return flush

"""A service as it was put together, before it is entered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from meshrpc.client.channel import Channel
from meshrpc.interceptors.compose import ServerInterceptor
from meshrpc.interceptors.concurrency import ConcurrencyInterceptor
from meshrpc.interceptors.load_report import LoadReportInterceptor
from meshrpc.interceptors.rate_limit import RateLimitInterceptor
from meshrpc.mesh import Mesh
from meshrpc.server.error_mapping import ErrorMapping
from meshrpc.server.handler import HandlerTable
from meshrpc.server.hooks import Hooks
from meshrpc.server.readiness import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a service has to offer, as it was put together before it is entered."""

    name: str
    mesh: Mesh
    handlers: HandlerTable
    concerns: tuple[ServerInterceptor, ...]
    """The mesh's interceptors, outermost first."""
    inner: tuple[grpc.aio.ServerInterceptor, ...]
    """grpcio's own kind."""
    limits: RateLimitInterceptor
    concurrency: ConcurrencyInterceptor
    load_reports: LoadReportInterceptor
    """Those of `concerns` that follow policy."""
    errors: ErrorMapping
    hooks: Hooks
    required: tuple[Channel, ...]
    """To the services that are waited for before this one starts."""
    checks: tuple[Check, ...]
    """What says whether it is ready."""
    options: tuple[tuple[str, Any], ...]
    grace: float
    incarnation: int
    replaces: str | None
    """The id of the instance whose place this one takes."""
    shares_port: bool
    """Whether a supervisor keeps the port of `shared_listen` for several processes."""

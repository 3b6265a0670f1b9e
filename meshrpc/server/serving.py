"""A service between entering and leaving: its server, its membership and its registration."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc.aio import _server as grpc_server
from grpc_health.v1 import (  # type: ignore[import-untyped]
    health,
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection,
    reflection_pb2_grpc,
)

from meshrpc.interceptors.compose import ServerInterceptor
from meshrpc.interceptors.load_report import LoadReportInterceptor
from meshrpc.interceptors.rate_limit import RateLimitInterceptor
from meshrpc.load_report import LoadReport
from meshrpc.mesh import Mesh
from meshrpc.policy.model import BalancerKind, EffectivePolicy
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.registration import Registration
from meshrpc.server import drain
from meshrpc.server.handler import ActiveCalls, HandlerTable
from meshrpc.server.listening import advertised, bind
from meshrpc.server.options import SERVER_OPTIONS
from meshrpc.telemetry.export import start_export
from meshrpc.telemetry.loop_load import LONG_WINDOW

_LOG = logging.getLogger("meshrpc.server")

_SERVING = health_pb2.HealthCheckResponse.SERVING


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
    load_reports: LoadReportInterceptor
    """Those of `concerns` that follow policy."""
    options: tuple[tuple[str, Any], ...]
    grace: float
    incarnation: int
    replaces: str | None
    """The id of the instance whose place this one takes."""


class Serving:
    """One time of serving. `start` and `stop` once each.

    `told` is set when the process is told to stop: starting then waits for nobody. `hurry` cuts
    the waits of leaving short.
    """

    def __init__(self, offer: Offer, *, told: asyncio.Event, hurry: asyncio.Event) -> None:
        self.address = ""
        self.registration: Registration
        self._told = told
        self._hurry = hurry
        self._offer = offer
        self._mesh = offer.mesh
        self._active = ActiveCalls()
        self._infrastructure = ActiveCalls()
        self._draining = asyncio.Event()
        self._health = health.aio.HealthServicer()
        self._exits = AsyncExitStack()
        self._server: grpc.aio.Server

    def __repr__(self) -> str:
        state = "draining" if self._draining.is_set() else "serving"
        return f"{state} on {self.address} calls={len(self._active)}"

    @property
    def active_calls(self) -> int:
        """Calls being handled, those of health checks and reflection too."""
        return len(self._active) + len(self._infrastructure)

    @property
    def is_stopping(self) -> bool:
        """Whether leaving waits for nothing but grpc: no call runs, and none will come."""
        return self._infrastructure.is_cut and not self._active

    async def start(self) -> None:
        """Join the mesh, listen, answer, and only then become known."""
        mesh = self._mesh
        try:
            flush = start_export(self._offer.name, mesh.id, mesh.settings.version)
            if flush is not None:
                self._exits.push_async_callback(asyncio.to_thread, flush)
            await self._exits.enter_async_context(mesh)
            self._exits.callback(self._offer.load_reports.disable)
            self._exits.callback(mesh.on_policy(self._offer.name, self._follow).close)
            self._server = await self._create_server()
            self.address = bind(self._server, mesh.settings.listen)
            # At once: a server that was bound but never started does not let go of its port.
            await self._server.start()
            self._exits.push_async_callback(self._server.stop, None)
            reachable = advertised(self.address, mesh.settings.advertise)
            self.registration = self._create_registration(reachable)
            self._exits.push_async_callback(self.registration.stop)
            await drain.unless(self._told, self.registration.start(), None)
        except BaseException:
            await self._exits.aclose()
            raise

    async def stop(self) -> None:
        """Become unknown, finish what runs, and let go of everything."""
        registration = self.registration

        async def mark_draining() -> bool:
            await registration.drain()
            return registration.instance.state is State.DRAINING

        departure = drain.Departure(
            say_not_serving=self._health.enter_graceful_shutdown,
            tell_calls=self._draining.set,
            mark_draining=mark_draining,
            deregister=registration.stop,
            acknowledges=self._mesh.registry.acknowledges,
        )
        clock = self._mesh.clock
        try:
            await drain.leave(departure, clock=clock, hurry=self._hurry)
            # A health check may be watched for ever; only real calls are waited for.
            self._infrastructure.cut()
            await drain.stop(
                self._server,
                self._active.cut,
                grace=self._offer.grace,
                clock=clock,
                hurry=self._hurry,
            )
            if self._active:
                _LOG.warning(
                    "%d calls go on although they were cancelled, and so does this process: %s",
                    len(self._active),
                    ", ".join(self._active.methods),
                )
        finally:
            await self._exits.aclose()

    async def _create_server(self) -> grpc.aio.Server:
        offer = self._offer
        table = offer.handlers.copy()
        await self._add_infrastructure(table)
        table.wrap(
            offer.concerns,
            inner=offer.inner,
            active=self._active,
            infrastructure=self._infrastructure,
            draining=self._draining,
            clock=self._mesh.clock,
        )
        options = {**dict(SERVER_OPTIONS), **dict(offer.options)}
        # Not grpc.aio.server: OpenTelemetry's instrumentation replaces that name with a function
        # that adds its own interceptor, and every call would have two server spans.
        server: grpc.aio.Server = grpc_server.server(
            handlers=(table,), options=tuple(options.items())
        )
        return server

    async def _add_infrastructure(self, table: HandlerTable) -> None:
        """Add health checks and reflection, unless the user has registered them."""
        services = table.services
        if health.SERVICE_NAME not in services:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, table)
            for name in services:
                await self._health.set(name, _SERVING)
        if reflection.SERVICE_NAME not in services:
            names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
                reflection.aio.ReflectionServicer(names), table
            )

    def _create_registration(self, address: str) -> Registration:
        mesh, settings = self._mesh, self._mesh.settings
        instance = Instance(
            id=mesh.id,
            service=self._offer.name,
            address=address,
            namespace=settings.namespace,
            version=settings.version,
            zone=settings.zone,
            weight=settings.weight,
            labels=settings.labels,
            pid=os.getpid(),
            incarnation=self._offer.incarnation,
            health=Health.SERVING,
        )
        return Registration(
            mesh.registry,
            instance,
            replaces=self._offer.replaces,
            load=self._load,
            clock=mesh.clock,
            rng=mesh.rng,
        )

    def _follow(self, policy: EffectivePolicy) -> None:
        self._offer.limits.configure(policy.rate_limits)
        # Nobody else reads the reports, so nobody else pays for them.
        if policy.balancer.kind is BalancerKind.WEIGHTED_ROUND_ROBIN:
            self._offer.load_reports.enable()
        else:
            self._offer.load_reports.disable()

    def _load(self) -> LoadReport | None:
        return self._offer.load_reports.report(LONG_WINDOW)

"""A service between entering and leaving: its server, its membership and its registration."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NoReturn

import grpc
import grpc.aio
from grpc_health.v1 import (  # type: ignore[import-untyped]
    health,
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection,
    reflection_pb2_grpc,
)

from meshrpc.client.channel import Channel
from meshrpc.interceptors.draining import Draining
from meshrpc.load_report import LoadReport
from meshrpc.policy.model import BalancerKind, EffectivePolicy
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.registration import Registration
from meshrpc.server import drain, foreign_logs, requirements
from meshrpc.server.active_calls import ActiveCalls
from meshrpc.server.handler import HandlerTable
from meshrpc.server.health import HealthServicer
from meshrpc.server.intake import create_server
from meshrpc.server.listening import Together, advertised, bind, bind_shared, until_ended
from meshrpc.server.offer import Offer
from meshrpc.server.options import SERVER_OPTIONS
from meshrpc.server.readiness import Readiness
from meshrpc.server.request_arrival import request_timeout
from meshrpc.telemetry.export import start_export
from meshrpc.telemetry.loop_load import LONG_WINDOW

_LOG = logging.getLogger("meshrpc.server")

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class StartInterrupted(Exception):
    """The process was told to stop before it had started."""


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
        self._draining = Draining()
        self._health = HealthServicer()
        self.readiness = Readiness(offer.checks, say=self._say, clock=offer.mesh.clock)
        self._exits = AsyncExitStack()
        self._server: drain.Stoppable
        self._table: HandlerTable
        self._listening: list[grpc.aio.Server] = []

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
        """Join the mesh, listen, answer, and only then become known.

        Raises:
            StartInterrupted: the process was told to stop before it listened.
            StartupError: a startup hook failed.
        """
        mesh = self._mesh
        try:
            flush = start_export(self._offer.name, mesh.id, mesh.settings.version)
            if flush is not None:
                self._exits.push_async_callback(asyncio.to_thread, flush)
            self._exits.enter_context(foreign_logs.limited())
            await self._exits.enter_async_context(mesh)
            self._exits.callback(self._offer.load_reports.disable)
            self._exits.callback(mesh.on_policy(self._offer.name, self._follow).close)
            # Before they run: what one startup hook opened is closed also when the next one fails.
            self._exits.push_async_callback(self._offer.hooks.shut_down, self._hurry)
            await self._prepare()
            await self._listen()
            reachable = advertised(self.address, mesh.settings.advertise)
            self.registration = self._create_registration(reachable)
            self._exits.push_async_callback(self.registration.stop)
            self._exits.push_async_callback(self.readiness.stop)
            await drain.unless(self._told, self._become_known(), None)
        except BaseException:
            await self._exits.aclose()
            raise

    async def until_broken(self) -> NoReturn:
        """Wait for gRPC's server to end by itself, which only a fault in it can bring about.

        Raises:
            RuntimeError: it has.
        """
        ending = [asyncio.ensure_future(until_ended(server)) for server in self._listening]
        try:
            (first, *_), _ = await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ending:
                each.cancel()
            await asyncio.wait(ending)
        error = first.exception()
        raise RuntimeError(f"gRPC's server has ended by itself: {error!r}") from error

    async def _prepare(self) -> None:
        if not await drain.unless(self._told, self._become_able(), None):
            raise StartInterrupted(f"{self._offer.name} was told to stop")

    async def _become_able(self) -> bool:
        offer = self._offer

        def is_there(channel: Channel) -> bool:
            return self._mesh.destination(channel).ready_count > 0

        required = {each.target: partial(is_there, each) for each in offer.required}
        await requirements.wait_for(required, self._mesh.clock)
        await offer.hooks.start_up()
        return True

    async def _become_known(self) -> None:
        await self.readiness.start()
        await self.registration.start()

    async def _say(self, is_ready: bool) -> None:
        for name in ("", *self._offer.handlers.services):
            await self._health.set(name, _SERVING if is_ready else _NOT_SERVING)
        self.registration.say(Health.SERVING if is_ready else Health.NOT_SERVING)

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
            await self.readiness.stop()
            await drain.leave(departure, clock=clock, hurry=self._hurry)
            # A health check may be watched for ever; only real calls are waited for.
            self._infrastructure.cut()
            await drain.stop(
                self._server,
                self._cut,
                grace=self._offer.grace,
                clock=clock,
                hurry=self._hurry,
            )
            # grpcio's server has stopped when its core is done. Handlers that heard of it last,
            # by their client's going or by the stop itself, are then still answering.
            await self._active.ended(drain.LAST_WORDS)
            await self._infrastructure.ended(drain.LAST_WORDS)
            if self._active:
                _LOG.warning(
                    "%d calls go on although they were cancelled, and so does this process: %s",
                    len(self._active),
                    ", ".join(self._active.methods),
                )
        finally:
            await self._exits.aclose()

    def _cut(self) -> None:
        self._active.cut()
        self._table.cut()

    async def _listen(self) -> None:
        """Answer on this process's own port, and on the one for clients outside the mesh."""
        settings = self._mesh.settings
        self._table = table = await self._create_table()
        own = self._create_server(table)
        self.address = bind(own, settings.listen)
        # At once: a server that was bound but never started does not let go of its port.
        await own.start()
        self._listening.append(own)
        self._exits.push_async_callback(own.stop, None)
        self._server = own
        if settings.shared_listen is None:
            return
        # A server of its own: whether a port can be shared is one option for all of a server's
        # ports, and the own port must not be.
        is_reserved = self._offer.shares_port
        shared = self._create_server(table, (("grpc.so_reuseport", int(is_reserved)),))
        bind_shared(shared, settings.shared_listen, is_reserved=is_reserved)
        await shared.start()
        self._listening.append(shared)
        self._exits.push_async_callback(shared.stop, None)
        self._server = Together(own, shared)

    async def _create_table(self) -> HandlerTable:
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
            errors=offer.errors,
            request_timeout=request_timeout({**dict(SERVER_OPTIONS), **dict(offer.options)}),
        )
        return table

    def _create_server(
        self, table: HandlerTable, options: tuple[tuple[str, Any], ...] = ()
    ) -> grpc.aio.Server:
        chosen = {**dict(SERVER_OPTIONS), **dict(self._offer.options), **dict(options)}
        server, intake = create_server((table,), tuple(chosen.items()))
        self._offer.concurrency.watch_intake(intake)
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
        self._offer.concurrency.configure(policy.concurrency)
        # Nobody else reads the reports, so nobody else pays for them.
        if policy.balancer.kind is BalancerKind.WEIGHTED_ROUND_ROBIN:
            self._offer.load_reports.enable()
        else:
            self._offer.load_reports.disable()

    def _load(self) -> LoadReport | None:
        return self._offer.load_reports.report(LONG_WINDOW)

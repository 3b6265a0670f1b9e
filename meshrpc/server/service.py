"""A service: gRPC handlers that are found, watched over and called through the mesh.

`Service` looks like a grpc server to generated code. While it is entered it listens, is a member
of the mesh and registered; leaving it drains (`drain.py`). What is live between entering and
leaving is one `Serving`, so a service can be entered again, also in another event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from meshrpc.client.channel import Channel
from meshrpc.errors import SettingsError
from meshrpc.interceptors import in_order
from meshrpc.interceptors.arrival import DeadlineInterceptor, TargetInterceptor
from meshrpc.interceptors.compose import ServerInterceptor
from meshrpc.interceptors.concurrency import ConcurrencyInterceptor
from meshrpc.interceptors.load_report import LoadReportInterceptor
from meshrpc.interceptors.rate_limit import RateLimitInterceptor
from meshrpc.interceptors.sync_handler import SyncHandlers
from meshrpc.interceptors.tracing import TracingInterceptor
from meshrpc.mesh import Mesh
from meshrpc.registry.instance import Instance
from meshrpc.server import drain
from meshrpc.server.connection_age import MAX_CONNECTION_AGE, age_options
from meshrpc.server.error_mapping import ErrorMapping
from meshrpc.server.handler import HandlerTable
from meshrpc.server.hooks import Hook, Hooks
from meshrpc.server.offer import Offer
from meshrpc.server.readiness import Check
from meshrpc.server.serving import Serving, StartInterrupted
from meshrpc.server.signals import stop_signals
from meshrpc.settings import Settings

_LOG = logging.getLogger("meshrpc.server")

DEFAULT_GRACE = 30.0
"""Seconds that running calls have to end once nobody sends new ones."""

T = TypeVar("T")
HookT = TypeVar("HookT", bound=Hook)
CheckT = TypeVar("CheckT", bound=Check)


class Service:
    """A named service. Give it to generated `add_..._to_server` functions, then `run` it.

    Args:
        name: what callers call this service.
        interceptors: the mesh's `ServerInterceptor`s, or grpcio's own server interceptors, which
            run next to the handlers.
        options: grpc channel arguments of the server, over the mesh's own.
        grace: seconds that running calls have to end when the service leaves.
        errors: exceptions of handlers and the status each becomes, with the exception's own text.
        requires: services that are waited for, half a minute at most, before this one starts.
        max_connection_age: seconds after which a client's connection is replaced by a new one, give
            or take a tenth; None: it may stay for ever.
        settings: see `meshrpc.settings.Settings`; each can be given here or in the environment.

    Raises:
        SettingsError: a setting cannot be used.
        ValueError: one of `interceptors` is none.
    """

    def __init__(
        self,
        name: str,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        options: Sequence[tuple[str, Any]] = (),
        grace: float = DEFAULT_GRACE,
        errors: Mapping[type[Exception], grpc.StatusCode] | None = None,
        requires: Sequence[str] = (),
        max_connection_age: float | None = MAX_CONNECTION_AGE,
        **settings: Any,
    ) -> None:
        self.name = name
        if not (isinstance(grace, (int, float)) and 0 <= grace < math.inf):
            raise SettingsError(f"grace={grace!r}: seconds, 0 or more")
        self.grace = grace
        self.replaces: str | None = None
        """The id of an instance that died without leaving and whose place this one takes: it is
        deregistered as soon as this one is registered. Supervised workers have it set."""
        self.shares_port = False
        """Whether a supervisor keeps the port of `shared_listen` for several processes."""
        self.mesh = Mesh(name, **settings)
        """This process's membership; `mesh.channel` makes channels to other services."""
        for each in interceptors:
            if not isinstance(each, grpc.aio.ServerInterceptor):
                raise ValueError(f"{each!r} is no grpc.aio.ServerInterceptor")  # noqa: TRY004 - grpcio's
        self._options = (*age_options(max_connection_age), *options)
        names = (requires,) if isinstance(requires, str) else tuple(requires)
        if name in names:
            raise SettingsError(f"service {name!r} cannot require itself: it would never start")
        self._required = tuple(self.mesh.channel(each) for each in names)
        self._hooks = Hooks()
        self._checks: list[Check] = []
        self._errors = ErrorMapping(errors)
        self._limits = RateLimitInterceptor(clock=self.mesh.clock)
        self.mesh.fleet_limits = self._limits
        self._concurrency = ConcurrencyInterceptor(clock=self.mesh.clock)
        self._target = TargetInterceptor(self.mesh.id)
        own = [each for each in interceptors if isinstance(each, ServerInterceptor)]
        if not any(isinstance(each, TracingInterceptor) for each in own):
            own.append(TracingInterceptor())
        self._sync_handlers = SyncHandlers()
        self._load_reports = (
            next((each for each in own if isinstance(each, LoadReportInterceptor)), None)
            or LoadReportInterceptor()
        )
        self._load_reports.threads = self._sync_handlers.load
        own += [self._limits, self._concurrency, DeadlineInterceptor(), self._target]
        if self._load_reports not in own:
            own.append(self._load_reports)
        self._concerns = in_order(own)
        self._inner = tuple(each for each in interceptors if each not in own)
        self._handlers = HandlerTable(self._sync_handlers)
        self._serving: Serving | None = None
        self._incarnation = 0

    def __repr__(self) -> str:
        return f"<Service {self.name} {self._serving or 'not serving'}>"

    @property
    def settings(self) -> Settings:
        """What this process was told; can be replaced while the service is not entered."""
        return self.mesh.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._must_not_serve("its settings are fixed")
        self.mesh.settings = settings

    @property
    def address(self) -> str:
        """Where the service listens, as `host:port`; only while it is entered."""
        return self._live().address

    @property
    def instance(self) -> Instance:
        """The record of this process in the registry; only while the service is entered."""
        return self._live().registration.instance

    def channel(self, target: str, **arguments: Any) -> Channel:
        """Return a channel to another service, as `Mesh.channel` does."""
        return self.mesh.channel(target, **arguments)

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        """Register handlers; called by generated code."""
        self._must_not_serve("handlers are registered before")
        self._handlers.add_generic_rpc_handlers(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Register handlers by name; called by newer generated code as well."""
        self._must_not_serve("handlers are registered before")
        self._handlers.add_registered_method_handlers(service_name, method_handlers)

    def on_startup(self, hook: HookT) -> HookT:
        """Have `hook` run before the service listens; for use as a decorator.

        Channels work by then. Async or plain; plain ones run in a thread. If it fails, the service
        does not start, with a `StartupError`.
        """
        self._must_not_serve("hooks are registered before")
        self._hooks.startup.append(_callable(hook))
        return hook

    def on_shutdown(self, hook: HookT) -> HookT:
        """Have `hook` run after the last call, the last one first, for 10 s at most each.

        Channels still work. Also when a startup hook has failed, or another shutdown hook.
        """
        self._must_not_serve("hooks are registered before")
        self._hooks.shutdown.append(_callable(hook))
        return hook

    def ready_when(self, check: CheckT) -> CheckT:
        """Have callers go elsewhere while `check` returns false; for use as a decorator.

        It is asked once a second, async or plain. To raise, or to take 5 s, is to say no. As long
        as no instance of the service is ready, all of them are called.
        """
        self._must_not_serve("checks are registered before")
        self._checks.append(_callable(check))
        return check

    @property
    def shutdown_within(self) -> float:
        """Seconds that the shutdown hooks may take, beside everything else about leaving."""
        return self._hooks.shutdown_within

    async def __aenter__(self) -> Self:
        await self._enter(asyncio.Event(), asyncio.Event())
        return self

    async def _enter(self, told: asyncio.Event, hurry: asyncio.Event) -> Serving:
        self._must_not_serve("it cannot be entered twice")
        self._incarnation += 1
        # Tests give the membership another clock and id while it is not entered.
        self._limits.restart(self.mesh.clock)
        self._concurrency.restart(self.mesh.clock)
        self._target.instance_id = self.mesh.id
        serving = Serving(
            Offer(
                name=self.name,
                mesh=self.mesh,
                handlers=self._handlers,
                concerns=self._concerns,
                inner=self._inner,
                limits=self._limits,
                concurrency=self._concurrency,
                load_reports=self._load_reports,
                errors=self._errors,
                hooks=self._hooks,
                required=self._required,
                checks=tuple(self._checks),
                options=self._options,
                grace=self.grace,
                incarnation=self._incarnation,
                replaces=self.replaces,
                shares_port=self.shares_port,
            ),
            told=told,
            hurry=hurry,
        )
        await serving.start()
        self._serving = serving
        return serving

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        serving = self._live()
        try:
            await serving.stop()
        finally:
            self._incarnation = serving.registration.instance.incarnation
            self._serving = None
            self._sync_handlers.close()

    def run(self, *, on_ready: Callable[[Instance], None] | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then drain and return; a second signal cuts that short.

        `on_ready` is called with this process's instance once it serves, has registered, and is
        ready for the first time: whoever replaces processes one after the other may go on then.

        Raises:
            SettingsError: the service cannot start as it is configured.
            StartupError: a startup hook failed.
            RuntimeError: gRPC's server has ended by itself; another process should take over.
        """
        asyncio.run(self._run(on_ready))

    async def _run(self, on_ready: Callable[[Instance], None] | None) -> None:
        told = asyncio.Event()
        hurry = asyncio.Event()

        def on_signal() -> None:
            (hurry if told.is_set() else told).set()

        with stop_signals(on_signal):
            try:
                serving = await self._enter(told, hurry)
            except StartInterrupted as interrupted:
                _LOG.info("%s", interrupted)
                return
            try:
                _LOG.info("%s serves on %s", serving.registration.instance.id, serving.address)

                def say_ready() -> None:
                    if on_ready is not None and not told.is_set():
                        on_ready(serving.registration.instance)

                await drain.unless(told, _until_broken(serving, say_ready), None)
                _LOG.info("%s is leaving", serving.registration.instance.id)
            finally:
                await self._leave()

    def _live(self) -> Serving:
        if self._serving is None:
            raise RuntimeError(f"service {self.name!r} is not entered: use it in `async with`")
        return self._serving

    def _must_not_serve(self, because: str) -> None:
        if self._serving is not None:
            raise RuntimeError(f"service {self.name!r} is entered: {because}")


async def _until_broken(serving: Serving, say_ready: Callable[[], None]) -> None:
    """Wait for gRPC's server to end by itself; say meanwhile that the service is ready, once."""
    broken = asyncio.ensure_future(serving.until_broken())
    ready = asyncio.ensure_future(serving.readiness.has_been_ready.wait())
    try:
        await asyncio.wait([broken, ready], return_when=asyncio.FIRST_COMPLETED)
        if not broken.done():
            say_ready()
        await broken
    finally:
        broken.cancel()
        ready.cancel()
        await asyncio.wait([broken, ready])


def _callable(function: T) -> T:
    if not callable(function):
        raise TypeError(f"{function!r} cannot be called: a hook or check is a function")
    return function

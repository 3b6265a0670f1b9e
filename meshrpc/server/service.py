"""A service: gRPC handlers that are found, watched over and called through the mesh.

`Service` looks like a grpc server to generated code. While it is entered it listens, is a member
of the mesh and registered; leaving it drains (`drain.py`). What is live between entering and
leaving is one `Serving`, so a service can be entered again, also in another event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from meshrpc.client.channel import Channel
from meshrpc.interceptors import in_order
from meshrpc.interceptors.arrival import DeadlineInterceptor, TargetInterceptor
from meshrpc.interceptors.compose import ServerInterceptor
from meshrpc.interceptors.load_report import LoadReportInterceptor
from meshrpc.interceptors.rate_limit import RateLimitInterceptor
from meshrpc.interceptors.sync_handler import SyncHandlers
from meshrpc.interceptors.tracing import TracingInterceptor
from meshrpc.mesh import Mesh
from meshrpc.registry.instance import Instance
from meshrpc.server.handler import HandlerTable
from meshrpc.server.serving import Offer, Serving
from meshrpc.settings import Settings

_LOG = logging.getLogger("meshrpc.server")

DEFAULT_GRACE = 30.0
"""Seconds that running calls have to end once nobody sends new ones."""


class Service:
    """A named service. Give it to generated `add_..._to_server` functions, then `run` it.

    Args:
        name: what callers call this service.
        interceptors: the mesh's `ServerInterceptor`s, or grpcio's own server interceptors, which
            run next to the handlers.
        options: grpc channel arguments of the server, over the mesh's own.
        grace: seconds that running calls have to end when the service leaves.
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
        **settings: Any,
    ) -> None:
        self.name = name
        self.grace = grace
        self.replaces: str | None = None
        """The id of an instance that died without leaving and whose place this one takes: it is
        deregistered as soon as this one is registered. Supervised workers have it set."""
        self.mesh = Mesh(name, **settings)
        """This process's membership; `mesh.channel` makes channels to other services."""
        for each in interceptors:
            if not isinstance(each, grpc.aio.ServerInterceptor):
                raise ValueError(f"{each!r} is no grpc.aio.ServerInterceptor")  # noqa: TRY004 - grpcio's
        self._options = tuple(options)
        self._limits = RateLimitInterceptor(clock=self.mesh.clock)
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
        own += [self._limits, DeadlineInterceptor(), self._target]
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

    async def __aenter__(self) -> Self:
        await self._enter(asyncio.Event(), asyncio.Event())
        return self

    async def _enter(self, told: asyncio.Event, hurry: asyncio.Event) -> Serving:
        self._must_not_serve("it cannot be entered twice")
        self._incarnation += 1
        # Tests give the membership another clock and id while it is not entered.
        self._limits.restart(self.mesh.clock)
        self._target.instance_id = self.mesh.id
        serving = Serving(
            Offer(
                name=self.name,
                mesh=self.mesh,
                handlers=self._handlers,
                concerns=self._concerns,
                inner=self._inner,
                limits=self._limits,
                load_reports=self._load_reports,
                options=self._options,
                grace=self.grace,
                incarnation=self._incarnation,
                replaces=self.replaces,
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

        `on_ready` is called with this process's instance once it serves and has registered.

        Raises:
            SettingsError: the service cannot start as it is configured.
        """
        asyncio.run(self._run(on_ready))

    async def _run(self, on_ready: Callable[[Instance], None] | None) -> None:
        told = asyncio.Event()
        hurry = asyncio.Event()

        def on_signal() -> None:
            (hurry if told.is_set() else told).set()

        with _signals(on_signal):
            serving = await self._enter(told, hurry)
            try:
                _LOG.info("%s serves on %s", serving.registration.instance.id, serving.address)
                if on_ready is not None and not told.is_set():
                    on_ready(serving.registration.instance)
                await told.wait()
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


@contextlib.contextmanager
def _signals(on_signal: Callable[[], None]) -> Iterator[None]:
    """Have SIGTERM and SIGINT call `on_signal`, where this thread and platform can."""
    loop = asyncio.get_running_loop()
    handled = []
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, on_signal)
            except (NotImplementedError, RuntimeError, ValueError):
                break  # Windows, or not the main thread: whoever runs this stops it otherwise
            handled.append(number)
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)

"""The control service as a process holds it: its store, its two ports, its tasks, its end.

`async with ControlServer(...) as server: await server.run()` is all of `meshrpc control`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ipaddress
import logging
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from types import TracebackType
from typing import Any, Final, Self, cast

import grpc
from aiohttp import web

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.control import records as records_module
from meshrpc.control import store as store_module
from meshrpc.control.control_service import ControlService
from meshrpc.control.database import Database
from meshrpc.control.delivery import Delivery
from meshrpc.control.events import EventLog
from meshrpc.control.http import HttpFace
from meshrpc.control.http_connections import bounded
from meshrpc.control.policy_service import PolicyService
from meshrpc.control.records import InstanceRecords
from meshrpc.control.registry_service import RegistryService
from meshrpc.control.store import PolicyStore
from meshrpc.errors import ControlError, SettingsError
from meshrpc.registry.instance import Instance
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.registry import LEASE
from meshrpc.server.handler import HandlerTable
from meshrpc.server.intake import create_server
from meshrpc.server.listening import require_free, until_ended
from meshrpc.server.options import control_options, most_http_connections
from meshrpc.server.request_arrival import request_timeout
from meshrpc.settings import DEFAULT_CONTROL_HTTP_PORT, DEFAULT_CONTROL_PORT, parse_address
from meshrpc.v1 import policy_pb2_grpc, registry_pb2_grpc

GRACE: Final = 1.0
"""Seconds that calls under way get when the service stops."""
RECOVERY: Final = LEASE
"""Seconds after the start in which no lease runs out and callers let go of nobody: who was
registered before has this long to come back, whether or not this service remembers it."""
HTTP_IDLE: Final = 75.0
"""Seconds that an HTTP connection may be silent, or take for the head of a request."""

_log = logging.getLogger(__name__)

_no_log = logging.getLogger(f"{__name__}.requests")
"""aiohttp logs a traceback for each request that is no HTTP: whoever sent it is told, that will do."""
_no_log.setLevel(logging.CRITICAL + 1)


class ControlServer:
    """The control service. Open it with `async with`.

    Args:
        listen: where processes and commands connect, `host:port`.
        http: where health and the JSON interface are, `host:port`.
        store: `sqlite:PATH`, or `sqlite::memory:` to keep nothing.
        insecure: allow addresses that other machines can reach, without identity.
        clock: monotonic time.

    Raises, on entering:
        SettingsError: an address is in use, cannot be listened on, or would be open to others.
        ControlError: the store cannot be used.
    """

    def __init__(
        self,
        listen: str = f"127.0.0.1:{DEFAULT_CONTROL_PORT}",
        http: str = f"127.0.0.1:{DEFAULT_CONTROL_HTTP_PORT}",
        store: str = "sqlite::memory:",
        *,
        insecure: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._listen = _Listen("--listen", listen)
        self._http = _Listen("--http", http)
        for listening in (self._listen, self._http):
            if not (insecure or listening.is_loopback):
                raise SettingsError(
                    f"{listening}: others could reach it, and nobody has to say who they are; "
                    "listen on 127.0.0.1, or say --insecure if the network is yours alone"
                )
        self._store_url = store
        self._clock = clock
        self._exit = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._address = ""
        self._http_address = ""

    def __repr__(self) -> str:
        where = f"grpc {self._address} http {self._http_address}" if self._address else "closed"
        return f"<ControlServer {where} store {self._store_url}>"

    @property
    def address(self) -> str:
        """Where gRPC is listened on, with the real port."""
        return self._address

    @property
    def http_address(self) -> str:
        """Where HTTP is listened on, with the real port."""
        return self._http_address

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as opening:
            await self._open(opening)
            self._exit = opening.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exit.aclose()
        self._address = self._http_address = ""

    async def run(self) -> None:
        """Return on SIGTERM or SIGINT; raise if a part of the service fails."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, stopped.set)
        waiting = asyncio.ensure_future(stopped.wait())
        try:
            done, _ = await asyncio.wait(
                [waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
        finally:
            waiting.cancel()
            for number in signals:
                loop.remove_signal_handler(number)

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        """Open every part; `stack` closes them in the opposite order."""
        schema = store_module.SCHEMA + records_module.SCHEMA
        database = await Database.open(self._store_url, schema, renewable=records_module.TABLES)
        stack.push_async_callback(database.close)
        store = await PolicyStore.load(database)
        records = InstanceRecords(database, clock=self._clock)
        now = self._clock.now()
        leases = LeaseTable(recovers_until=now + RECOVERY)
        leases.restore(await _load(records), now)
        stack.push_async_callback(_flush, records)

        delivery = Delivery(store, leases, clock=self._clock)
        registry = RegistryService(leases, records, delivery, clock=self._clock)
        self._tasks = [
            await stack.enter_async_context(_running(delivery.run(), "meshrpc pushes")),
            await stack.enter_async_context(_running(registry.run(), "meshrpc leases")),
            await stack.enter_async_context(_running(registry.checks.run(), "meshrpc checks")),
            await stack.enter_async_context(_running(records.run(), "meshrpc records")),
        ]

        table = HandlerTable()
        ControlService(delivery).add_to(cast("grpc.aio.Server", table))
        registry_pb2_grpc.add_RegistryServicer_to_server(registry, table)
        policy_pb2_grpc.add_PolicyStoreServicer_to_server(PolicyService(store), table)
        options = control_options()
        table.wrap(None, clock=self._clock, request_timeout=request_timeout(dict(options)))
        server, _ = create_server((table,), options)
        grpc_address = self._listen.bind(server)
        stack.push_async_callback(server.stop, GRACE)
        stack.callback(delivery.stop)  # ends the streams, so that the grace is not spent on them
        await server.start()
        ending = _running(_until_broken(server), "meshrpc control server")
        self._tasks.append(await stack.enter_async_context(ending))

        events = EventLog(started=time.time())
        face = HttpFace(store, leases, delivery.pushes, delivery.quota, events, clock=self._clock)
        http_address = await self._http.serve(face.application(), stack)
        for listen in (self._listen, self._http):
            if not listen.is_loopback:
                _log.warning(
                    "%s: whoever reaches it may use it, nobody has to say who they are", listen
                )
        face.is_ready = True
        stack.callback(setattr, face, "is_ready", False)
        self._address, self._http_address = grpc_address, http_address


class _Listen:
    """An address to listen on, and the option it comes from."""

    def __init__(self, option: str, address: str) -> None:
        self._option = option
        try:
            self._host, self._port = parse_address(address)
        except ValueError as error:
            raise SettingsError(f"{option} {address!r}: {error}") from error

    def __str__(self) -> str:
        return f"{self._option} {self._address}"

    @property
    def is_loopback(self) -> bool:
        """Whether other machines cannot reach the address."""
        host = self._host.strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def _address(self) -> str:
        return f"{self._host}:{self._port}"

    def bind(self, server: grpc.aio.Server) -> str:
        """Listen with gRPC; return the address with the real port."""
        self._require_free()
        try:
            port = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise SettingsError(f"{self}: {error}") from error
        return f"{self._host}:{port}"

    async def serve(self, application: web.Application, stack: contextlib.AsyncExitStack) -> str:
        """Listen with HTTP until `stack` closes; return the address with the real port."""
        self._require_free()
        runner = web.AppRunner(
            application,
            access_log=None,
            logger=_no_log,
            shutdown_timeout=GRACE,
            keepalive_timeout=HTTP_IDLE,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        loop, accept = asyncio.get_running_loop(), bounded(runner, most_http_connections())
        try:
            listening = await loop.create_server(accept, self._host.strip("[]"), self._port)
        except OSError as error:
            raise SettingsError(f"{self}: {error}") from error
        stack.callback(listening.close)
        return f"{self._host}:{listening.sockets[0].getsockname()[1]}"

    def _require_free(self) -> None:
        require_free(self._address, f"choose another with {self._option}")


@contextlib.asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work, name=name, context=contextvars.Context())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until_broken(server: grpc.aio.Server) -> None:
    """Raise when gRPC's server ends by itself, which only a fault in it can bring about."""
    await until_ended(server)
    raise RuntimeError("gRPC's server has ended by itself")


async def _load(records: InstanceRecords) -> tuple[Instance, ...]:
    try:
        return await records.load()
    except ControlError as error:
        _log.warning("%s (who is registered has to register again)", error)
        return ()


async def _flush(records: InstanceRecords) -> None:
    try:
        await records.flush()
    except ControlError as error:
        _log.warning("%s (the next start forgets some instances)", error)

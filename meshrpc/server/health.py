"""Health checks (grpc.health.v1), answered from the process's own event loop.

As grpc_health's own servicer, but for two things: that one holds a lock while it writes to a
watcher, so one client that never reads would keep all others from their answers, and the server
from ever leaving; and it lets anybody hold any number of watches. Here each watcher has an event
of its own, and learns the newest status when it comes to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from meshrpc.wire import NOT_EXECUTED, Metadata

Status = Any
"""A `HealthCheckResponse.ServingStatus`: a number, as protobuf has enums."""

MOST_WATCHES: Final = 2_000
"""Watches held at once: a caller needs one for each connection. Each holds some 15 KiB here."""

_STATUS = health_pb2.HealthCheckResponse
_NOT_EXECUTED: Metadata = ((NOT_EXECUTED, "1"),)


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """What this process says of its health, overall (`""`) and for each gRPC service."""

    def __init__(self) -> None:
        self._statuses: dict[str, Status] = {"": _STATUS.SERVING}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._watches = 0
        self._is_leaving = False

    def __repr__(self) -> str:
        overall = _STATUS.ServingStatus.Name(self._statuses[""])
        return f"<HealthServicer {overall} watches={self._watches}>"

    async def Check(self, request: Any, context: Any) -> Any:
        """Answer with the status of a service; NOT_FOUND for one that nobody set."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _STATUS(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Send the status now and whenever it has changed, for as long as the client stays."""
        if self._watches >= MOST_WATCHES:
            text = f"{MOST_WATCHES} health checks are being watched: no more"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text, _NOT_EXECUTED)
        name = request.service
        changed = asyncio.Event()
        watchers = self._watchers.setdefault(name, set())
        watchers.add(changed)
        self._watches += 1
        try:
            told: Status | None = None
            while True:
                changed.clear()
                status = self._statuses.get(name, _STATUS.SERVICE_UNKNOWN)
                if status != told:
                    yield _STATUS(status=status)
                    told = status
                await changed.wait()
        finally:
            self._watches -= 1
            watchers.discard(changed)
            if not watchers and self._watchers.get(name) is watchers:
                del self._watchers[name]

    async def set(self, service: str, status: Status) -> None:
        """Set the status of a service, unless the process is leaving."""
        if not self._is_leaving:
            self._set(service, status)

    async def enter_graceful_shutdown(self) -> None:
        """Say NOT_SERVING of everything, for good."""
        self._is_leaving = True
        for service in self._statuses:
            self._set(service, _STATUS.NOT_SERVING)

    def _set(self, service: str, status: Status) -> None:
        self._statuses[service] = status
        for watcher in self._watchers.get(service, ()):
            watcher.set()

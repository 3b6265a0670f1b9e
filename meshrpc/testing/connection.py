"""A connection through a proxy: bytes are passed on as they come, each way.

Under a fault they are held, and go out in their order when it ends. What is held is kept in
memory, which gRPC's own flow control bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from meshrpc.clock import Clock
from meshrpc.testing.faults import Blackhole, Delay, Drop, Fault

_SAME = 1e-9  # seconds that floats may be off
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing throws away what was not sent, and tells the peer so by a reset."""


class Leading(Protocol):
    """The proxy, as its connections need it."""

    clock: Clock
    fault: Fault | None
    on_move: Callable[[], None]

    async def target(self) -> tuple[str, int]:
        """Return where connections go, once that is known."""
        ...


class Connection:
    """One caller's connection, and the one to the instance that it is led to."""

    def __init__(self, proxy: Leading, accepted: socket.socket) -> None:
        self.proxy = proxy
        self._caller = _Side(self)
        self._instance = _Side(self)
        self._pipes = (_Pipe(self._caller, self._instance), _Pipe(self._instance, self._caller))
        self._accepted = accepted
        self.over = asyncio.create_task(self._connect(), context=contextvars.Context())
        # Not in the task's own `finally`: one that is cancelled before its first step has none.
        self.over.add_done_callback(self._on_over)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: self._caller, self._accepted)
            await loop.create_connection(lambda: self._instance, *await self.proxy.target())
            self.look_again()
            await self._caller.lost.wait()
            await self._instance.lost.wait()
        except (OSError, asyncio.CancelledError):
            pass  # nobody there, or reset before it was led anywhere

    def _on_over(self, _connecting: asyncio.Task[None]) -> None:
        for side in (self._caller, self._instance):
            side.reset()
        for pipe in self._pipes:
            pipe.end()
        if self._caller.transport is None:
            self._accepted.close()
        self.proxy.on_move()

    def received(self, side: _Side, data: bytes | None) -> None:
        self.proxy.on_move()
        if side is self._caller and data and isinstance(self.proxy.fault, Drop):
            self.reset()
        else:
            self._pipes[side is self._instance].put(data)

    def look_again(self) -> None:
        """Pass on what may go now: the fault is another one, or both ends are there."""
        if isinstance(self.proxy.fault, Drop) and self._pipes[0].held:
            self.reset()
        for pipe in self._pipes:
            pipe.flush()

    def reset(self) -> None:
        """End both connections at once, as by RST."""
        if self._caller.transport is None or self._instance.transport is None:
            self.over.cancel()
        self._caller.reset()
        self._instance.reset()


class _Side(asyncio.Protocol):
    """One of the two connections."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.connection.received(self, data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self.lost.set()
        self.connection.received(self, None)

    def reset(self) -> None:
        if self.transport is not None and not self.lost.is_set():
            with contextlib.suppress(OSError):  # the peer was quicker
                self.transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET
                )
            self.transport.abort()


class _Pipe:
    """One direction: what was received and has not been passed on yet, in order."""

    def __init__(self, source: _Side, sink: _Side) -> None:
        self._proxy = source.connection.proxy
        self._sink = sink
        self.held: deque[tuple[float, bytes | None]] = deque()
        """When it came and what it is; None: the end."""
        self._waiting: asyncio.Task[None] | None = None

    def put(self, data: bytes | None) -> None:
        self.held.append((self._proxy.clock.now(), data))
        self.flush()

    def flush(self) -> None:
        """Pass on what is not to be held any longer."""
        fault, clock = self._proxy.fault, self._proxy.clock
        if self._sink.transport is None or isinstance(fault, Blackhole):
            return
        while self.held:
            arrived, data = self.held[0]
            wait = arrived + fault.seconds - clock.now() if isinstance(fault, Delay) else 0.0
            if wait > _SAME:
                self._wait(wait)
                return
            self.held.popleft()
            self._proxy.on_move()
            if data is None:
                self._sink.transport.close()
            else:
                self._sink.transport.write(data)

    def end(self) -> None:
        self.held.clear()
        if self._waiting is not None:
            self._waiting.cancel()

    def _wait(self, seconds: float) -> None:
        async def wait() -> None:
            await self._proxy.clock.sleep(seconds)
            self._waiting = None
            self.flush()

        if self._waiting is None:
            self._waiting = asyncio.create_task(wait(), context=contextvars.Context())

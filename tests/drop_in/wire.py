"""A wire between a channel and its server, which a scenario can cut or freeze."""

from __future__ import annotations

import asyncio
import contextlib


class Wire:
    """Stands between channel and server: can be cut, or swallow what comes from then on."""

    def __init__(self, port):
        self.server_port = port
        self.port = 0
        self.connections = 0
        self.frozen = False
        self.ended = asyncio.Event()
        """Set when a connection was closed from the channel's end."""
        self._writers = []
        self._connected = set()

    async def __aenter__(self):
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._listener.close()
        for _ in range(3):  # a channel that was cut off connects again, perhaps just now
            await _turns()  # what was accepted before becomes a task
            self.cut()
            while self._connected:
                await asyncio.wait(self._connected)
        await _turns()  # what was aborted is closed

    def cut(self):
        """Close every connection without a word."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader, writer):
        self._connected.add(asyncio.current_task())
        self.connections += 1
        self._writers.append(writer)
        try:
            onward = await asyncio.open_connection("127.0.0.1", self.server_port)
            self._writers.append(onward[1])
            back = asyncio.ensure_future(self._copy(onward[0], writer))
            await self._copy(reader, onward[1])
            self.ended.set()
            onward[1].close()
            await back
        finally:
            writer.transport.abort()
            self._connected.discard(asyncio.current_task())

    async def _copy(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not self.frozen:
                    writer.write(data)
        writer.close()


async def _turns():
    for _ in range(10):
        await asyncio.sleep(0)

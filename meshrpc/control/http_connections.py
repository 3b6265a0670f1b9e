"""How many connections an HTTP server of aiohttp's has at a time: the newest beyond that are closed.

aiohttp has no such bound; whoever connected without end would take every file of the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web


def bounded(runner: web.AppRunner, most: int) -> Callable[[], asyncio.BaseProtocol]:
    """Return what makes a protocol for each connection of a runner that has been set up."""
    server = runner.server
    assert server is not None  # noqa: S101 - it has been set up

    def accept() -> asyncio.BaseProtocol:
        return server() if len(server.connections) < most else _Closed()

    return accept


class _Closed(asyncio.BaseProtocol):
    """A connection for which there is no room."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()

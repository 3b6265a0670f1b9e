"""What several tests share."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import os
from collections.abc import Iterator

import pytest

from tests import consul


class VirtualClock:
    """A `Clock` that stands still until a test moves it."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), woken))
        await woken

    @contextlib.asynccontextmanager
    async def timeout(self, seconds):
        async with asyncio.timeout(None) as timeout:
            if seconds is None:
                yield
                return
            expiry = asyncio.ensure_future(self.sleep(seconds))
            loop = asyncio.get_running_loop()
            expiry.add_done_callback(
                lambda over: over.cancelled() or timeout.reschedule(loop.time())
            )
            try:
                yield
            finally:
                expiry.cancel()

    async def advance(self, seconds: float) -> None:
        """Move on, waking whoever comes due on the way, in order, each at its own time."""
        until = self._now + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= until:
            self._now, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
            await self.settle()
        self._now = until

    async def settle(self) -> None:
        """Let everything run that waits for nothing but its turn."""
        for _ in range(50):
            await asyncio.sleep(0)


@pytest.fixture
def virtual_clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture(scope="session")
def consul_binary() -> str:
    """The path of a real Consul, for tests that run their own with `ConsulServer`."""
    found = consul.find()
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(consul.MISSING)
        pytest.skip(consul.MISSING)
    return str(found)


@pytest.fixture(scope="session")
def consul_server(consul_binary: str) -> Iterator[consul.ConsulServer]:
    """A real Consul that all tests share: use names of your own, and leave it running."""
    with consul.ConsulServer() as server:
        yield server


@pytest.fixture(scope="session")
def consul_url(consul_server: consul.ConsulServer) -> str:
    """The registry URL of the shared Consul."""
    return consul_server.url

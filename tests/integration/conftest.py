"""A mesh in memory, for tests of calls."""

import asyncio

import pytest

import meshrpc
from meshrpc.clock import SystemClock
from meshrpc.registry.memory import MemoryRegistry


@pytest.fixture
async def registry():
    async with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
async def mesh(registry):
    async with meshrpc.Mesh("shell", registry=registry, control="none") as mesh:
        yield mesh


class HastyClock(SystemClock):
    """The real time, without the waits of draining: nobody else calls these services."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01) if seconds <= 3 else seconds)


@pytest.fixture
def hasty_clock():
    return HastyClock()

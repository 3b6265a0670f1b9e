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


@pytest.fixture
def only_tasks():
    """An async function that returns when no task is left but those given, and grpc's servers'.

    Grpc's own end when they get a turn, or when one of its threads has had one.
    """

    def left(tasks):
        return {task for task in asyncio.all_tasks() - tasks if "AioServer" not in repr(task)}

    async def only(tasks):
        while others := left(tasks):
            _, pending = await asyncio.wait(others, timeout=10)
            assert not pending

    return only


class HastyClock(SystemClock):
    """The real time, without the waits of draining: nobody else calls these services."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01) if seconds <= 3 else seconds)


@pytest.fixture
def hasty_clock():
    return HastyClock()

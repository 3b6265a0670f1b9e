"""A mesh in memory, for tests of calls."""

import pytest

import meshrpc
from meshrpc.registry.memory import MemoryRegistry


@pytest.fixture
async def registry():
    async with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
async def mesh(registry):
    async with meshrpc.Mesh("shell", registry=registry, control="none") as mesh:
        yield mesh

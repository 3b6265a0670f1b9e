"""Clients connect anew from time to time, and no call of theirs notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

import meshrpc
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.server.connection_age import MAX_CONNECTION_AGE, age_options

SOON = 20.0
ENOUGH = 4  # connections


def test_connections_last_half_an_hour_by_default():
    """The option is gRPC's own, in milliseconds, which adds the jitter; None leaves it away."""
    assert age_options(MAX_CONNECTION_AGE) == (("grpc.max_connection_age_ms", 1_800_000),)
    assert age_options(None) == ()
    service = meshrpc.Service("payment", registry="memory:", control="none")
    assert ("grpc.max_connection_age_ms", 1_800_000) in service._options


@pytest.mark.parametrize("age", [0, -1.0, 1e9, float("nan"), "5"])
def test_an_age_that_cannot_be_is_refused(age: Any):
    """Before gRPC would take it for something else."""
    with pytest.raises(meshrpc.SettingsError, match="max_connection_age="):
        meshrpc.Service("payment", registry="memory:", control="none", max_connection_age=age)


@pytest.mark.parametrize("client", ["mesh", "grpcio"])
async def test_rotation_loses_no_call_and_ends_no_stream(client: str, hasty_clock):
    """Under load, over several connections; a stream older than all of them goes on to its end."""
    peers: set[str] = set()
    is_enough = asyncio.Event()

    async def unary(request: bytes, context: Any) -> bytes:
        peers.add(context.peer())
        if len(peers) >= ENOUGH:
            is_enough.set()
        await asyncio.sleep(0.002)
        return request

    async def stream(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield b"began"
        await is_enough.wait()
        yield b"ends"

    registry = MemoryRegistry()
    service = meshrpc.Service(
        "payment", registry=registry, control="none", clock=hasty_clock, max_connection_age=0.1
    )
    handlers = {
        "unary": grpc.unary_unary_rpc_method_handler(unary),
        "stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    mesh = meshrpc.Mesh("shell", registry=registry, control="none")
    async with registry, service, mesh, asyncio.timeout(SOON):
        plain = grpc.aio.insecure_channel(service.address)
        channel = mesh.channel("payment") if client == "mesh" else plain
        call = channel.unary_unary("/t.T/unary")

        async def load() -> int:
            calls = 0
            while not is_enough.is_set():
                # As any client may, without being told to wait or to try again.
                with meshrpc.call_options(retry=False):
                    assert await call(b"x") == b"x"
                calls += 1
            return calls

        await call(b"", wait_for_ready=True)
        long = channel.unary_stream("/t.T/stream")(b"")
        assert await long.read() == b"began"
        assert sum(await asyncio.gather(*(load() for _ in range(8)))) > ENOUGH
        assert await long.read() == b"ends"
        assert await long.read() is grpc.aio.EOF
        assert await long.code() is grpc.StatusCode.OK
        await plain.close()
    assert len(peers) >= ENOUGH

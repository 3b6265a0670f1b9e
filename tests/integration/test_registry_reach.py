"""Claims about telling addresses where a server answers from those where none does."""

import asyncio
import contextlib
import socket

import grpc.aio
import pytest

from meshrpc.cli.registry_reach import unreachable


@contextlib.asynccontextmanager
async def answering(answer):
    """A server that answers the first bytes of a connection with `answer`, and closes."""

    async def serve(reader, writer):
        await reader.read(1)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_grpc_server_answers():
    """It is asked as HTTP/2 begins, and answers as HTTP/2 does."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        assert await unreachable(f"127.0.0.1:{port}") is None
    finally:
        await server.stop(0)


async def test_a_server_that_wants_tls_answers():
    """Its alert is an answer: whether the certificates fit is not asked here."""
    async with answering(b"\x15\x03\x03\x00\x02\x02\x16") as address:
        assert await unreachable(address) is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "something else than a gRPC server answers"),
        (b"", "closes the connection: nothing there speaks gRPC"),
    ],
)
async def test_another_kind_of_server_is_told_apart(answer, reason):
    """A port that somebody else has taken over is not one that can be called."""
    async with answering(answer) as address:
        assert reason in (await unreachable(address))


async def test_a_process_that_is_frozen_is_not_reached():
    """The kernel accepts connections for it, and nothing is ever said on them."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        address = f"127.0.0.1:{frozen.getsockname()[1]}"
        said = await unreachable(address, within=0.1)
    assert said == "accepts connections and says nothing for 0.1 s: it may be frozen"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "connection refused"),
        ("nowhere.invalid:1", "there is no such name"),
        ("nowhere", "an address is host:port"),
    ],
)
async def test_why_nobody_is_there_is_said(address, reason):
    """Refused, no such name, no address at all."""
    assert reason in await unreachable(address)

"""Whatever one client sends, the others are served, and what it began ends when it goes."""

import asyncio

import grpc
import pytest
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.hostile import attacks, http2, server
from tests.hostile.attacks import CORPUS, HEALTH

SERVING = health_pb2.HealthCheckResponse.SERVING
ENDED = {
    "random bytes",
    "HTTP/1.1",
    "TLS",
    "a frame of 16 MiB",
    "SETTINGS of nonsense",
    "PING flood",
    "MadeYouReset",
}
"""Attacks whose connections are closed at once."""


async def until_active(serving, count):
    async with asyncio.timeout(10):
        while serving._serving.active_calls < count:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", CORPUS)
async def test_other_callers_do_not_notice(serving, good, name):
    """Calls go on during and after each attack; afterwards no handler is left."""
    attack, size, _ = CORPUS[name]
    result = await asyncio.to_thread(attack, serving.address, size)
    try:
        await good(10)
        if name in ENDED:
            assert await asyncio.to_thread(lambda: result.closed) == len(result.connections)
    finally:
        result.close()
    await good(10)
    # What was sent before the connection was closed is served first, then the rest is dropped.
    async with asyncio.timeout(10):
        while serving._serving.active_calls > 1:  # noqa: ASYNC110 - the good caller's
            await asyncio.sleep(0.01)


async def test_who_watches_health_and_never_reads_keeps_nobody(serving):
    """Others learn the status, and that the service is leaving can be said at once."""
    stalled = attacks.after_greeting(lambda size: attacks.stalled(HEALTH, size), s4=0)
    result = await asyncio.to_thread(stalled, serving.address, 3)
    await until_active(serving, 3)
    async with asyncio.timeout(10):
        async with grpc.aio.insecure_channel(serving.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            watch.cancel()
        await serving._serving._health.enter_graceful_shutdown()
    result.close()


async def test_leaving_takes_no_longer_than_the_grace():
    """Whoever does not read what is sent to say good-bye is cut off, whatever it had asked for."""

    async def serve_and_leave(path):
        stalled = attacks.after_greeting(lambda size: attacks.stalled(path, size), s4=0)
        async with server.service(grace=0.5) as service:
            result = await asyncio.to_thread(stalled, service.address, 3)
            await until_active(service, 3)
        result.close()

    async with asyncio.timeout(30):
        paths = (HEALTH, server.FLOOD, server.BLOCKING_FLOOD)
        await asyncio.gather(*map(serve_and_leave, paths))


async def test_clients_that_never_read_take_no_threads(serving, good):
    """Plain `def` streams to twenty of them stand still; a plain `def` call is answered."""
    path = server.BLOCKING_FLOOD
    stalled = attacks.after_greeting(lambda size: attacks.stalled(path, size), s4=0)
    result = await asyncio.to_thread(stalled, serving.address, 20)
    try:
        await until_active(serving, 20)
        async with grpc.aio.insecure_channel(serving.address) as channel:
            call = channel.unary_unary(server.BLOCKING.decode())
            assert await call(b"hi", timeout=10) == b"hi"
    finally:
        result.close()


async def test_bad_messages_fill_no_log(serving, good, caplog):
    """Hundreds in a moment: a line a second says so, for each method."""
    attack, size, _ = CORPUS["bad messages"]
    result = await asyncio.to_thread(attack, serving.address, size)
    await good(10)
    answered = await asyncio.to_thread(result.connections[0].answered, 2 * size - 1)
    result.close()
    assert answered is not None
    lines = [record for record in caplog.records if "cannot be decoded" in record.getMessage()]
    assert 1 <= len(lines) <= 20


async def test_a_call_that_names_nothing_readable_ends_only_itself(serving, good):
    """grpcio's own accept loop ends with the first such call, and the server with it."""

    def attack(path):
        with http2.Connection(serving.address, patience=10.0).greet() as connection:
            connection.send(http2.call(1, path))
            return connection.answered(1)

    for path in (b"/hostile.Echo/\xff", b"/\xff\xfe/\x80", b"\xc3"):
        kind, _ = await asyncio.to_thread(attack, path)
        assert kind == http2.HEADERS, "a status"
        await good(5)


@pytest.mark.skipif(
    not hasattr(cygrpc.AioServer, "_make_request_call_future"), reason="from grpcio 1.83 on"
)
async def test_grpcio_still_ends_with_such_a_call():
    """Why `meshrpc/server/method_name.py` is there; when this fails, it can go."""
    bare = grpc.aio.server()
    bare.add_generic_rpc_handlers((server.Anything(),))
    port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    ended = asyncio.ensure_future(bare.wait_for_termination())

    def attack():
        with http2.Connection(f"127.0.0.1:{port}", patience=10.0).greet() as connection:
            connection.send(http2.call(1, b"/any./\xff"))
            connection.answered(1)

    await asyncio.to_thread(attack)
    async with asyncio.timeout(10):
        with pytest.raises(UnicodeDecodeError):
            await ended

"""Who is slow, a byte at a time, is let go of, wherever that is; the table's times are short here."""

import asyncio

import pytest

from meshrpc.server.options import SERVER_OPTIONS
from meshrpc.server.request_arrival import OPTION
from tests.hostile import attacks, http2, server
from tests.hostile.attacks import SLOW

SHORT = {
    "grpc.server_handshake_timeout_ms": 300,
    "grpc.max_connection_idle_ms": 300,
    OPTION: 300,
}
BOUNDLESS = {"slow streams", "slow readers"}
"""What may go on for as long as it likes, unless it has a deadline, or its connection an age."""
HEALTH_CHECK = b"/grpc.health.v1.Health/Check"


@pytest.fixture
def short(monkeypatch):
    table = tuple({**dict(SERVER_OPTIONS), **SHORT}.items())
    monkeypatch.setattr("meshrpc.server.serving.SERVER_OPTIONS", table)


async def until_idle(serving, count):
    """Wait until no more than so many calls run."""
    async with asyncio.timeout(10):
        while serving._serving.active_calls > count:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", sorted(SLOW.keys() - BOUNDLESS))
async def test_who_is_slow_is_closed_however_long_it_goes_on(short, serving, good, name):
    """200 connections at once; others are served meanwhile."""
    attack = attacks.slowly(*SLOW[name], most=1_000, every=0.01)
    attacking = asyncio.ensure_future(asyncio.to_thread(attack, serving.address, 200))
    await good(10)
    result = await attacking
    result.close()
    assert not result.taken, "it still goes on"
    await good(5)
    await until_idle(serving, 1)


async def test_none_of_it_ends_for_another_reason(serving):
    """With the table's own times all of them still go on after twice the time that ends them above."""

    def attack(slow):
        result = attacks.slowly(*slow, most=60, every=0.01)(serving.address, 1)
        result.close()
        return result.taken

    taken = await asyncio.gather(*(asyncio.to_thread(attack, slow) for slow in SLOW.values()))
    assert all(taken), dict(zip(SLOW, taken, strict=True))


@pytest.mark.parametrize("name", sorted(BOUNDLESS))
async def test_what_has_no_bound_is_closed_with_its_connection_where_that_has_one(short, name):
    """`grpc.max_connection_age_grace_ms` is for those whom strangers can reach."""
    options = [("grpc.max_connection_age_grace_ms", 100)]
    async with server.service(max_connection_age=0.2, options=options) as service:
        attack = attacks.slowly(*SLOW[name], most=1_000, every=0.01)
        result = await asyncio.to_thread(attack, service.address, 20)
        result.close()
        assert not result.taken, "it still goes on"
        await until_idle(service, 0)
        service._serving._hurry.set()  # nobody else knows of it


def ask(address, *frames):
    """Send frames; returns what ended the call, and what ended the next one."""
    with http2.Connection(address, patience=10.0).greet() as connection:
        connection.send(b"".join(frames))
        first = connection.answered(1)
        connection.send(http2.call(3, server.ECHO, b"next"))
        return first, connection.answered(3)


@pytest.mark.parametrize("path", [server.ECHO, server.BLOCKING, server.FLOOD, HEALTH_CHECK])
async def test_a_request_that_never_arrives_ends_as_not_executed(short, serving, path):
    """Of one answer or many, `async` or not; its connection serves on."""
    call = http2.headers(1, http2.request(path, timeout=None))
    (kind, trailers), following = await asyncio.to_thread(ask, serving.address, call)
    assert kind == http2.HEADERS
    assert b"grpc-status\x014" in trailers, "DEADLINE_EXCEEDED"
    assert b"the request has not arrived within 0.3 s" in trailers
    assert b"mesh-not-executed" in trailers
    assert following[0] == http2.HEADERS


@pytest.mark.parametrize("path", [server.ECHO, server.FLOOD, HEALTH_CHECK])
async def test_a_request_that_has_not_arrived_when_the_server_leaves_may_go_elsewhere(path):
    """Told as running calls are, when their grace is over; and surely nothing was executed."""

    def wait():
        with http2.Connection(service.address, patience=10.0).greet() as connection:
            connection.send(http2.headers(1, http2.request(path, timeout=None)))
            return next(
                payload
                for kind, _, stream, payload in connection.frames()
                if (kind, stream) == (http2.HEADERS, 1)
            )

    async with server.service() as service:
        waiting = asyncio.ensure_future(asyncio.to_thread(wait))
        async with asyncio.timeout(10):
            while not service._serving._table._arrival._since:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        service._serving._hurry.set()  # nobody else knows of it
    trailers = await waiting
    assert b"grpc-status\x0214" in trailers, "UNAVAILABLE"
    assert b"the server is leaving" in trailers
    assert b"mesh-drain" in trailers
    assert b"mesh-not-executed" in trailers


@pytest.mark.parametrize(("given", "is_answered"), [(100, True), (0, False)])
async def test_a_service_says_itself_how_long_requests_may_take(short, given, is_answered):
    """In `options=`, which wins over the table; 0 is for ever."""

    def wait():
        with http2.Connection(service.address, patience=1.0).greet() as connection:
            connection.send(http2.headers(1, http2.request(server.ECHO, timeout=None)))
            return connection.answered(1)

    async with server.service(options=[(OPTION, given)]) as service:
        answer = await asyncio.to_thread(wait)
        service._serving._hurry.set()  # nobody else knows of it
    assert (answer is not None) is is_answered
    assert answer is None or b"within 0.1 s" in answer[1]


@pytest.mark.parametrize("path", [server.ECHO, server.FLOOD])
async def test_a_request_without_a_message_is_answered(short, serving, path):
    """grpcio's asyncio server never does."""
    call = http2.headers(1, http2.request(path, timeout=None), end_stream=True)
    (kind, trailers), following = await asyncio.to_thread(ask, serving.address, call)
    assert kind == http2.HEADERS
    assert b"grpc-status\x0212" in trailers, "UNIMPLEMENTED"
    assert b"this method takes exactly one message" in trailers
    assert following[0] == http2.HEADERS


async def test_a_stream_may_be_silent_for_longer(short, serving, good):
    """It has no bound that nobody asked for."""

    def stream():
        with http2.Connection(serving.address, patience=1.0).greet() as connection:
            connection.send(http2.headers(1, http2.request(server.TAKE, timeout=None)))
            silent = connection.answered(1)  # three times as long as a request may take
            connection.socket.settimeout(10.0)
            connection.send(http2.data(1, http2.message(b"late")))
            return silent, connection.answered(1)

    silent, answer = await asyncio.to_thread(stream)
    assert silent is None
    assert answer is not None
    assert answer[0] == http2.HEADERS


async def test_a_client_that_cancels_before_its_message_leaves_nothing(serving, good, caplog):
    """Neither a call nor a line in the log."""

    def cancel():
        with http2.Connection(serving.address, patience=10.0).greet() as connection:
            for stream in range(1, 100, 2):
                connection.send(http2.headers(stream, http2.request(server.ECHO, timeout=None)))
                connection.send(http2.frame(http2.RST_STREAM, stream, b"\0\0\0\x08"))
            connection.send(http2.call(101, server.ECHO))
            return connection.answered(101)

    assert (await asyncio.to_thread(cancel))[0] == http2.HEADERS
    await good(5)
    await until_idle(serving, 1)
    assert not caplog.records

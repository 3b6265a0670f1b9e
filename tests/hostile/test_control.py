"""The control service under attack: its options, what a process may send it, and its HTTP."""

import asyncio
import contextlib
import resource
import socket

import aiohttp.web
import grpc
import pytest

from meshrpc import subscription
from meshrpc.control.http import HttpFace
from meshrpc.control.server import ControlServer
from meshrpc.server.options import (
    SERVER_OPTIONS,
    control_options,
    most_http_connections,
    open_files,
)
from meshrpc.server.request_arrival import OPTION as REQUEST_TIMEOUT
from meshrpc.v1 import registry_pb2, registry_pb2_grpc
from tests.hostile import attacks, claims, http2
from tests.hostile.attacks import SLOW
from tests.hostile.claims import Attempt, Pin

OPTIONS = dict(control_options())
LIST = b"/meshrpc.v1.Registry/ListServices"
SUBSCRIBE = b"/meshrpc.v1.Control/Subscribe"
STRIKES = {"grpc.http2.max_ping_strikes": 50}
PINGS = {"grpc.http2.min_ping_interval_without_data_ms": 10, **STRIKES}
VANISHED = {"grpc.keepalive_time_ms": 30, "grpc.http2.ping_timeout_ms": 100}
CONNECTIONS = "grpc.max_allowed_incoming_connections"


@contextlib.asynccontextmanager
async def serving():
    async with ControlServer("127.0.0.1:0", "127.0.0.1:0") as control:
        yield control


async def a_large_answer_is_refused(attempt):
    """One byte more than the table's 64 MiB, here 1 KiB."""
    async with attempt.channel() as channel:
        registry = registry_pb2_grpc.RegistryStub(channel)
        instance = registry_pb2.Instance(id="a", service="shop", address="127.0.0.1:1", weight=1)
        instance.labels["size"] = "x" * 1_100
        await registry.Register(registry_pb2.RegisterRequest(instance=instance, lease_seconds=15))
        answer = registry.ListInstances(registry_pb2.ListInstancesRequest(service="shop"))
        return await answer.code() is not grpc.StatusCode.OK


PINS = {
    "grpc.so_reuseport": Pin(claims.a_second_server_fails),
    "grpc.http2.min_ping_interval_without_data_ms": Pin(claims.pings_are_borne, PINGS),
    "grpc.keepalive_permit_without_calls": Pin(claims.pings_are_borne, PINGS),
    "grpc.http2.max_ping_strikes": Pin(claims.pings_too_soon_are_borne),
    "grpc.keepalive_time_ms": Pin(claims.who_vanishes_is_let_go, VANISHED),
    "grpc.http2.ping_timeout_ms": Pin(claims.who_vanishes_is_let_go, VANISHED),
    "grpc.server_handshake_timeout_ms": Pin(
        claims.who_says_nothing_is_let_go, {"grpc.server_handshake_timeout_ms": 100}
    ),
    "grpc.max_metadata_size": Pin(claims.metadata_within_the_limit_passes),
    "grpc.absolute_max_metadata_size": Pin(claims.metadata_above_the_limit_is_refused),
    "grpc.max_receive_message_length": Pin(claims.a_large_request_is_refused, instead=-1),
    "grpc.max_send_message_length": Pin(
        a_large_answer_is_refused, {"grpc.max_send_message_length": 64 * 1024}
    ),
    "grpc.max_concurrent_streams": Pin(
        claims.streams_are_bounded, {"grpc.max_concurrent_streams": 500}
    ),
    "grpc.max_connection_idle_ms": Pin(
        claims.idle_connections_are_closed, {"grpc.max_connection_idle_ms": 3_000}
    ),
    CONNECTIONS: Pin(claims.connections_are_bounded, {CONNECTIONS: OPTIONS[CONNECTIONS] // 20}),
    REQUEST_TIMEOUT: Pin(claims.requests_arrive_in_time, {REQUEST_TIMEOUT: 600}),
}
ELSEWHERE = {"grpc.server.max_pending_requests", "grpc.server.max_pending_requests_hard_limit"}
"""tests/integration/test_registry_service.py: a fleet that renews at the same moment."""


def test_every_option_is_pinned():
    """All that services have stands here too, and what control has of its own."""
    assert set(PINS) | ELSEWHERE == set(OPTIONS)
    assert set(OPTIONS) >= {key for key, _ in SERVER_OPTIONS}


OWN = [name for name in PINS if OPTIONS[name] != dict(SERVER_OPTIONS).get(name)]
"""What happens without the others is seen in test_options.py."""


@pytest.mark.parametrize(
    ("name", "kept"), [*((name, True) for name in PINS), *((name, False) for name in OWN)]
)
async def test_an_option_stops_what_it_is_for(monkeypatch, name, kept):
    """It holds with the table as it is, and not without this one entry."""
    pin = PINS[name]
    table = pin.table(OPTIONS, name, kept=kept)
    monkeypatch.setattr("meshrpc.control.server.control_options", lambda: tuple(table.items()))
    async with serving() as control:
        attempt = Attempt(control.address, 10.0 if kept else 0.3, table, LIST, SUBSCRIBE)
        assert await pin.holds(attempt) is kept


def test_both_ends_have_the_same_limits():
    """As far as a process takes messages, and no slower than it pings."""
    assert OPTIONS["grpc.max_send_message_length"] == subscription.MAX_MESSAGE_BYTES
    least = OPTIONS["grpc.http2.min_ping_interval_without_data_ms"]
    assert 2 * least <= subscription.KEEPALIVE_MS
    assert OPTIONS["grpc.max_receive_message_length"] > subscription.MAX_ANSWER_BYTES


def test_files_are_there_for_ten_thousand_instances():
    """Where the machine allows more than the usual 1,024, control asks for them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, hard = before
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        most = dict(control_options())[CONNECTIONS]
        allowed = open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    if hard == resource.RLIM_INFINITY or hard > 26_666:
        assert most > 19_000
    else:
        assert (most, allowed) == (hard * 3 // 4, hard)
    assert 1 <= most_http_connections() <= 1_000


async def test_a_call_that_names_nothing_readable_ends_only_itself():
    """grpcio's own accept loop ends with the first such call, and the server with it."""

    def attack(address, path):
        with http2.Connection(address, patience=10.0).greet() as connection:
            connection.send(http2.call(1, path))
            return connection.answered(1)

    async with serving() as control:
        for path in (b"/meshrpc.v1.Registry/\xff", b"\xff", LIST):
            kind, _ = await asyncio.to_thread(attack, control.address, path)
            assert kind == http2.HEADERS, "a status"


async def test_a_server_that_ends_by_itself_ends_control(monkeypatch):
    """It would go on, deaf, and no supervisor would start another."""

    async def ended(_server):
        raise RuntimeError("gRPC's server has ended by itself")

    monkeypatch.setattr("meshrpc.control.server._until_broken", ended)
    async with serving() as control, asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="has ended by itself"):
            await control.run()


async def test_requests_that_cannot_be_decoded_fill_no_log(caplog):
    """A line a second says so."""

    def attack(address):
        with http2.Connection(address, patience=10.0).greet() as connection:
            path = b"/meshrpc.v1.Registry/Register"
            for stream in range(1, 400, 2):
                connection.send(http2.call(stream, path, b"\xff\xff"))
            connection.send(http2.call(401, LIST))
            return connection.answered(401)

    async with serving() as control:
        assert (await asyncio.to_thread(attack, control.address))[0] == http2.HEADERS
    assert "Traceback" not in caplog.text
    assert 1 <= len(caplog.records) <= 20


async def test_who_is_slow_keeps_nobody_from_control():
    """200 connections that begin a byte at a time, beside calls that are answered."""
    async with serving() as control:
        attack = attacks.slowly(*SLOW["slow greetings"], most=20, every=0.01)
        attacking = asyncio.ensure_future(asyncio.to_thread(attack, control.address, 200))
        async with grpc.aio.insecure_channel(control.address) as channel:
            for _ in range(20):
                await channel.unary_unary(LIST.decode())(b"", timeout=10)
        (await attacking).close()


# HTTP.

GET = b"GET /healthz HTTP/1.1\r\nHost: control\r\n\r\n"
POST = b"POST /api/v1/events HTTP/1.1\r\nHost: control\r\nContent-Type: application/json\r\n"


def web(control):
    """Connect to control's HTTP."""
    host, _, port = control.http_address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def drip(control, begin, *, most=1_000):
    """Send a byte every 10 ms until the server closes; returns what it said, None: it did not."""
    with web(control) as connection:
        connection.sendall(begin)
        connection.settimeout(0.01)
        said = b""
        for _ in range(most):
            try:
                more = connection.recv(4096)
                said += more
                if not more:
                    return said
                continue
            except TimeoutError:
                pass
            except OSError:
                return said
            with contextlib.suppress(OSError):
                connection.send(b"X")
        return None


@pytest.mark.parametrize(
    "begin", [b"GET /", b"GET /healthz HTTP/1.1\r\nHost: "], ids=["line", "field"]
)
async def test_the_head_of_a_request_arrives_in_time(monkeypatch, begin):
    """Otherwise the connection is closed, as one that is silent."""
    async with serving() as control:
        assert await asyncio.to_thread(lambda: drip(control, begin, most=60)) is None
    monkeypatch.setattr("meshrpc.control.server.HTTP_IDLE", 0.3)
    async with serving() as control:
        assert await asyncio.to_thread(drip, control, begin) is not None


async def test_the_body_of_a_request_arrives_in_time(monkeypatch):
    """408 for one that does not."""
    begin = POST + b"Content-Length: 100000\r\n\r\n"
    async with serving() as control:
        assert await asyncio.to_thread(lambda: drip(control, begin, most=60)) is None
    monkeypatch.setattr("meshrpc.control.http.BODY_WITHIN", 0.3)

    def first_words():
        with web(control) as connection:
            connection.sendall(begin)
            return connection.recv(4096)

    async with serving() as control:
        assert (await asyncio.to_thread(first_words)).startswith(b"HTTP/1.1 408 ")


async def test_a_client_that_goes_in_the_middle_of_a_body_is_no_bug(caplog):
    """Nobody is left to answer, and nothing to log."""

    def go():
        with web(control) as connection:
            connection.sendall(POST + b"Content-Length: 100\r\n\r\n{")

    def ask():
        with web(control) as connection:
            connection.sendall(GET)
            return connection.recv(4096)

    async with serving() as control:
        for _ in range(20):
            await asyncio.to_thread(go)
        assert (await asyncio.to_thread(ask)).startswith(b"HTTP/1.1 200 ")
    assert not caplog.records


async def test_connections_are_bounded(monkeypatch):
    """Who has one keeps it; the newest are closed."""
    most = 5
    monkeypatch.setattr("meshrpc.control.server.most_http_connections", lambda: most)

    def connect():
        with contextlib.ExitStack() as stack:
            first = [stack.enter_context(web(control)) for _ in range(most)]
            for each in first:
                each.sendall(GET)
                assert each.recv(4096).startswith(b"HTTP/1.1 200 ")
            for _ in range(20):
                assert stack.enter_context(web(control)).recv(1) == b""
            first[0].sendall(GET)
            assert first[0].recv(4096).startswith(b"HTTP/1.1 200 ")

    async with serving() as control:
        await asyncio.to_thread(connect)


async def test_who_does_not_read_the_answer_does_not_keep_the_place(monkeypatch, caplog):
    """Otherwise as many as there are places would close the port to probes and supervisors."""

    async def much(_face, _request):
        return aiohttp.web.Response(body=b"x" * (32 << 20))

    monkeypatch.setattr(HttpFace, "_services", much)
    monkeypatch.setattr("meshrpc.control.server.most_http_connections", lambda: 1)
    monkeypatch.setattr("meshrpc.control.http.TAKEN_WITHIN", 0.1)

    def others_are_answered():
        with web(control) as silent:
            silent.sendall(GET.replace(b"/healthz", b"/api/v1/services"))
            silent.recv(1)
            answer = b""
            while not answer:
                with web(control) as other, contextlib.suppress(ConnectionError):
                    other.sendall(GET)
                    answer = other.recv(4096)
            return answer

    async with asyncio.timeout(20), serving() as control:
        assert (await asyncio.to_thread(others_are_answered)).startswith(b"HTTP/1.1 200 ")
    assert not caplog.records


async def test_a_head_that_is_too_long_is_refused():
    """8 KiB, as aiohttp has it."""

    def ask():
        with web(control) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n")
            return connection.recv(4096)

    async with serving() as control:
        assert b" 400 " in (await asyncio.to_thread(ask)).partition(b"\r\n")[0]

"""Each option of `SERVER_OPTIONS` stops something, and does not when it is taken out."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from meshrpc.client.options import MESH
from meshrpc.server.options import SERVER_OPTIONS, most_connections
from tests.hostile import http2, server

OPTIONS = dict(SERVER_OPTIONS)
KIB = 1024


@dataclass
class Attempt:
    """One try at a server. `patience` is how long it waits for what may never come, in seconds."""

    address: str
    patience: float
    table: dict[str, Any]

    def connect(self):
        return http2.Connection(self.address, patience=self.patience)

    def channel(self, **options):
        given = [(f"grpc.{name}", value) for name, value in options.items()]
        return grpc.aio.insecure_channel(self.address, options=given)

    async def statuses(self, count, **arguments):
        """Make so many calls, one after the other; returns the set of their codes."""
        async with self.channel() as channel:
            say = channel.unary_unary(server.ECHO.decode())
            return {await say(b"", timeout=10, **arguments).code() for _ in range(count)}


async def a_second_server_fails(attempt):
    """A port in use is an error."""
    second = grpc.aio.server()
    try:
        second.add_insecure_port(attempt.address)
    except RuntimeError:
        return True
    finally:
        await second.stop(None)
    return False


async def pings_are_borne(attempt):
    """A client may ping an idle connection at the interval of the mesh's own clients, here a tenth."""
    interval = dict(MESH)["grpc.keepalive_time_ms"] / 10 / 1000

    def ping():
        with attempt.connect().greet() as connection:
            for _ in range(5):
                connection.send(http2.frame(http2.PING, payload=bytes(8)))
                for kind, flags, _, _ in connection.frames():
                    if kind == http2.GOAWAY:
                        return False
                    if kind == http2.PING and flags & http2.ACK:
                        break
                else:
                    return False
                threading.Event().wait(interval)  # after the answer: never sooner at the server
            return True

    return await asyncio.to_thread(ping)


async def who_vanishes_is_let_go(attempt):
    """A client that answers no ping is cut off."""

    def vanish():
        with attempt.connect().greet() as connection:
            return connection.is_closed()

    return await asyncio.to_thread(vanish)


async def who_says_nothing_is_let_go(attempt):
    """A connection that never begins is cut off."""

    def be_silent():
        with attempt.connect() as connection:
            return connection.is_closed()

    return await asyncio.to_thread(be_silent)


async def metadata_within_the_limit_passes(attempt):
    """15 KiB, twelve times over: none is refused by chance."""
    metadata = (("x", "y" * 15 * KIB),)
    return await attempt.statuses(12, metadata=metadata) == {grpc.StatusCode.OK}


async def metadata_above_the_limit_is_refused(attempt):
    """17 KiB, twelve times over: none passes by chance."""
    metadata = (("x", "y" * 17 * KIB),)
    return await attempt.statuses(12, metadata=metadata) == {grpc.StatusCode.RESOURCE_EXHAUSTED}


async def a_large_request_is_refused(attempt):
    """One byte more than 4 MiB."""
    async with attempt.channel(max_send_message_length=-1) as channel:
        call = channel.unary_unary(server.TAKE.decode())(bytes(4 * KIB * KIB + 1), timeout=10)
        return await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def a_large_response_is_refused(attempt):
    """One byte more than 4 MiB, which this client would take."""
    async with attempt.channel(max_receive_message_length=-1) as channel:
        size = str(4 * KIB * KIB + 1).encode()
        call = channel.unary_unary("/hostile.Echo/Large")(size, timeout=10)
        return await call.code() is not grpc.StatusCode.OK


async def streams_are_bounded(attempt):
    """Of 50 at once on one connection 40 are refused; the table's thousand is 10 here."""

    def open_many():
        with attempt.connect().greet() as connection:
            for stream in range(1, 100, 2):
                request = http2.request(server.TAKE, timeout=None)
                connection.send(http2.headers(stream, request))
            refused = 0
            for kind, _, _, _ in connection.frames():
                refused += kind == http2.RST_STREAM
                if refused == 40:
                    return True
            return False

    return await asyncio.to_thread(open_many)


async def idle_connections_are_closed(attempt):
    """One without a call is told to go."""

    def be_idle():
        with attempt.connect().greet() as connection:
            return any(kind == http2.GOAWAY for kind, *_ in connection.frames())

    return await asyncio.to_thread(be_idle)


async def connections_are_bounded(attempt):
    """Of 40 at once 20 are closed; the table's figure is 20 here."""

    def open_many():
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(attempt.connect()) for _ in range(40)]
            return all(each.is_closed() for each in opened[-15:])

    return await asyncio.to_thread(open_many)


async def waiting_calls_are_bounded(attempt):
    """Of three times the limit while the event loop is blocked the first wait, the others fail at once.

    On a bare server, because a service asks for calls before it can serve them (`intake.py`).
    """
    limit = int(OPTIONS["grpc.server.max_pending_requests_hard_limit"])
    count, most = 3 * limit, limit + 4  # some are on their way out of the queue
    enough = threading.Event()
    failed = []

    def over(future):
        if future.code() is not grpc.StatusCode.OK:
            failed.append(future)
            if len(failed) >= count - most:
                enough.set()

    bare = grpc.aio.server(options=list(attempt.table.items()))
    bare.add_generic_rpc_handlers((server.Anything(),))
    address = f"127.0.0.1:{bare.add_insecure_port('127.0.0.1:0')}"
    await bare.start()
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(1) as thread:
        await asyncio.to_thread(grpc.channel_ready_future(channel).result, 10)
        say = channel.unary_unary("/any./Say")

        def call():
            futures = [say.future(b"", timeout=30) for _ in range(count)]
            for future in futures:
                future.add_done_callback(over)
            return [future.code() for future in futures]

        calling = thread.submit(call)
        enough.wait(attempt.patience)  # blocks the event loop: that is what this is about
        codes = await asyncio.wrap_future(calling)
    await bare.stop(None)
    answered = codes.count(grpc.StatusCode.OK)
    waited, others = codes[:answered], codes[answered:]
    return (
        limit <= answered <= most
        and set(waited) == {grpc.StatusCode.OK}
        and set(others) == {grpc.StatusCode.CANCELLED}
    )


_NONE = object()


@dataclass
class Pin:
    """What an option is for; `instead` is given where grpcio's own value happens to be the same."""

    holds: Callable[[Attempt], Awaitable[bool]]
    smaller: dict[str, int] = field(default_factory=dict)
    """The test takes this fraction of these options, to be quick."""
    instead: Any = _NONE


PINGS = {"grpc.http2.min_ping_interval_without_data_ms": 10}
VANISHED = {"grpc.keepalive_time_ms": 100, "grpc.http2.ping_timeout_ms": 100}

PINS = {
    "grpc.so_reuseport": Pin(a_second_server_fails),
    "grpc.http2.min_ping_interval_without_data_ms": Pin(pings_are_borne, PINGS),
    "grpc.keepalive_permit_without_calls": Pin(pings_are_borne, PINGS),
    "grpc.keepalive_time_ms": Pin(who_vanishes_is_let_go, VANISHED),
    "grpc.http2.ping_timeout_ms": Pin(who_vanishes_is_let_go, VANISHED),
    "grpc.server_handshake_timeout_ms": Pin(
        who_says_nothing_is_let_go, {"grpc.server_handshake_timeout_ms": 100}
    ),
    "grpc.max_metadata_size": Pin(metadata_within_the_limit_passes),
    "grpc.absolute_max_metadata_size": Pin(metadata_above_the_limit_is_refused),
    "grpc.max_receive_message_length": Pin(a_large_request_is_refused, instead=-1),
    "grpc.max_send_message_length": Pin(a_large_response_is_refused),
    "grpc.max_concurrent_streams": Pin(streams_are_bounded, {"grpc.max_concurrent_streams": 100}),
    "grpc.max_connection_idle_ms": Pin(
        idle_connections_are_closed, {"grpc.max_connection_idle_ms": 3_000}
    ),
    "grpc.max_allowed_incoming_connections": Pin(
        connections_are_bounded,
        {
            "grpc.max_allowed_incoming_connections": OPTIONS[
                "grpc.max_allowed_incoming_connections"
            ]
            // 20
        },
    ),
    "grpc.server.max_pending_requests": Pin(waiting_calls_are_bounded, instead=0),
    "grpc.server.max_pending_requests_hard_limit": Pin(waiting_calls_are_bounded),
}


def test_every_option_is_pinned():
    """An option without a reason that can be shown has no place in the table."""
    assert set(PINS) == set(OPTIONS)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "taken out"])
@pytest.mark.parametrize("name", OPTIONS)
async def test_an_option_stops_what_it_is_for(monkeypatch, name, kept):
    """It holds with the table as it is, and not without this one entry."""
    pin = PINS[name]
    table = {key: int(value) // pin.smaller.get(key, 1) for key, value in OPTIONS.items()}
    if not kept:
        del table[name]
        if pin.instead is not _NONE:
            table[name] = pin.instead
    monkeypatch.setattr("meshrpc.server.serving.SERVER_OPTIONS", tuple(table.items()))
    async with server.service() as serving:
        attempt = Attempt(serving.address, 10.0 if kept else 0.3, table)
        try:
            assert await pin.holds(attempt) is kept
        finally:
            serving._serving._hurry.set()  # nobody else knows of it


def test_the_mesh_pings_no_faster_than_the_mesh_bears():
    """Timers fire early: twice as fast as agreed is still no offence."""
    least = OPTIONS["grpc.http2.min_ping_interval_without_data_ms"]
    assert dict(MESH)["grpc.keepalive_time_ms"] >= 2 * least


@pytest.mark.parametrize(
    ("open_files", "most"), [(1024, 768), (20_000, 10_000), (4, 3), (1, 1), (None, 10_000)]
)
def test_connections_leave_files_for_the_process_itself(open_files, most):
    """A quarter of those that it may open, however few."""
    assert most_connections(open_files) == most

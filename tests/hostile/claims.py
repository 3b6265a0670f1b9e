"""What has to hold of a server because of its options, each as a function of an `Attempt` at it."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

from meshrpc.client.options import MESH
from meshrpc.server.options import SERVER_OPTIONS
from tests.hostile import http2, server

KIB = 1024


@dataclass
class Attempt:
    """One try at a server. `patience` is how long it waits for what may never come, in seconds."""

    address: str
    patience: float
    table: dict[str, Any]
    say: bytes = server.ECHO
    """A method that takes an empty message."""
    stream: bytes = server.TAKE
    """One that takes a stream of them."""

    def connect(self):
        return http2.Connection(self.address, patience=self.patience)

    def channel(self, **options):
        given = [(f"grpc.{name}", value) for name, value in options.items()]
        return grpc.aio.insecure_channel(self.address, options=given)

    async def statuses(self, count, **arguments):
        """Make so many calls, one after the other; returns the set of their codes."""
        async with self.channel() as channel:
            say = channel.unary_unary(self.say.decode())
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
        call = channel.unary_unary(attempt.stream.decode())(bytes(4 * KIB * KIB + 1), timeout=10)
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
                request = http2.request(attempt.stream, timeout=None)
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


async def requests_arrive_in_time(attempt):
    """A call whose message never comes is answered."""

    def wait():
        with attempt.connect().greet() as connection:
            connection.send(http2.headers(1, http2.request(attempt.say, timeout=None)))
            return connection.answered(1) is not None

    return await asyncio.to_thread(wait)


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
    limit = int(dict(SERVER_OPTIONS)["grpc.server.max_pending_requests_hard_limit"])
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


NONE = object()


@dataclass
class Pin:
    """What an option is for; `instead` is given where grpcio's own value happens to be the same."""

    holds: Callable[[Attempt], Awaitable[bool]]
    smaller: dict[str, int] = field(default_factory=dict)
    """The test takes this fraction of these options, to be quick."""
    instead: Any = NONE

    def table(self, options, name, *, kept):
        """Return the table with quick times and small sizes, and with this entry or not."""
        table = {key: int(value) // self.smaller.get(key, 1) for key, value in options.items()}
        if not kept:
            del table[name]
            if self.instead is not NONE:
                table[name] = self.instead
        return table


async def pings_too_soon_are_borne(attempt):
    """Twenty, each as soon as the one before is answered: no clock sends them so by accident."""

    def ping():
        with attempt.connect().greet() as connection:
            answered = 0
            connection.send(http2.frame(http2.PING, payload=bytes(8)))
            for kind, flags, _, _ in connection.frames():
                if kind == http2.PING and flags & http2.ACK:
                    answered += 1
                    connection.send(http2.frame(http2.PING, payload=bytes(8)))
                if kind == http2.GOAWAY or answered == 20:
                    break
            return answered == 20

    return await asyncio.to_thread(ping)

"""What the installed grpcio says of calls that no handler has seen: the texts that retries rely on."""

import asyncio
import contextlib
import json
import socket

import grpc
import pytest

from meshrpc.resilience.outcome import Outcome, classify
from meshrpc.resilience.retry import read_failure
from meshrpc.wire import NOT_EXECUTED
from tests.drop_in.tls import certificate
from tests.echo import UNAVAILABLE

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS = 1, 3, 4
_REFUSED_STREAM, _CANCEL = 7, 8


def frame(kind, stream=0, payload=b"", flags=0):
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


async def read_frame(reader):
    head = await reader.readexactly(9)
    await reader.readexactly(int.from_bytes(head[:3], "big"))
    return head[3], head[4], int.from_bytes(head[5:], "big")


@contextlib.asynccontextmanager
async def http2_server(on_headers):
    """Serve HTTP/2 on a free port, which is yielded; `on_headers` answers each request."""
    writers = []

    async def serve(reader, writer):
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readexactly(len(_PREFACE))
            writer.write(frame(_SETTINGS))
            while True:
                kind, flags, stream = await read_frame(reader)
                if kind == _SETTINGS and not flags & 1:
                    writer.write(frame(_SETTINGS, flags=1))
                elif kind == _HEADERS:
                    on_headers(writer, stream)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            for writer in writers:
                writer.close()


async def error_of_a_call(made):
    async with made as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/test.Echo/Say")(b"", timeout=10)
    return raised.value


def failure_of(error):
    return read_failure(error.code(), error.details(), tuple(error.trailing_metadata()))


async def failure_of_a_call(port, credentials=None):
    address = f"127.0.0.1:{port}"
    if credentials is None:
        made = grpc.aio.insecure_channel(address)
    else:
        made = grpc.aio.secure_channel(address, credentials)
    return failure_of(await error_of_a_call(made))


async def test_a_refused_connection_is_known_to_have_carried_nothing():
    """Nobody listens on the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        failure = await failure_of_a_call(free.getsockname()[1])
    assert failure.code is UNAVAILABLE
    assert failure.not_executed
    assert not failure.untrusted


@contextlib.contextmanager
def deaf_port():
    """Yield a port where connections are never accepted: those that wait for it fill its queue."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listening.getsockname())
        yield listening.getsockname()[1]


@pytest.mark.parametrize("policy", ["pick_first", "round_robin"])
async def test_a_connection_that_is_given_up_is_known_to_have_carried_nothing(policy):
    """It took too long. Two of grpcio's timers may say so, each in its own words."""
    config = json.dumps({"loadBalancingConfig": [{policy: {}}]})
    options = [("grpc.min_reconnect_backoff_ms", 100), ("grpc.service_config", config)]
    with deaf_port() as port:
        channel = grpc.aio.insecure_channel(f"ipv4:127.0.0.1:{port}", options=options)
        error = await error_of_a_call(channel)
    assert error.details().endswith(("tcp handshaker shutdown", "connect() timed out"))
    failure = failure_of(error)
    assert failure.not_sent
    assert failure.not_executed
    assert not failure.untrusted
    assert not failure.broken
    assert classify(error.code(), error.details()) is Outcome.UNREACHED


async def test_a_name_that_nobody_knows_is_known_to_have_carried_nothing():
    """Its name server does not answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        target = f"dns://127.0.0.1:{silent.getsockname()[1]}/shop.example:1"
        options = [("grpc.dns_ares_query_timeout", 100)]
        error = await error_of_a_call(grpc.aio.insecure_channel(target, options=options))
    assert failure_of(error).not_sent
    assert classify(error.code(), error.details()) is Outcome.UNREACHED


@pytest.mark.parametrize(("error", "expected"), [(_REFUSED_STREAM, True), (_CANCEL, False)])
async def test_only_a_refused_stream_is_known_to_have_been_seen_by_nobody(error, expected):
    """REFUSED_STREAM is a promise (RFC 9113, 8.7); other resets may come from a handler."""

    def reset(writer, stream):
        writer.write(frame(_RST_STREAM, stream, error.to_bytes(4, "big")))

    async with http2_server(reset) as port:
        failure = await failure_of_a_call(port)
    assert failure.not_executed is expected


async def test_a_connection_that_breaks_may_have_carried_the_call():
    """The server hangs up once it has the request."""
    async with http2_server(lambda writer, stream: writer.close()) as port:
        failure = await failure_of_a_call(port)
    assert failure.code is UNAVAILABLE
    assert not failure.not_executed
    assert failure.broken


@pytest.mark.parametrize(
    "details",
    ["Socket closed", "recvmsg:Connection reset by peer", "ping timeout", "Cancelling all calls"],
)
def test_what_older_grpcio_says_of_a_connection_that_broke_is_known(details):
    """Seen with 1.82.1 for a process that is killed, reset, frozen, or stops without grace."""
    assert read_failure(UNAVAILABLE, details, ()).broken
    assert not read_failure(UNAVAILABLE, details, ((NOT_EXECUTED, "1"),)).broken


def test_what_a_server_says_itself_is_no_broken_connection():
    """It has answered."""
    assert not read_failure(UNAVAILABLE, "out of order", ()).broken


@pytest.mark.parametrize("side", ["a server without TLS", "a server nobody vouches for"])
async def test_sides_that_do_not_trust_each_other_are_told_from_those_that_are_away(side):
    """Nothing was sent, and trying again does not help."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if side == "a server without TLS":
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        keys = grpc.ssl_server_credentials([certificate("shop.example")])
        port = server.add_secure_port("127.0.0.1:0", keys)
    await server.start()
    credentials = grpc.ssl_channel_credentials(certificate("other.example")[1])
    failure = await failure_of_a_call(port, credentials)
    await server.stop(None)
    assert failure.not_sent
    assert failure.untrusted

"""Requests that are not what they should be: each gets an answer of its own, and nobody else notices."""

import asyncio
import gzip
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf import struct_pb2

from meshrpc.wire import NOT_EXECUTED
from tests.hostile import http2, server
from tests.hostile.attacks import nested

CODE = grpc.StatusCode
SAY = server.ECHO.decode()
READ = server.READ.decode()
USUAL = {
    b":method": b"POST",
    b":scheme": b"http",
    b":authority": b"h",
    b":path": server.ECHO,
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}


def cases():
    """Yield what is odd about a request, and its metadata; without None."""
    timeouts = (
        *(b"abc", b"99999999H", b"-1S", b"1.5S", b"0n", b"9" * 30 + b"S", b"", b"1", b"S", b"\xff"),
        *(b"1S,2S", b"0S", b"99999999999999999999n"),
    )
    for value in timeouts:
        yield f"timeout {value!r}", {b"grpc-timeout": value}
    paths = (
        *(b"/hostile.Echo/\xff\xfe", b"/any.\xff/x", b"/any.\n\x1b[31m/x", b"", b"x", b"/", b"//"),
        *(b"/any./" + b"a" * 9000, b"/any.\x00/x", b"*", b"http://x/y/z"),
    )
    for value in paths:
        yield f"path {value[:20]!r}", {b":path": value}
    for key in (b":path", b":method", b"te", b"content-type"):
        yield f"no {key.decode()}", {key: None}
    for value in (b"GET", b"PUT"):
        yield f"method {value!r}", {b":method": value}
    yield "JSON", {b"content-type": b"application/json"}
    values = (b"\xff\xfe", b"a\nb", b"\x1b[31m", b"\x00", b" ", b"\t", "é".encode(), b"c" * 15_000)
    for key in (b"mesh-caller", b"mesh-criticality", b"mesh-target", b"traceparent", b"baggage"):
        for value in values:
            yield f"{key.decode()} {value[:20]!r}", {key: value}
    for value in (b"!!!!", b"AAA", b"\xff", b"A", b""):
        yield f"x-bin {value!r}", {b"x-bin": value}
        yield f"mesh-load-bin {value!r}", {b"mesh-load-bin": value}
    for key in (b"UPPER", b"a b", b"", b"\xff", b":odd", b"grpc-internal", b"content-length"):
        yield f"key {key!r}", {key: b"v"}
    for key in (b"grpc-encoding", b"grpc-accept-encoding", b"grpc-previous-rpc-attempts", b"host"):
        yield f"key {key!r}", {key: b"v"}


async def test_every_odd_request_is_answered(serving, good):
    """With a status or by a reset, and its connection serves the next call, or says that it ends."""

    def ask(pairs):
        with http2.Connection(serving.address, patience=10.0).greet() as connection:
            request = http2.block([pair for pair in pairs.items() if pair[1] is not None])
            connection.send(http2.headers(1, request) + http2.data(1, http2.message(b"hi")))
            answer = connection.answered(1)
            if answer is None or answer[0] == http2.GOAWAY:
                return answer, None
            connection.send(http2.call(3, server.ECHO, b"next"))
            return answer, connection.answered(3)

    given = list(cases())
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, {**USUAL, **pairs}) for _, pairs in given]
        answers = await asyncio.gather(*map(asyncio.wrap_future, asked))
    for (odd, _), (answer, following) in zip(given, answers, strict=True):
        assert answer is not None, odd
        assert following is not None, odd
        assert following[0] == http2.HEADERS, odd
    await good(5)


async def outcome(address, method, request, **arguments):
    """Make one call, then a good one on the same connection; returns the first one's error."""
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(method)(request, timeout=10, **arguments)
        assert await channel.unary_unary(SAY)(b"good", timeout=10) == b"good"
    return raised.value


@pytest.mark.parametrize("kib", [17, 100])
async def test_too_much_metadata_is_refused(serving, kib):
    """Above 16 KiB; the connection goes on."""
    metadata = (("x", "y" * kib * 1024),)
    error = await outcome(serving.address, SAY, b"", metadata=metadata)
    assert error.code() is CODE.RESOURCE_EXHAUSTED


async def test_too_many_keys_are_refused(serving):
    """Ten thousand of them; the connection goes on."""
    metadata = tuple((f"k{number}", "") for number in range(10_000))
    error = await outcome(serving.address, SAY, b"", metadata=metadata)
    assert error.code() is CODE.RESOURCE_EXHAUSTED


async def test_too_large_a_message_is_refused(serving):
    """5 MB where 4 MiB are allowed; the connection goes on."""
    error = await outcome(serving.address, SAY, bytes(5_000_000))
    assert error.code() is CODE.RESOURCE_EXHAUSTED


async def test_a_message_that_inflates_beyond_the_limit_is_refused(serving):
    """20 MB of zeros in 20 kB."""
    error = await outcome(
        serving.address, SAY, bytes(20_000_000), compression=grpc.Compression.Gzip
    )
    assert error.code() is CODE.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "payload",
    [b"nonsense", gzip.compress(b"x" * 1000, mtime=0)[:-9]],
    ids=["nonsense", "cut short"],
)
async def test_what_is_compressed_badly_is_refused(serving, good, payload):
    """The stream fails, the connection goes on."""

    def attack():
        with http2.Connection(serving.address, patience=10.0).greet() as connection:
            request = http2.request(server.ECHO, (b"grpc-encoding", b"gzip"))
            message = http2.message(payload, compressed=1)
            connection.send(http2.headers(1, request) + http2.data(1, message))
            first = connection.answered(1)
            connection.send(http2.call(3, server.ECHO, b"next"))
            return first, connection.answered(3)

    first, following = await asyncio.to_thread(attack)
    assert first is not None
    assert b"13" in first[1], "INTERNAL"
    assert following is not None
    assert following[0] == http2.HEADERS
    await good(3)


@pytest.mark.parametrize("depth", [100, 200, 1_000, 20_000])
async def test_a_message_nested_too_deeply_cannot_be_decoded(serving, depth):
    """INTERNAL, as for every request that cannot be parsed; no stack is used up."""
    error = await outcome(serving.address, READ, nested(depth))
    assert (error.code(), error.details()) == (CODE.INTERNAL, "request cannot be decoded")


async def test_a_message_nested_as_people_do_is_decoded(serving):
    """Twenty levels."""
    message = nested(20)
    async with grpc.aio.insecure_channel(serving.address) as channel:
        answer = await channel.unary_unary(READ)(message, timeout=10)
    assert struct_pb2.Struct.FromString(answer) == struct_pb2.Struct.FromString(message)


async def test_a_target_of_nonsense_is_refused_as_not_executed(serving):
    """Whatever `mesh-target` says, what it does not name does not run here."""
    error = await outcome(serving.address, SAY, b"", metadata=(("mesh-target", "x" * 9_000),))
    assert error.code() is CODE.UNAVAILABLE
    assert NOT_EXECUTED in dict(error.trailing_metadata())

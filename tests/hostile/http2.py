"""HTTP/2 as an attacker speaks it: frames made by hand, over a blocking socket, with no rules kept.

HPACK is written without its tables: every pair is a literal that is never indexed, which every
server must take. What comes back is read only as far as frames go.
"""

import contextlib
import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
CANCEL = 8
ENHANCE_YOUR_CALM = 11


def frame(kind, stream=0, payload=b"", flags=0, *, length=None):
    """Return one frame; `length` is what its head says of a payload that is not that long."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def settings(**values):
    """Return a SETTINGS frame; values by number, as `s4=0`."""
    pairs = (struct.pack(">HI", int(name[1:]), value) for name, value in values.items())
    return frame(SETTINGS, payload=b"".join(pairs))


def _integer(value, bits):
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    out, value = [most], value - most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes((*out, value))


def block(pairs):
    """Return a header block: pairs of bytes, each a literal."""
    parts = []
    for name, value in pairs:
        parts += [b"\x10", _integer(len(name), 7), name, _integer(len(value), 7), value]
    return b"".join(parts)


def request(path, *more, timeout=b"10S"):
    """Return the header block of a gRPC call."""
    pairs = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"hostile"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    if timeout is not None:
        pairs.append((b"grpc-timeout", timeout))
    return block((*pairs, *more))


def headers(stream, header_block, *, end_stream=False):
    """Return a block as one HEADERS frame, and CONTINUATIONs where it is too long for one."""
    first, rest = header_block[:16384], header_block[16384:]
    flags = (END_STREAM if end_stream else 0) | (0 if rest else END_HEADERS)
    frames = [frame(HEADERS, stream, first, flags)]
    while rest:
        piece, rest = rest[:16384], rest[16384:]
        frames.append(frame(CONTINUATION, stream, piece, 0 if rest else END_HEADERS))
    return b"".join(frames)


def message(payload, *, compressed=0, length=None):
    """Return a gRPC message; `length` is what its head says."""
    size = len(payload) if length is None else length
    return struct.pack(">BI", compressed, size) + payload


def data(stream, payload, *, end_stream=True):
    """Return a payload as DATA frames of the usual size."""
    pieces = [payload[at : at + 16384] for at in range(0, len(payload), 16384)] or [b""]
    return b"".join(
        frame(DATA, stream, piece, END_STREAM if end_stream and number == len(pieces) else 0)
        for number, piece in enumerate(pieces, 1)
    )


def call(stream, path, payload=b"", *more, timeout=b"10S"):
    """Return a whole unary call."""
    return headers(stream, request(path, *more, timeout=timeout)) + data(stream, message(payload))


class Connection:
    """One attacker's connection. Nothing is read until asked for."""

    def __init__(self, address, *, patience=2.0):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0
        self._unread = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def greet(self, **values):
        """Begin as any client does."""
        self.send(PREFACE + settings(**values))
        return self

    def send(self, payload):
        """Send it all; returns whether the server took it: it may have closed, or not read on."""
        view = memoryview(payload)
        try:
            while view:
                count = self.socket.send(view[: 1 << 18])
                self.sent += count
                view = view[count:]
        except OSError:
            return False
        return True

    def frames(self):
        """Yield frames as `(kind, flags, stream, payload)` until the server closes or is silent."""
        while True:
            while len(self._unread) >= 9:
                size = int.from_bytes(self._unread[:3], "big")
                if len(self._unread) < 9 + size:
                    break
                head, payload = self._unread[:9], self._unread[9 : 9 + size]
                self._unread = self._unread[9 + size :]
                yield head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, payload
            try:
                more = self.socket.recv(1 << 16)
            except OSError:
                return
            if not more:
                return
            self._unread += more

    def answered(self, stream):
        """Read on to the end of a stream; returns the frame that ended it, or None."""
        for kind, flags, of, payload in self.frames():
            if of == stream and (kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM)):
                return kind, payload
            if kind == GOAWAY:
                return kind, payload
        return None

    def is_closed(self):
        """Read until there is nothing more; returns whether that is because the server closed."""
        with contextlib.suppress(OSError):
            while self.socket.recv(1 << 16):
                pass
            return True
        try:
            self.socket.settimeout(0.01)
            return self.socket.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

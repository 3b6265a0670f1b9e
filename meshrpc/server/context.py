"""The context that handlers see: grpcio's own interface, with errors that say what is wrong.

Wraps grpcio's context by composition, because that is a closed class. It encodes and decodes
messages, so that a failure of either gets a status of its own; keeps time by the monotonic clock;
and checks metadata before grpcio does, which names no key and, for text under a `-bin` key, leaves
the caller without any answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from meshrpc.interceptors.chain_stop import stopped
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.metadata import checked

_OK = (grpc.StatusCode.OK, 0)


class DecodingError(Exception):
    """The request is not what the method takes."""


class EncodingError(Exception):
    """The handler's response is not what the method returns."""


class CallContext(grpc.aio.ServicerContext[Any, Any]):
    """One call, as its handler sees it."""

    def __init__(self, raw: Any, call: ServerCall | None) -> None:
        self._raw = raw
        self._call = call
        self.decoder: Callable[[bytes], Any] | None = None
        self.encoder: Callable[[Any], bytes] | None = None
        self.writing: asyncio.Lock | None = None
        """Held while a response of a stream is sent; None where there is only one response."""
        self.aborted: BaseException | None = None
        """What `abort` raised: grpcio accepts that very object and no other."""
        self.was_cancelled = False
        """Whether the client cancelled; the guard sets it."""
        self.has_status = False
        """Whether the call's status is on its way, also where `abort` was cancelled since."""

    def __repr__(self) -> str:
        return f"<CallContext {self._call!r}>"

    def decode(self, message: bytes) -> Any:
        """Return what the bytes of a request mean."""
        if self.decoder is None:
            return message
        try:
            return self.decoder(message)
        except Exception as error:
            raise DecodingError("request cannot be decoded") from error

    def encode(self, message: Any) -> bytes:
        """Return the bytes of a response."""
        try:
            if self.encoder is not None:
                encoded = self.encoder(message)
            else:
                # As in grpcio, a handler without a serialiser may answer with text.
                encoded = message.encode() if isinstance(message, str) else message
        except Exception as error:
            raise EncodingError("response cannot be encoded") from error
        if not isinstance(encoded, bytes):
            raise EncodingError("response cannot be encoded")
        return encoded

    async def read(self) -> Any:
        """Return the next request, or `grpc.aio.EOF` after the last."""
        message = await self._raw.read()
        return message if message is grpc.aio.EOF else self.decode(message)

    async def write(self, message: Any) -> None:
        """Send one response of a stream."""
        if self.writing is None:
            # grpcio would send it, and could then not send what the handler returns, ever.
            raise grpc.aio.UsageError("write is for streams: this method returns its one response")
        # Two at once fail in grpcio, and nothing more, not even a status, could be sent.
        async with self.writing:
            await self.write_encoded(self.encode(message))

    async def write_encoded(self, message: bytes) -> None:
        """Send one response of a stream, as it is."""
        await self._raw.write(message)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send initial metadata now."""
        await self._raw.send_initial_metadata(checked(initial_metadata or ()))

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with this status, which cannot be OK; always raises."""
        # Checked first: grpcio that fails while it aborts may leave the caller waiting.
        trailers = checked(trailing_metadata or ())
        if not isinstance(code, (grpc.StatusCode, int)):
            raise TypeError(f"a status code is a grpc.StatusCode, not {code!r}")
        if code in _OK:
            raise ValueError("abort ends a call with an error: OK is none")
        if self.aborted is not None:
            raise grpc.aio.UsageError("Abort already called!")
        call = self._call
        if call is not None and (call.dependency_failed or call.has_trailers):
            # As grpcio does it: what was set before holds unless abort brings its own.
            trailers = trailers or self._raw.trailing_metadata() or ()
            if call.dependency_failed:
                trailers = stopped(trailers)
            trailers = call.with_trailers(trailers)
        try:
            await self._raw.abort(code, sendable(str(details)), trailers)
        except grpc.aio.AbortError as error:
            self.aborted = error
            raise
        except asyncio.CancelledError:
            self.has_status = True
            raise
        except grpc.aio.InternalError as error:
            # Of all that grpcio tells, this alone tells surely that nobody waits any more.
            self.was_cancelled = True
            raise asyncio.CancelledError("the client has gone") from error
        raise grpc.aio.UsageError("abort returned")

    async def abort_with_status(self, status: Any) -> NoReturn:
        """End the call with this status; always raises."""
        await self.abort(status.code, status.details or "", status.trailing_metadata or ())

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set what is sent after the last response."""
        self._raw.set_trailing_metadata(checked(trailing_metadata or ()))

    def trailing_metadata(self) -> Any:
        """Return what will be sent after the last response."""
        return self._raw.trailing_metadata()

    def invocation_metadata(self) -> Any:
        """Return the request's metadata."""
        return self._raw.invocation_metadata() if self._call is None else self._call.metadata

    def set_code(self, code: Any) -> None:
        """Set the call's status."""
        self._raw.set_code(code)

    def code(self) -> Any:
        """Return the status set so far, None when none was."""
        return self._raw.code()

    def set_details(self, details: str) -> None:
        """Set the text beside the status."""
        self._raw.set_details(sendable(details) if isinstance(details, str) else details)

    def details(self) -> Any:
        """Return the text set so far."""
        return self._raw.details()

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress what is sent."""
        self._raw.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        """Send the next message as it is."""
        self._raw.disable_next_message_compression()

    def peer(self) -> str:
        """Return the client's address."""
        peer: str = self._raw.peer()
        return peer

    def peer_identities(self) -> Any:
        """Return the client's proven identities, if any."""
        return self._raw.peer_identities()

    def peer_identity_key(self) -> Any:
        """Return what kind of identity `peer_identities` holds."""
        return self._raw.peer_identity_key()

    def auth_context(self) -> Any:
        """Return what the transport knows of the client."""
        return self._raw.auth_context()

    def time_remaining(self) -> Any:
        """Return the seconds left; None without a deadline."""
        return self._raw.time_remaining() if self._call is None else self._call.time_remaining()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Have `callback` called with this context when the call is over, whatever the way."""
        self._raw.add_done_callback(lambda _raw: callback(self))

    def cancelled(self) -> bool:
        """Whether the client cancelled the call."""
        return self.was_cancelled or bool(self._raw.cancelled())

    def done(self) -> bool:
        """Whether the call's status has been sent."""
        return bool(self._raw.done())


class RequestStream:
    """The requests of a streaming call, decoded one by one."""

    def __init__(self, raw: Any, context: CallContext) -> None:
        self._raw = raw
        self._context = context

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> Any:
        return self._context.decode(await self._raw.__anext__())


def sendable(details: str) -> str:
    """Return a status text that UTF-8 can carry; for any other grpcio would never answer."""
    return details.encode("utf-8", "backslashreplace").decode()

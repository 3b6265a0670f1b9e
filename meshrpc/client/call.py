"""Calls: grpcio's four call objects over a logical call.

Each kind is one way to send, a message or a stream of them, with one way to receive. What a
user reads is the current attempt's; when an attempt failed and another one is due, the reader
waits for that one and goes on, so that it sees one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
)
from typing import Any

import grpc
import grpc.aio

from meshrpc.client.attempt import Attempt
from meshrpc.client.endpoint import Endpoint
from meshrpc.client.local_error import local_error
from meshrpc.client.mirroring import Sent
from meshrpc.client.requests import RequestStream
from meshrpc.client.waiting import AwaitableCall, cancellations, connected
from meshrpc.telemetry import tracing

_STYLES_MIXED = "The iterator and read/write APIs may not be mixed on a single RPC."
_FINISHED = "RPC already finished."


class _BeingReadError(RuntimeError):
    """Two tasks read one stream; grpcio has a RuntimeError for it too."""


class _UnaryResponse(AwaitableCall):
    """A call answered by one message."""

    _response: Any = None
    _answered = False
    _sampled = True
    _held = True

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    async def _result(self) -> Any:
        if not self._answered:
            try:
                data = await self._follow(_itself)
            except grpc.aio.AioRpcError:
                raise
            except Exception as error:
                self._attempt_failed(error)
                raise
            if not self._answered:  # by another task that awaits the same call
                self._response = self._method.deserialize(data)
                self._answered = True
        return self._response


class _StreamResponse(AwaitableCall):
    """A call answered by any number of messages."""

    _receiving = False
    _style: str | None = None
    iterated = False
    """Whether an iteration has come to its end, good or bad: as in grpcio, another ends at once."""

    def __del__(self) -> None:
        # As in grpcio before 1.83: a stream that nobody holds any more is cancelled. Its last
        # reference may go in any thread, and in the middle of anything.
        if self._done:
            return
        self._done = True
        attempt = self._attempt
        under_way = self._next or attempt
        instance = None if attempt is None else attempt.endpoint.instance.id
        tracing.end_client_span(
            self._span, grpc.StatusCode.CANCELLED, instance, "Cancelled upon garbage collection!"
        )
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its calls with it
            if self._is_counted:
                self._destination.loop.call_soon_threadsafe(self._destination.forget_call)
            if under_way is not None:
                self._destination.loop.call_soon_threadsafe(under_way.cancel)

    def _repeatable(self, attempt: Attempt) -> bool:
        return not self._received and super()._repeatable(attempt)

    def _use(self, style: str) -> None:
        if self._style is None or self._method.intercepted:
            self._style = style
        elif self._style != style:
            raise grpc.aio.UsageError(_STYLES_MIXED)

    def __aiter__(self) -> AsyncIterator[Any]:
        self._use("iterator")
        return _Messages(self)

    async def read(self) -> Any:
        """Return the next message; `grpc.aio.EOF` after the last."""
        if self._method.intercepted:  # there grpcio reads by iterating
            return await anext(_Messages(self), grpc.aio.EOF)
        if self._done:
            self._raise_for_status()
            return grpc.aio.EOF
        self._use("read")
        return await self.receive()

    async def receive(self) -> Any:
        """Return the next message; EOF after the last."""
        if self._receiving:
            # Grpcio says so as well; here it must not end the call for the other reader.
            raise _BeingReadError("another task is reading this stream")
        self._receiving = True
        try:
            # By grpcio's iterator also for `read`: its own `read` gives up the messages that are
            # still to come once a message could not be written.
            data = await self._follow(_take_next)
        except grpc.aio.AioRpcError:
            if not self._is_fine():
                raise
            return grpc.aio.EOF
        except Exception as error:
            self._attempt_failed(error)
            raise
        finally:
            self._receiving = False
        if data is grpc.aio.EOF:
            if self._method.intercepted and self._attempt is not None:
                self._attempt.check()
            return data
        if not self._received:
            self._received = True
            if self._attempt is not None:
                self._attempt.answered()
        try:
            return self._method.deserialize(data)
        except grpc.aio.AioRpcError as error:
            self._break_off(error)
            raise


class _Messages(AsyncIterator[Any]):
    """Iterates over a stream's messages.

    The call does not know its iterators: with a reference each way, a stream that is dropped
    would go on until the garbage collector comes by.
    """

    __slots__ = ("_call",)

    def __init__(self, call: _StreamResponse) -> None:
        self._call = call

    async def __anext__(self) -> Any:
        call = self._call
        if call.iterated:
            raise StopAsyncIteration
        try:
            message = await call.receive()
        except _BeingReadError:
            raise
        except BaseException:
            call.iterated = True
            raise
        if message is grpc.aio.EOF:
            call.iterated = True
            raise StopAsyncIteration
        return message


def _itself(inner: Any) -> Awaitable[Any]:
    answer: Awaitable[Any] = inner
    return answer


def _take_next(inner: Any) -> Awaitable[Any]:
    return anext(aiter(inner), grpc.aio.EOF)


class _UnaryRequest(AwaitableCall):
    """A call with one request message."""

    _request: bytes

    def _invoke(self, endpoint: Endpoint, **options: Any) -> Any:
        return endpoint.multicallable(self._kind, self._method)(self._request, **options)


class _StreamRequest(AwaitableCall):
    """A call with any number of request messages."""

    _requests: RequestStream | None = None
    _connected: Any = None
    """The attempt that is known to have reached its instance."""
    _written = False
    _by_waiting = False

    def _invoke(self, endpoint: Endpoint, **options: Any) -> Any:
        messages = None if self._requests is None else self._requests.replay()
        return endpoint.multicallable(self._kind, self._method)(messages, **options)

    def _repeatable(self, attempt: Attempt) -> bool:
        if self._requests is not None:
            can_repeat = self._requests.take_back(cancelled=attempt.cancelled)
        else:
            can_repeat = not self._written
            self._end_writing(attempt)
        return can_repeat and super()._repeatable(attempt)

    def _feed(self, requests: AsyncIterable[Any] | Iterable[Any] | None) -> None:
        if requests is not None:
            self._requests = RequestStream(requests, self._method.serialize)

    def _close_requests(self) -> None:
        if self._requests is not None:
            self._requests.close()
        elif self._attempt is not None:
            self._end_writing(self._attempt)

    def _end_writing(self, attempt: Attempt) -> None:
        # Beneath interceptors grpcio makes an iterator of what is written, and goes on waiting for
        # its next message when the attempt is over.
        if self._method.intercepted:
            self._destination.wait(_done_writing(attempt.inner), contextvars.Context())

    def _raise_cause(self) -> None:
        if self._requests is None:
            return
        if self._requests.error is not None:
            raise self._requests.error
        if self._method.intercepted:
            return  # and it may be an interceptor that cancelled
        if self._cancelled and not self._cancel_asked:
            # Grpcio could not write the end of the stream, and did not wait to learn why.
            self._cancelled = False
            late = self.time_remaining() == 0
            self._error = local_error(
                grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.UNAVAILABLE,
                "the call ended while its requests were being sent",
            )
            raise self._error

    async def write(self, request: Any) -> None:
        """Send a message."""
        self._check_style()
        if self._done:
            raise asyncio.InvalidStateError(_FINISHED)
        data = self._method.serialize(request)
        before = cancellations()
        try:
            await self._send(lambda inner: inner.write(data))
        except grpc.aio.AioRpcError:
            if not self._is_fine():
                raise
            raise asyncio.InvalidStateError(_FINISHED) from None
        except asyncio.CancelledError:
            if self._written or cancellations() > before:
                raise
            # The call was cancelled, and not the task that waits for its connection.
            raise asyncio.InvalidStateError(_FINISHED) from None

    async def done_writing(self) -> None:
        """Say that no further message comes."""
        self._check_style()
        if not self._done:
            await self._send(lambda inner: inner.done_writing())

    def _check_style(self) -> None:
        if self._requests is not None:
            raise grpc.aio.UsageError(_STYLES_MIXED)

    async def _send(self, step: Callable[[Any], Awaitable[None]]) -> None:
        async def send(inner: Any) -> None:
            if self._connected is not inner:
                await connected(inner)
                self._connected = inner
            if inner.done() and not self._done:
                # Grpcio would refuse the message, although another attempt may take it.
                raise grpc.aio.AioRpcError(await inner.code())
            self._written = True
            await step(inner)

        await self._follow(send)


async def _done_writing(inner: Any) -> None:
    with contextlib.suppress(Exception):  # it is over
        await inner.done_writing()


class UnaryUnaryCall(_UnaryRequest, _UnaryResponse, grpc.aio.UnaryUnaryCall):
    """One request, one answer."""

    _kind = "unary_unary"

    def __init__(self, request: bytes, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._request = request
        self._begin()

    def _offer_copy(self) -> None:
        destination, mirror = self._destination, self._policy.mirror
        assert mirror is not None  # noqa: S101 - looked at by whoever asks
        sent = Sent(
            self._method,
            self._request,
            self._metadata,
            self._added,
            self._deadline,
            self._options,
        )
        destination.mirrors.offer(destination, mirror, sent, self._aim.hash_key)


class UnaryStreamCall(_UnaryRequest, _StreamResponse, grpc.aio.UnaryStreamCall):
    """One request, a stream of answers."""

    _kind = "unary_stream"

    def __init__(self, request: bytes, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._request = request
        self._begin()


class StreamUnaryCall(_StreamRequest, _UnaryResponse, grpc.aio.StreamUnaryCall):
    """A stream of requests, one answer."""

    _kind = "stream_unary"
    _sampled = False

    def __init__(self, requests: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._feed(requests)
        self._begin()


class StreamStreamCall(_StreamRequest, _StreamResponse, grpc.aio.StreamStreamCall):
    """A stream of requests, a stream of answers."""

    _kind = "stream_stream"

    def __init__(self, requests: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._feed(requests)
        self._begin()

"""Calls: grpcio's four call objects over a logical call.

Each kind is one way to send, a message or a stream of them, with one way to receive. What a
user reads is the current attempt's; when an attempt failed and another one is due, the reader
waits for that one and goes on, so that it sees one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable
from typing import Any

import grpc
import grpc.aio

from meshrpc.client.endpoint import Endpoint
from meshrpc.client.logical_call import LogicalCall
from meshrpc.client.requests import RequestStream

_STYLES_MIXED = "The iterator and read/write APIs may not be mixed on a single RPC."


class _UnaryResponse(LogicalCall):
    """A call answered by one message."""

    _response: Any = None
    _answered = False
    _sampled = True
    _held = True

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    async def _result(self) -> Any:
        if self._answered:
            return self._response
        while True:
            inner = None
            try:
                inner = await self._current()
                data = await inner
            except grpc.aio.AioRpcError:
                if inner is None or not self._superseded(inner):
                    raise
            except asyncio.CancelledError:
                if inner is None or self._cancel_asked or not self._superseded(inner):
                    self._raise_request_error()
                    self.cancel()
                    raise
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    self.cancel()
                    raise
            else:
                if not self._answered:
                    self._response = self._method.deserialize(data)
                    self._answered = True
                return self._response


class _StreamResponse(LogicalCall):
    """A call answered by any number of messages."""

    _received = False
    _reader: AsyncIterator[Any] | None = None
    _style: str | None = None

    def __del__(self) -> None:
        # As in grpcio before 1.83: a stream that nobody holds any more is cancelled.
        if not self._done and self._attempt is not None:
            self._attempt.inner.cancel()
            self._settle(grpc.StatusCode.CANCELLED, "Cancelled upon garbage collection!")

    def _repeatable(self) -> bool:
        return not self._received

    def _use(self, style: str) -> None:
        if self._style is None:
            self._style = style
        elif self._style != style:
            raise grpc.aio.UsageError(_STYLES_MIXED)

    def __aiter__(self) -> AsyncIterator[Any]:
        self._use("iterator")
        if self._reader is None:
            self._reader = self._messages()
        return self._reader

    async def _messages(self) -> AsyncIterator[Any]:
        while True:
            inner = await self._current()
            try:
                async for data in inner:
                    self._received = True
                    yield self._decode(data)
            except grpc.aio.AioRpcError:
                if not self._superseded(inner):
                    raise
            except asyncio.CancelledError:
                self._raise_or_continue(inner)
            else:
                return

    async def read(self) -> Any:
        """Return the next message; `grpc.aio.EOF` after the last."""
        self._use("read")
        while True:
            inner = await self._current()
            try:
                data = await inner.read()
            except grpc.aio.AioRpcError:
                if not self._superseded(inner):
                    raise
            except asyncio.CancelledError:
                self._raise_or_continue(inner)
            else:
                if data is grpc.aio.EOF:
                    return data
                self._received = True
                return self._decode(data)

    def _raise_or_continue(self, inner: Any) -> None:
        """Tell a cancellation by the user from a connection closed under the call."""
        task = asyncio.current_task()
        if (
            self._cancel_asked
            or not self._superseded(inner)
            or (task is not None and task.cancelling())
        ):
            self._raise_request_error()
            self.cancel()
            raise asyncio.CancelledError

    def _decode(self, data: bytes) -> Any:
        try:
            return self._method.deserialize(data)
        except grpc.aio.AioRpcError:
            self.cancel()
            raise


class _UnaryRequest(LogicalCall):
    """A call with one request message."""

    _request: bytes

    def _invoke(self, endpoint: Endpoint, **options: Any) -> Any:
        return endpoint.method(self._kind, self._method.path)(self._request, **options)


class _StreamRequest(LogicalCall):
    """A call with any number of request messages."""

    _requests: RequestStream | None = None
    _written = False

    def _invoke(self, endpoint: Endpoint, **options: Any) -> Any:
        messages = None if self._requests is None else self._requests.replay()
        return endpoint.method(self._kind, self._method.path)(messages, **options)

    def _repeatable(self) -> bool:
        if self._requests is not None:
            return super()._repeatable() and self._requests.replayable
        return super()._repeatable() and not self._written

    def _feed(self, requests: AsyncIterable[Any] | Iterable[Any] | None) -> None:
        if requests is not None:
            self._requests = RequestStream(requests, self._method.serialize)

    def _raise_request_error(self) -> None:
        if self._requests is not None and self._requests.error is not None:
            raise self._requests.error

    async def write(self, request: Any) -> None:
        """Send a message."""
        if self._requests is not None:
            raise grpc.aio.UsageError(_STYLES_MIXED)
        data = self._method.serialize(request)
        inner = await self._current()
        self._written = True
        await inner.write(data)

    async def done_writing(self) -> None:
        """Say that no further message comes."""
        if self._requests is not None:
            raise grpc.aio.UsageError(_STYLES_MIXED)
        inner = await self._current()
        await inner.done_writing()


class UnaryUnaryCall(_UnaryRequest, _UnaryResponse, grpc.aio.UnaryUnaryCall):
    """One request, one answer."""

    _kind = "unary_unary"

    def __init__(self, request: bytes, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._request = request
        self._begin()


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

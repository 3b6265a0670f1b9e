"""What a user puts into a call: the one message that it is made with, or a stream of them.

A stream is an iterator's (`requests.py` keeps of it what another attempt needs) or written message
by message; what was written belongs to the attempt that it was written to.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio

from meshrpc.client.attempt import Attempt
from meshrpc.client.endpoint import Endpoint
from meshrpc.client.local_error import local_error
from meshrpc.client.receiving import STYLES_MIXED
from meshrpc.client.requests import RequestStream
from meshrpc.client.waiting import AwaitableCall, cancellations, connected

_FINISHED = "RPC already finished."


class UnaryRequest(AwaitableCall):
    """A call with one request message."""

    _request: bytes

    def _invoke(self, endpoint: Endpoint, **options: Any) -> Any:
        return endpoint.multicallable(self._kind, self._method)(self._request, **options)


class StreamRequest(AwaitableCall):
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
            self._requests = RequestStream(requests, self._serializer())

    def _serializer(self) -> Callable[[Any], bytes]:
        """Return what makes bytes of the messages that are pulled from the user's iterator."""
        return self._method.serialize

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
            error = local_error(
                grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.UNAVAILABLE,
                "the call ended while its requests were being sent",
            )
            self._error = self._explain(error)
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
            raise grpc.aio.UsageError(STYLES_MIXED)

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

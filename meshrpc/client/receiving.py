"""What a user gets of a call: the one message that answers it, or a stream of them.

What is read is the current attempt's; when that failed and another one is due, the reader waits for
it and goes on, so that it sees one call. A stream that nobody holds any more is cancelled.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Generator
from typing import Any

import grpc
import grpc.aio

from meshrpc.client.attempt import Attempt
from meshrpc.client.waiting import AwaitableCall
from meshrpc.telemetry import tracing

STYLES_MIXED = "The iterator and read/write APIs may not be mixed on a single RPC."


class _BeingReadError(RuntimeError):
    """Two tasks read one stream; grpcio has a RuntimeError for it too."""


class UnaryResponse(AwaitableCall):
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


class StreamResponse(AwaitableCall):
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
            raise grpc.aio.UsageError(STYLES_MIXED)

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

    def __init__(self, call: StreamResponse) -> None:
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

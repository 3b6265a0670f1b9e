"""Waiting for a logical call: what its user awaits, whichever attempt it turns out to be.

Every wait is a step on the attempt that counts just now. When that one fails and another takes
its place, the step is taken again; when the call is over, its status is the call's, not what
grpcio made of it on the way. No wait outlasts the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Any, TypeVar

import grpc
import grpc.aio

from meshrpc.client.attempt import known
from meshrpc.client.local_error import CANCELLED_HERE
from meshrpc.client.logical_call import LogicalCall

T = TypeVar("T")

_OK = grpc.StatusCode.OK


def cancellations() -> int:
    """Return how often the running task was asked to end, and has not said that it will not."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def connected(inner: Any) -> None:
    """Wait until grpc's call `inner` has reached its instance, or is over.

    Grpcio's own wait goes on for ever when a stream is cancelled before it is connected.
    """
    connecting = asyncio.ensure_future(inner.wait_for_connection())
    over = asyncio.ensure_future(inner.code())
    try:
        await asyncio.wait((connecting, over), return_when=asyncio.FIRST_COMPLETED)
        if over.done() and known(inner.details()) == CANCELLED_HERE:
            raise asyncio.CancelledError
        await connecting
    finally:
        connecting.cancel()
        over.cancel()
        await asyncio.gather(connecting, over, return_exceptions=True)


class AwaitableCall(LogicalCall):
    """A logical call, and what its user can wait for."""

    _by_waiting = True
    """Whether the call is cancelled with a task that waits for its connection."""

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Return what the server sent ahead of its answer."""
        return await self._ask(
            lambda inner: inner.initial_metadata(), lambda error: error.initial_metadata()
        )

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Return what the server sent after its answer."""
        return await self._ask(
            lambda inner: inner.trailing_metadata(), lambda error: error.trailing_metadata()
        )

    async def code(self) -> grpc.StatusCode:
        """Return the status code, when the call is over."""
        return await self._ask(lambda inner: inner.code(), lambda error: error.code())

    async def details(self) -> str:
        """Return the status details, when the call is over."""
        return await self._ask(lambda inner: inner.details(), lambda error: error.details())

    async def debug_error_string(self) -> str:
        """Return grpcio's own account of an error, when the call is over."""
        return await self._ask(
            lambda inner: inner.debug_error_string(), lambda error: error.debug_error_string()
        )

    async def wait_for_connection(self) -> None:
        """Wait until the call is on its way to an instance."""
        await self._follow(connected, owns=self._by_waiting)

    # What all of them are made of.

    async def _follow(self, step: Callable[[Any], Awaitable[T]], *, owns: bool = True) -> T:
        """Take a step on the attempt that counts; once more when another one takes its place.

        `owns`: when the task that waits is cancelled, so is the call.
        """
        before = cancellations()
        while True:
            inner = None
            try:
                inner = await self._current()
                return await step(inner)
            except grpc.aio.AioRpcError:
                attempt = self._attempt
                if inner is None or attempt is None:
                    raise
                if attempt.inner is inner and inner.done():
                    await attempt.over()
                if not self._superseded(inner):
                    if attempt.error is not None:
                        raise copy(attempt.error) from None
                    raise
            except asyncio.CancelledError:
                if not self._goes_on(inner, before, owns=owns):
                    raise

    async def _ask(
        self, ask: Callable[[Any], Awaitable[T]], recall: Callable[[grpc.aio.AioRpcError], Any]
    ) -> T:
        while True:
            while self._next is not None:
                await asyncio.wait((self._next,))
            status = self._status()
            if status is not None:
                recalled: T = recall(status)
                return recalled
            attempt = self._attempt
            assert attempt is not None  # noqa: S101 - begun, and not failed
            answer = await ask(attempt.inner)
            if attempt.inner.done():
                await attempt.over()
            if attempt.status is None and not self._superseded(attempt.inner):
                return answer

    async def _current(self) -> Any:
        """Return grpc's call of the attempt that counts now, waiting until there is one."""
        while self._next is not None:
            await asyncio.wait((self._next,))
        if self._error is not None:
            if self._cancelled:
                raise asyncio.CancelledError
            raise copy(self._error)
        assert self._attempt is not None  # noqa: S101 - begun, and not failed
        return self._attempt.inner

    def _attempt_failed(self, error: Exception) -> None:
        """End an attempt in which grpcio, or an interceptor, failed without ending it."""
        if self._attempt is not None:
            self._attempt.break_off(error)

    def _is_fine(self) -> bool:
        """Return whether the call ended with OK, whatever grpcio said after that."""
        return self._done and self._attempt is not None and self._attempt.code is _OK

    def _raise_for_status(self) -> None:
        """Raise what a call that is over ended with, unless that is OK."""
        self._raise_cause()
        if self._cancelled:
            raise asyncio.CancelledError
        status = self._status()
        if status is not None and status.code() is not _OK:
            raise copy(status)

    def _superseded(self, inner: Any) -> bool:
        """Return whether an error of `inner` is not the call's last word."""
        if self._next is not None or self._attempt is None or self._attempt.inner is not inner:
            return True
        return self._error is not None

    def _goes_on(self, inner: Any, before: int, *, owns: bool) -> bool:
        """Return whether a wait on `inner` that was cancelled is to be followed by another.

        So it is when an endpoint was closed under the call. Otherwise the user cancelled the
        call, or the task that waits for it, which then has more than `before` cancellations.
        """
        by_task = cancellations() > before
        if inner is not None and not (self._cancel_asked or by_task) and self._superseded(inner):
            return True
        if by_task:
            if not owns:
                return False
            if self._cancelled or not self._done:  # else it had ended before, and stays as it is
                self._cancel_asked = True
        self._raise_cause()
        self.cancel()
        return False

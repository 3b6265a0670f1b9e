"""The wait for a call's next attempt: a pause, then an endpoint.

It runs in a task that does not hold the call: a stream that its user forgot while it waited is
collected, and its wait goes with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

import grpc
import grpc.aio

from meshrpc.client.endpoint import Endpoint


class Waiter(Protocol):
    """The logical call that waits."""

    def go_on(self, found: Endpoint | grpc.aio.AioRpcError) -> None:
        """Start an attempt on the endpoint that was waited for, or fail for want of one."""
        ...

    def on_wait_ended(self, task: asyncio.Task[None]) -> None:
        """Take note that the wait is over, whether it went on or not."""
        ...


Reference: TypeAlias = Callable[[], Waiter | None]
"""Returns the call; None when nobody holds it any more."""


async def wait_for_next(
    who: Reference,
    pause: Callable[[], Awaitable[None]],
    find: Callable[[], Awaitable[Endpoint]],
) -> None:
    """Wait, and let the call go on if there still is one."""
    found: Endpoint | grpc.aio.AioRpcError
    try:
        await pause()
        found = await find()
    except grpc.aio.AioRpcError as error:
        found = error
    call = who()
    if call is not None:
        call.go_on(found)


async def fail_with(error: grpc.aio.AioRpcError) -> Endpoint:
    """Find no endpoint, but this error."""
    raise error


def after_wait(who: Reference, task: asyncio.Task[None]) -> None:
    """Tell the call that its wait has ended."""
    call = who()
    if call is not None:
        call.on_wait_ended(task)

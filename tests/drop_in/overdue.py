"""Calls whose deadline passes while the server works on them.

Of one whose deadline passes on its way there, it is a race in grpcio what becomes of it: so a call
that did not get far enough in its time, on a machine that is busy, is followed by one with more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from tests.drop_in.handlers import Held

TIMEOUTS = (0.1, 0.4, 1.6, 6.4)


async def overdue(start: Callable[[Held, float], Any]) -> tuple[Any, Held]:
    """Return a call that is held until its deadline passes, and what holds it.

    `start(held, timeout)` starts one.
    """
    for timeout in TIMEOUTS:
        held = Held()
        call = start(held, timeout)
        arriving = asyncio.ensure_future(held.started.wait())
        await asyncio.wait([arriving], timeout=timeout)
        if arriving.done() and not call.done():
            return call, held
        arriving.cancel()
    raise TimeoutError(f"no call arrived within {TIMEOUTS[-1]} s")


async def overdue_after(
    start: Callable[[float], Any], receive: Callable[[Any], Awaitable[Any]]
) -> tuple[Any, Any]:
    """Return a call whose deadline passes after something was received, and that.

    `start(timeout)` starts one; `await receive(call)` is nothing, or raises, if its deadline was
    sooner.
    """
    for timeout in TIMEOUTS:
        call = start(timeout)
        try:
            received = await receive(call)
        except grpc.aio.AioRpcError:
            continue
        if received:
            return call, received
    raise TimeoutError(f"nothing was received within {TIMEOUTS[-1]} s")

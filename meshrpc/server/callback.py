"""Calling a function of the user's that may be async or plain.

A plain one runs in a thread of its own, as it may block; nothing waits for that thread when the
process ends, however long it takes.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


async def outcome(function: Callable[[], Any]) -> Any:
    """Return what the function returns, or what comes of that if it is to be awaited.

    Whatever it raises is an `Exception`: it fails, and neither the process nor who waits for it.
    """
    try:
        return await _outcome(function)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # What it awaited was cancelled, and not the waiting for it.
        raise RuntimeError(f"{name_of(function)} was cancelled") from error
    except SystemExit as error:
        raise _told(function, error) from error


async def _outcome(function: Callable[[], Any]) -> Any:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object that is called like one
    ):
        return await function()
    returned = await _in_thread(function)
    return await returned if inspect.isawaitable(returned) else returned


def name_of(function: Callable[[], Any]) -> str:
    """Return what a person would look for in the code."""
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else repr(function)


def _told(function: Callable[[], Any], error: BaseException) -> RuntimeError:
    return RuntimeError(f"{name_of(function)} raised {type(error).__name__}")


def _in_thread(function: Callable[[], Any]) -> asyncio.Future[Any]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(settled: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            settled(value)

    def run() -> None:
        try:
            settled, value = future.set_result, function()
        except BaseException as error:  # noqa: BLE001 - whoever waits for it is told
            if not isinstance(error, Exception) or isinstance(error, StopIteration):
                # A future cannot carry the one, and the others mean the thread that they are in.
                failure = _told(function, error)
                failure.__cause__ = error
                error = failure
            settled, value = future.set_exception, error
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            loop.call_soon_threadsafe(settle, settled, value)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="meshrpc-callback", daemon=True).start()
    return future

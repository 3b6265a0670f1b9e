"""A thread for a disk that may hang: one that nobody waits for when the process ends.

asyncio's own threads are joined at the end of `asyncio.run` and of the interpreter, however long
that takes. Each use starts another thread, so this is for work that is done one piece at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_disk_thread(work: Callable[[], T]) -> T:
    """Return what `work` returns. Cancelled, it is not waited for any more."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - raised where it is awaited
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="meshrpc last known", daemon=True).start()
    return await done

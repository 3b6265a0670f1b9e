"""The word that a process leaves, for handlers of both kinds: on the event loop and in threads."""

from __future__ import annotations

import asyncio
import threading


class Draining(asyncio.Event):
    """Set, once and for good, when this process begins to leave.

    An `asyncio.Event` for async handlers. In a thread `is_set` and `wait_in_thread` work.
    """

    def __init__(self) -> None:
        super().__init__()
        self._threads = threading.Event()

    def set(self) -> None:
        """Tell everybody; on the event loop."""
        super().set()
        self._threads.set()

    def wait_in_thread(self, timeout: float | None = None) -> bool:
        """Block this thread for up to `timeout` seconds, until the process begins to leave.

        Returns whether it does. For plain `def` handlers, in place of `time.sleep`; on the event
        loop it would keep everybody waiting: `await draining.wait()` there.
        """
        return self._threads.wait(timeout)

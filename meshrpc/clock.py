"""Time, as the parts that wait see it.

Decisions never ask for the time: they take `now`, in monotonic seconds, as an argument. What
carries them out reads it from a `Clock`, so that tests can put a virtual one in its place.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class Clock(Protocol):
    """Monotonic seconds, and waiting for them to pass."""

    def now(self) -> float:
        """Seconds since an arbitrary point; never goes backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return once `seconds` have passed on this clock."""
        ...

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Any]:
        """Raise TimeoutError out of the block after `seconds`, as `asyncio.timeout`; None: never."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    now = staticmethod(time.monotonic)
    timeout = staticmethod(asyncio.timeout)

    async def sleep(self, seconds: float) -> None:
        """Return once `seconds` have passed."""
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()

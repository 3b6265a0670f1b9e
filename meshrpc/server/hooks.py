"""What a service does besides serving: before its first call, and after its last one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from meshrpc.errors import StartupError
from meshrpc.server.callback import name_of, outcome

Hook = Callable[[], Awaitable[None] | None]

SHUTDOWN_WITHIN: Final = 10.0
"""Seconds that each shutdown hook may take."""
LAST_MOMENT: Final = 1.0
"""Seconds of them that it has also in a hurry; and to end once it was cancelled."""

_LOG = logging.getLogger("meshrpc.server")


class Hooks:
    """A service's startup and shutdown hooks, in the order in which they were given."""

    def __init__(self) -> None:
        self.startup: list[Hook] = []
        self.shutdown: list[Hook] = []

    def __repr__(self) -> str:
        return f"<Hooks startup={len(self.startup)} shutdown={len(self.shutdown)}>"

    @property
    def shutdown_within(self) -> float:
        """Seconds that all shutdown hooks may take together."""
        return len(self.shutdown) * (SHUTDOWN_WITHIN + LAST_MOMENT)

    async def start_up(self) -> None:
        """Run the startup hooks, one after the other.

        Raises:
            StartupError: one of them failed; those after it did not run.
        """
        for hook in tuple(self.startup):
            try:
                await outcome(hook)
            except Exception as error:
                text = f"startup hook {name_of(hook)} failed: {type(error).__name__}: {error}"
                _LOG.exception("startup hook %s failed", name_of(hook))
                raise StartupError(text) from error

    async def shut_down(self, hurry: asyncio.Event) -> None:
        """Run the shutdown hooks, the last one first. Each gets its turn, whatever the others do."""
        for hook in reversed(tuple(self.shutdown)):
            task = asyncio.ensure_future(outcome(hook))
            hurried = asyncio.ensure_future(hurry.wait())
            try:
                await asyncio.wait([task], timeout=LAST_MOMENT)
                rest = SHUTDOWN_WITHIN - LAST_MOMENT
                await asyncio.wait(
                    [task, hurried], timeout=rest, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                hurried.cancel()
                is_over = task.done()
                task.cancel()
                await asyncio.wait([task, hurried], timeout=LAST_MOMENT)
            if not is_over:
                why = "in a hurry" if hurry.is_set() else f"after {SHUTDOWN_WITHIN:g} s"
                _LOG.error("shutdown hook %s was given up, %s", name_of(hook), why)
            elif not task.cancelled() and (error := task.exception()) is not None:
                _LOG.error("shutdown hook %s failed", name_of(hook), exc_info=error)

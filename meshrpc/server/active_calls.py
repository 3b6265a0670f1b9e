"""The calls being handled: who is still at it when the server leaves, and telling them."""

from __future__ import annotations

import asyncio
from typing import Any


class ActiveCalls:
    """The calls being handled; those that outlast the grace are told that the server leaves."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], str] = {}
        self.is_cut = False

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"<ActiveCalls {len(self)}{' cut' if self.is_cut else ''}>"

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of these calls, each once."""
        return tuple(sorted(set(self._tasks.values())))

    def start(self, method: str) -> asyncio.Task[Any]:
        """Count the running task as a call of `method`."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - grpcio runs each call in a task
        self._tasks[task] = method
        return task

    def finish(self, task: asyncio.Task[Any]) -> None:
        """Stop counting it."""
        self._tasks.pop(task, None)

    async def ended(self, within: float) -> None:
        """Return when the tasks of these calls have ended, or after `within` seconds."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=within)

    def cut(self) -> None:
        """End every call still running with UNAVAILABLE and `mesh-drain`."""
        self.is_cut = True
        for task in self._tasks:
            task.cancel("the server is leaving")

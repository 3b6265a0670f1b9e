"""The services that a registry follows just now, each in a task of its own.

Whoever is no longer watched is followed no longer. A task that was ended may take a moment for it,
so `close` waits for all that there ever were.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from typing import Generic, TypeVar

from meshrpc.registry.followed import Followed

F = TypeVar("F", bound=Followed)


class Following(Generic[F]):
    """Who is followed, by name."""

    def __init__(self) -> None:
        self._followed: dict[str, tuple[F, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """Longer than it is followed: until it has ended."""

    def __repr__(self) -> str:
        return f"<Following {' '.join(self._followed) or 'nobody'}>"

    def __len__(self) -> int:
        return len(self._followed)

    def __iter__(self) -> Iterator[F]:
        return iter([followed for followed, _ in self._followed.values()])

    def get(self, service: str) -> F | None:
        """Return what follows a service, if anything does."""
        known = self._followed.get(service)
        return None if known is None else known[0]

    def begin(self, followed: F) -> F:
        """Follow from now on; begin anew if it is followed already."""
        self.end(followed)
        task = asyncio.create_task(followed.follow(), context=contextvars.Context())
        self._followed[followed.service] = followed, task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return followed

    def end(self, followed: F) -> None:
        """Follow it no longer; does nothing if it, or all, have been ended."""
        if self.get(followed.service) is followed:
            self._followed.pop(followed.service)[1].cancel()

    async def close(self) -> None:
        """End all, and wait until they have ended."""
        self._followed.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

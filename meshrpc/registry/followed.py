"""A service that is followed: what was last heard of it, and everyone who is told.

No answer is not an empty one: what was known stays known, and the next attempt comes soon, after a
growing, jittered wait. How a service is asked for otherwise, and how often, is each registry's own.
"""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from meshrpc.backoff import backoff
from meshrpc.clock import Clock
from meshrpc.outage import Outage
from meshrpc.registry.open_watch import OpenWatch
from meshrpc.registry.registry import Snapshot, Watch

log = logging.getLogger(__name__)


class Followed(ABC):
    """One service, for all who watch it. `on_idle` is called after the last watch."""

    asked: ClassVar[str]
    """Who answers, or does not, for people."""

    def __init__(
        self, service: str, on_idle: Callable[[], None], *, rng: random.Random, clock: Clock
    ) -> None:
        self.service = service
        self.last: Snapshot | None = None
        self.silent: str | None = None
        """Why the registry does not answer just now, or not with what there is just now."""
        self._on_idle = on_idle
        self._rng = rng
        self._clock = clock
        self._outage = Outage()
        self._watches: list[OpenWatch] = []

    def __repr__(self) -> str:
        known = "nothing yet" if self.last is None else f"instances={len(self.last.instances)}"
        return f"<{type(self).__name__} {self.service} watches={len(self._watches)} {known}>"

    @abstractmethod
    async def follow(self) -> None:
        """Ask for ever what there is, and tell the watches what changes."""

    def watch(self, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Add a watch; it is told at once what is known."""
        watch = OpenWatch(
            self.service, on_snapshot, on_close=self._unwatch, why_silent=lambda: self.silent
        )
        self._watches.append(watch)
        if self.last is not None:
            watch.deliver(self.last)
        return watch

    def _unwatch(self, watch: OpenWatch) -> None:
        self._watches.remove(watch)
        if not self._watches:
            self._on_idle()

    async def _failed(self, error: Exception) -> None:
        """Say that there was no answer, and wait until the next attempt."""
        self.silent = str(error) or type(error).__name__
        if self._outage.goes_on(self._clock.now()):
            log.warning("watching %r: %s; trying again", self.service, error)
        await self._clock.sleep(backoff(self._outage.failures, self._rng))

    def _answered(self) -> None:
        self.silent = None
        if self._outage.end():
            log.info("watching %r: %s answers again", self.service, self.asked)

    def _publish(self, snapshot: Snapshot) -> None:
        # Whom it skipped is news too, though snapshots that differ in nothing else are equal.
        if self.last is None or (snapshot, snapshot.skipped) != (self.last, self.last.skipped):
            self.last = snapshot
            for watch in tuple(self._watches):
                watch.deliver(self.last)

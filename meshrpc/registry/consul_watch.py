"""Watching one service in Consul: blocking queries, one after another, for all who watch it.

Consul answers a query that carries the index of the last answer only when something may have
changed, or when the wait is over. Its rules for clients are kept here: an index that goes
backwards is forgotten, one below 1 counts as 1, queries have a least distance, and errors are
answered with a growing, jittered wait. What was known stays known while Consul does not answer.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import RegistryError
from meshrpc.registry.backoff import backoff
from meshrpc.registry.instance import Instance
from meshrpc.registry.registry import Snapshot, Watch

QUERY_EVERY = 0.1
"""Seconds between two queries, at least: a busy service must not become a storm of them."""
WARN_EVERY = 60.0
"""Seconds between two warnings of one outage."""

log = logging.getLogger(__name__)

Query = Callable[[str, int | None], Awaitable[tuple[int, tuple[Instance, ...]]]]
"""Ask for a service, with the last index or at once: the index, and the instances by id."""


class FollowedService:
    """The one query of a service, and everyone who gets its answers."""

    def __init__(
        self,
        service: str,
        query: Query,
        *,
        on_idle: Callable[[FollowedService], None],
        rng: random.Random,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.service = service
        self.last: Snapshot | None = None
        self._query = query
        self._on_idle = on_idle
        self._rng = rng
        self._clock = clock
        self._watches: list[_ConsulWatch] = []

    def __repr__(self) -> str:
        known = "nothing yet" if self.last is None else f"instances={len(self.last.instances)}"
        return f"<FollowedService {self.service} watches={len(self._watches)} {known}>"

    def watch(self, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Add a watch; it is told at once what is known."""
        watch = _ConsulWatch(self, on_snapshot)
        self._watches.append(watch)
        self._deliver(watch)
        return watch

    def unwatch(self, watch: _ConsulWatch) -> None:
        """Remove a watch; `on_idle` is called after the last one."""
        if watch in self._watches:
            self._watches.remove(watch)
            if not self._watches:
                self._on_idle(self)

    async def follow(self) -> None:
        """Ask for ever what changed, and tell the watches."""
        index: int | None = None
        failures = 0
        warned_at: float | None = None
        while True:
            asked_at = self._clock.now()
            try:
                latest, instances = await self._query(self.service, index)
            except RegistryError as error:
                failures += 1
                # A Consul that was restarted counts from the start: ask what there is now.
                index = None
                if warned_at is None or asked_at - warned_at >= WARN_EVERY:
                    warned_at = asked_at
                    log.warning("watching %r: %s; trying again", self.service, error)
                await self._clock.sleep(backoff(failures, self._rng))
                continue
            if failures:
                failures = 0
                log.info("watching %r: Consul answers again", self.service)
            latest = max(1, latest)
            index = None if index is not None and latest < index else latest
            self._publish(Snapshot(self.service, instances))
            await self._clock.sleep(max(0.0, asked_at + QUERY_EVERY - self._clock.now()))

    def _publish(self, snapshot: Snapshot) -> None:
        if snapshot != self.last:
            self.last = snapshot
            for watch in tuple(self._watches):
                self._deliver(watch)

    def _deliver(self, watch: _ConsulWatch) -> None:
        if self.last is None or watch not in self._watches:
            return
        try:
            watch.on_snapshot(self.last)
        except Exception:
            log.exception("a watch of %r failed; it will be called again", self.service)


class _ConsulWatch:
    def __init__(self, followed: FollowedService, on_snapshot: Callable[[Snapshot], None]) -> None:
        self._followed = followed
        self.on_snapshot = on_snapshot

    def __repr__(self) -> str:
        return f"<ConsulWatch of {self._followed!r}>"

    def close(self) -> None:
        self._followed.unwatch(self)

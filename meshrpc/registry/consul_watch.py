"""Watching one service in Consul: blocking queries, one after another, for all who watch it.

Consul answers a query that carries the index of the last answer only when something may have
changed, or when the wait is over. Its rules for clients are kept here: an index that goes
backwards is forgotten, one below 1 counts as 1, queries come out of a token bucket, and errors are
answered with a wait, as `Followed` has it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import RegistryError
from meshrpc.limits.token_bucket import TokenBucket
from meshrpc.registry.followed import Followed
from meshrpc.registry.registry import Snapshot

QUERIES_AT_ONCE = 4
"""Queries without a pause between them: that many changes in a row are seen at once each;"""
QUERIES_PER_SECOND = 2.0
"""and after them so many a second: a busy service must not become a storm of queries."""

log = logging.getLogger(__name__)

Query = Callable[[str, int | None], Awaitable[tuple[int, Snapshot, str | None]]]
"""Ask for a service, with the last index or at once: the index, what there is, and why that may
be old, if so."""


class FollowedService(Followed):
    """The one query of a service, and everyone who gets its answers."""

    asked = "Consul"

    def __init__(
        self,
        service: str,
        query: Query,
        *,
        on_idle: Callable[[FollowedService], None],
        rng: random.Random,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(service, partial(on_idle, self), rng=rng, clock=clock)
        self._query = query
        self._bucket = TokenBucket(QUERIES_PER_SECOND, QUERIES_AT_ONCE)
        self._waits_for_change = False

    @property
    def waits_for_change(self) -> bool:
        """Whether the query that runs is answered only once something changes."""
        return self._waits_for_change

    async def follow(self) -> None:
        """Ask for ever what changed, and tell the watches. Begins without an index."""
        index: int | None = None
        while True:
            while (pause := self._bucket.take(self._clock.now())) > 0:
                await self._clock.sleep(pause)
            self._waits_for_change = index is not None
            try:
                latest, snapshot, old = await self._query(self.service, index)
            except Exception as error:
                if not isinstance(error, RegistryError):
                    log.exception("watching %r failed; trying again", self.service)
                # A Consul that was restarted counts from the start: ask what there is now.
                index = None
                await self._failed(error)
                continue
            finally:
                self._waits_for_change = False
            self._answered()
            self.silent = old
            latest = max(1, latest)
            index = None if index is not None and latest < index else latest
            self._publish(snapshot)

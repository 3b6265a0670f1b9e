"""Following one service in DNS: lookup after lookup, for all who watch it.

The answer's lifetime says when to look again, a little later than it ends, so that processes that
got it from one cache do not ask together, nor just before it renews. Without an answer the next
lookup comes sooner, as `Followed` has it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial

from meshrpc.clock import Clock
from meshrpc.errors import RegistryError
from meshrpc.registry.followed import Followed
from meshrpc.registry.instance import Instance
from meshrpc.registry.registry import Snapshot

LATE = 0.5
"""Seconds at most that a lookup comes after the end of the last answer's lifetime."""

log = logging.getLogger(__name__)

Look = Callable[[], Awaitable[tuple[Snapshot, float]]]
"""Look a service up: what there is, and for how many seconds it holds."""


class FollowedName(Followed):
    """The one loop of a service, and everyone who gets its answers.

    Args:
        service: what is followed.
        look: asks DNS; raises `RegistryError` when there is no answer.
        may_be_unknown: whether a service that DNS has never known is an empty one, rather than
            one of which nothing is known, which callers then hear.
        on_idle: called after the last watch.
        rng: the jitter.
        clock: the time between lookups.
    """

    asked = "DNS"

    def __init__(
        self,
        service: str,
        look: Look,
        *,
        may_be_unknown: bool,
        on_idle: Callable[[FollowedName], None],
        rng: random.Random,
        clock: Clock,
    ) -> None:
        super().__init__(service, partial(on_idle, self), rng=rng, clock=clock)
        self._look = look
        self._may_be_unknown = may_be_unknown

    async def follow(self) -> None:
        """Look for ever, and tell the watches what changes."""
        while True:
            try:
                snapshot, ttl = await self._ask()
            except RegistryError as error:
                await self._failed(error)
                continue
            self._answered()
            self._publish(snapshot)
            await self._clock.sleep(ttl + self._rng.uniform(0.0, LATE))

    async def _ask(self) -> tuple[Snapshot, float]:
        snapshot, ttl = await self._look()
        if not snapshot.instances and self.last is None and not self._may_be_unknown:
            raise RegistryError("DNS knows no address of that name")
        return snapshot, ttl

    def _publish(self, snapshot: Snapshot) -> None:
        for line in snapshot.skipped:
            if self.last is None or line not in self.last.skipped:
                log.warning("watching %r: left out: %s", self.service, line)
        super()._publish(snapshot)


def instances(weights: dict[str, int], service: str, namespace: str) -> tuple[Instance, ...]:
    """Return addresses as instances, ordered by id, which is the address."""
    return tuple(
        Instance(
            id=address,
            service=service,
            address=address,
            namespace=namespace,
            weight=weights[address],
        )
        for address in sorted(weights)
    )

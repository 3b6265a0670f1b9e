"""Watching a service in Consul, with the answers scripted."""

from __future__ import annotations

import asyncio
import logging
import random

from meshrpc.errors import RegistryError
from meshrpc.registry.backoff import LONGEST
from meshrpc.registry.consul_watch import QUERY_EVERY, FollowedService
from meshrpc.registry.instance import Instance
from meshrpc.registry.registry import Snapshot

ONE = Instance(id="1", service="payment", address="127.0.0.1:5001")
DOWN = RegistryError("cannot reach Consul")


class Following:
    """A followed service whose queries are answered in turn; after the last one, Consul waits."""

    def __init__(self, clock, *answers) -> None:
        self.asked: list[int | None] = []
        self.times: list[float] = []
        self.idle: list[FollowedService] = []
        self.snapshots: list[Snapshot] = []
        self._clock = clock
        self._answers = list(answers)
        self.followed = FollowedService(
            "payment", self._query, on_idle=self.idle.append, rng=random.Random(3), clock=clock
        )
        self.watch = self.followed.watch(self.snapshots.append)

    async def _query(self, service, index):
        self.asked.append(index)
        self.times.append(self._clock.now())
        if not self._answers:
            await asyncio.Event().wait()
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def __aenter__(self):
        self._task = asyncio.create_task(self.followed.follow())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.wait([self._task])


async def test_each_query_carries_the_index_of_the_last_answer(virtual_clock):
    """An answer that is no change is not told again."""
    async with Following(virtual_clock, (5, ()), (7, (ONE,)), (9, (ONE,))) as following:
        await virtual_clock.advance(10)
        assert following.asked == [None, 5, 7, 9]
        assert [each.instances for each in following.snapshots] == [(), (ONE,)]


async def test_an_index_that_goes_backwards_is_forgotten(virtual_clock):
    """Consul was restored from a backup: waiting for the old index might take for ever."""
    async with Following(virtual_clock, (90, ()), (3, (ONE,)), (3, (ONE,))) as following:
        await virtual_clock.advance(10)
        assert following.asked == [None, 90, None, 3]


async def test_an_index_below_one_still_waits(virtual_clock):
    """Index 0 would make Consul answer at once, again and again."""
    async with Following(virtual_clock, (0, ())) as following:
        await virtual_clock.advance(10)
        assert following.asked == [None, 1]


async def test_a_busy_service_is_not_asked_without_a_pause(virtual_clock):
    """Queries that are answered at once still keep their distance."""
    async with Following(virtual_clock, *((n, ()) for n in range(1, 200))) as following:
        await virtual_clock.advance(1)
        assert len(following.asked) <= 1 / QUERY_EVERY + 2


async def test_an_outage_keeps_what_was_known(virtual_clock, caplog):
    """Nothing is told, the index is dropped, and the log has one line a minute."""
    caplog.set_level(logging.INFO, "meshrpc")
    async with Following(virtual_clock, (5, (ONE,)), *[DOWN] * 60, (2, (ONE,))) as following:
        await virtual_clock.advance(600)
        assert [each.instances for each in following.snapshots] == [(ONE,)]
        assert set(following.asked[2:-1]) == {None}
        assert following.asked[-1] == 2
        gaps = [b - a for a, b in zip(following.times[1:62], following.times[2:62], strict=False)]
        assert max(gaps) <= LONGEST
        warned = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert 1 <= len(warned) <= 6
        assert caplog.records[-1].getMessage() == "watching 'payment': Consul answers again"


async def test_a_later_watch_is_told_at_once_and_the_last_one_ends_the_query(virtual_clock):
    """Watches share one query."""
    async with Following(virtual_clock, (5, (ONE,))) as following:
        await virtual_clock.advance(1)
        later: list[Snapshot] = []
        second = following.followed.watch(later.append)
        assert later == following.snapshots == [Snapshot("payment", (ONE,))]
        following.watch.close()
        assert following.idle == []
        second.close()
        second.close()
        assert following.idle == [following.followed]


async def test_a_watch_that_fails_does_not_keep_the_others_from_knowing(virtual_clock, caplog):
    """The failure is logged with its traceback."""
    async with Following(virtual_clock, (5, (ONE,))) as following:

        def fail(snapshot: Snapshot) -> None:
            raise KeyError(snapshot.service)

        following.followed.watch(fail)
        after: list[Snapshot] = []
        following.followed.watch(after.append)
        await virtual_clock.advance(1)
        assert len(after) == 1
        assert caplog.records[0].exc_info

"""Watching a service in Consul, with the answers scripted."""

from __future__ import annotations

import asyncio
import logging
import random

from meshrpc.backoff import LONGEST
from meshrpc.errors import RegistryError
from meshrpc.registry.consul_watch import QUERIES_AT_ONCE, QUERIES_PER_SECOND, FollowedService
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
        index, instances, *old = answer
        return index, Snapshot("payment", instances), old[0] if old else None

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


async def test_changes_one_by_one_are_seen_at_once(virtual_clock):
    """A few in a row, too: an instance drains, leaves, and another one comes."""
    answers = [(n, ()) for n in range(1, QUERIES_AT_ONCE)]
    async with Following(virtual_clock, *answers) as following:
        await virtual_clock.advance(0.001)
        assert len(following.asked) == QUERIES_AT_ONCE


async def test_a_storm_of_changes_is_not_a_storm_of_queries(virtual_clock):
    """Queries that are answered at once come out of a token bucket, one at a time."""
    async with Following(virtual_clock, *((n, ()) for n in range(1, 200))) as following:
        await virtual_clock.advance(10)
        assert len(following.asked) <= QUERIES_AT_ONCE + 10 * QUERIES_PER_SECOND + 1
        assert len(following.asked) >= 10 * QUERIES_PER_SECOND


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


async def test_a_watch_says_why_consul_is_silent(virtual_clock):
    """While it does not answer, also later than at the start, and when its answer is old."""
    no_leader = "Consul has no leader"
    answers = [DOWN, (5, (ONE,)), (6, (ONE,), no_leader), (7, ()), DOWN]
    said: list[str | None] = []

    class Listening(Following):
        async def _query(self, service, index):
            said.append(self.followed.silent)
            return await super()._query(service, index)

    async with Listening(virtual_clock, *answers) as following:
        assert following.watch.why_silent() is None
        await virtual_clock.advance(20)
        assert said == [None, str(DOWN), None, no_leader, None, str(DOWN)]
        assert following.watch.why_silent() == str(DOWN)
        assert [each.instances for each in following.snapshots] == [(ONE,), ()]


async def test_an_error_nobody_thought_of_does_not_end_a_watch(virtual_clock, caplog):
    """It is logged with its traceback, and asked on."""
    async with Following(virtual_clock, KeyError("x"), (5, (ONE,))) as following:
        await virtual_clock.advance(10)
        assert [each.instances for each in following.snapshots] == [(ONE,)]
        assert caplog.records[0].exc_info


async def test_records_that_are_skipped_are_news(virtual_clock):
    """A snapshot that differs in nothing else is told; the same again is not."""
    clean = Snapshot("payment", (ONE,))
    marred = Snapshot("payment", (ONE,), skipped=("'bad': 0 is no port",))
    answers = [clean, marred, marred]
    told: list[Snapshot] = []

    async def query(service, index):
        if not answers:
            await asyncio.Event().wait()
        return 5, answers.pop(0), None

    followed = FollowedService(
        "payment", query, on_idle=lambda _: None, rng=random.Random(3), clock=virtual_clock
    )
    followed.watch(told.append)
    task = asyncio.create_task(followed.follow())
    await virtual_clock.advance(10)
    assert [each.skipped for each in told] == [(), marred.skipped]
    task.cancel()
    await asyncio.wait([task])

"""A worker's sign of life, in a real event loop."""

import asyncio
import json
import os
import time

import pytest

from meshrpc.workers.heartbeat import Heartbeat
from meshrpc.workers.pipes import Reports
from meshrpc.workers.places import Load


@pytest.fixture
async def beats():
    heard = asyncio.Queue()
    heartbeat = Heartbeat(heard.put_nowait)
    yield heard
    heartbeat.stop()


async def test_the_first_sign_comes_at_once_and_others_follow(beats):
    """Nothing is known of the load yet; a second later it is."""
    async with asyncio.timeout(10):
        assert await beats.get() == Load(0.0, 0.0)
        later = await beats.get()
    assert 0.0 <= later.busy <= 1.0
    assert later.queue_time >= 0.0


async def test_a_blocked_loop_gives_none_and_then_says_how_busy_it_was(beats):
    """However well the process may be."""
    await beats.get()
    time.sleep(1.5)  # noqa: ASYNC251 - this is the fault
    assert beats.empty()
    async with asyncio.timeout(10):
        load = await beats.get()
    assert load.busy > 0.5
    assert load.queue_time > 0.1


async def test_a_supervisor_that_does_not_read_holds_up_nobody():
    """What does not fit into the pipe is lost; what is read later is whole."""
    read_end, write_end = os.pipe()
    reports = Reports(write_end)
    for _ in range(10_000):
        reports.load(Load(0.25, 0.001))
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        lines = pipe.read().splitlines()
    assert 0 < len(lines) < 10_000
    assert {json.loads(line)["busy"] for line in lines} == {0.25}

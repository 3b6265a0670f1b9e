"""Servers of different strength, told apart by what they report of their load alone."""

import asyncio
import collections
import contextlib
import itertools
import math
import os
import sys
import time
from pathlib import Path

import pytest

import meshrpc
from meshrpc.control.client import ControlClient
from meshrpc.control.server import ControlServer
from meshrpc.policy import load_document
from meshrpc.policy.model import BalancerKind
from meshrpc.wire import LOAD_REPORT, ORCA_LOAD_REPORT

ROOT = Path(__file__).parents[2]
TAKES = (0.040, 0.020, 0.010)
"""Seconds for which a call blocks each server's loop: they are as strong as 1, 2 and 4."""
RATE = 60
"""Calls per second: 0.8 of what the weakest carries in equal shares."""
BLACKOUT = 1.0
REPORTS = {LOAD_REPORT, ORCA_LOAD_REPORT}
"""Keys of trailers."""
NEAR = 0.25
"""Of its ideal share: equal ones are off by more than half. The simulations hold it to a tenth."""

REPORTED = load_document(
    f"""
    schema: meshrpc.policy/v1
    service: busy
    balancer: {{weighted_round_robin: {{blackout: {BLACKOUT:.0f}s, update: 200ms}}}}
    """
).canonical
IN_TURN = load_document(
    """
    schema: meshrpc.policy/v1
    service: busy
    balancer: round_robin
    """
).canonical

pytestmark = [pytest.mark.process, pytest.mark.alone]


class Answers:
    """Calls at an even rate, each noted with the server that answered and its trailers' keys."""

    def __init__(self, channel):
        self._work = channel.unary_unary("/tests.Busy/Work")
        self._answers = []
        self.began = 0.0

    async def run(self, over):
        """Make calls until `over` is set, and return when the last one is answered."""
        self.began = time.monotonic()
        async with asyncio.TaskGroup() as calls:
            for number in itertools.count():
                await asyncio.sleep(max(0.0, self.began + number / RATE - time.monotonic()))
                if over.is_set():
                    return
                calls.create_task(self._call(time.monotonic()))

    async def _call(self, at):
        call = self._work(b"", timeout=10)
        await call
        keys = {key for key, _ in await call.trailing_metadata()}
        self._answers.append((at, call.peer().version, keys))

    def reporting(self):
        """Return which servers reported in their last answers."""
        last = {version: keys for _, version, keys in self._answers}
        return {version for version, keys in last.items() if keys & REPORTS}

    def between(self, begin, end):
        """Count the answers to calls that began in this time, by server; and their trailers' keys."""
        found = [each for each in self._answers if begin <= each[0] < end]
        counts = collections.Counter(version for _, version, _ in found)
        return counts, set().union(*(keys for *_, keys in found))


@contextlib.asynccontextmanager
async def servers(control, tmp_path):
    """Run all of them for a block, as processes."""
    running = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshrpc", "run", "tests.e2e.busy:service"),
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "MESHRPC_CONTROL": control,
                "MESHRPC_STATE_DIR": str(tmp_path / str(seconds)),
                "BUSY_SECONDS": str(seconds),
            },
            stderr=asyncio.subprocess.DEVNULL,
        )
        for seconds in TAKES
    ]
    try:
        yield
    finally:
        for each in running:
            each.terminate()
        await asyncio.wait_for(asyncio.gather(*(each.wait() for each in running)), 30)


async def registered(mesh):
    """Return when all servers are."""
    changed = asyncio.Event()
    watch = mesh.registry.watch(
        "busy", lambda snapshot: len(snapshot.instances) == len(TAKES) and changed.set()
    )
    await changed.wait()
    watch.close()


@contextlib.asynccontextmanager
async def answers(control, tmp_path):
    """Have all servers run and be called for a block; gives the answers, and the caller's destination."""
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(servers(control, tmp_path))
        mesh = await stack.enter_async_context(meshrpc.Mesh("caller", control=control))
        async with asyncio.timeout(30):
            # Whoever comes later than the first answer of the registry would begin slowly.
            await registered(mesh)
            channel = mesh.channel("busy")
            destination = channel.bound()
            while destination.ready_count < len(TAKES) or not is_reported(destination):
                await destination.changed()
        load = Answers(channel)
        over = asyncio.Event()
        async with asyncio.TaskGroup() as running:
            running.create_task(load.run(over))
            try:
                yield load, destination
            finally:
                over.set()


def is_reported(destination):
    """Return whether a caller goes by reports."""
    return destination.table.policy.balancer.kind is BalancerKind.WEIGHTED_ROUND_ROBIN


def shares(counts):
    """Return each server's part of the answers, the weakest first."""
    return [counts[f"{seconds * 1000:.0f}ms"] / counts.total() for seconds in TAKES]


async def test_servers_get_calls_by_what_they_report_that_they_can_carry(tmp_path):
    """Servers as strong as 1, 2 and 4 get equal shares during the blackout, and after it those of
    their strength, as far as the machine's other business lets them have it; with round_robin
    nobody reports, and shares are equal again."""
    async with (
        ControlServer("127.0.0.1:0", "127.0.0.1:0") as control,
        ControlClient([control.address], namespace="default") as client,
    ):
        await client.apply_policies([REPORTED])
        async with answers(control.address, tmp_path) as (load, destination):
            await asyncio.sleep(BLACKOUT + 1.3)
            since = time.monotonic()
            await asyncio.sleep(3.0)
            await client.apply_policies([IN_TURN])
            until = time.monotonic()
            async with asyncio.timeout(30):
                while is_reported(destination):
                    await destination.changed()
                while load.reporting():  # noqa: ASYNC110 - the servers hear of it by themselves
                    await asyncio.sleep(0.02)
            then = time.monotonic()
            await asyncio.sleep(0.5)
    equal, _ = load.between(load.began, load.began + BLACKOUT)
    assert max(equal.values()) - min(equal.values()) <= 1
    reported, trailers = load.between(since, until)
    strengths = [1 / seconds for seconds in TAKES]
    ideal = [strength / sum(strengths) for strength in strengths]
    assert shares(reported) == pytest.approx(ideal, rel=NEAR)
    assert REPORTS & trailers
    in_turn, trailers = load.between(then, math.inf)
    assert max(in_turn.values()) - min(in_turn.values()) <= 1
    assert not REPORTS & trailers

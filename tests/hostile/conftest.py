"""A service under attack, and somebody who goes on calling it."""

import asyncio
import contextlib

import grpc
import pytest

import meshrpc
from meshrpc.policy.model import Backoff, Policy, Retry, RetryBudget, Throttle
from tests.hostile import server


@pytest.fixture
async def serving():
    """A service in this process; it leaves at once, since nobody else knows of it."""
    async with server.service() as service:
        yield service
        service._serving._hurry.set()


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
SAY = server.ECHO.decode()


class GoodCaller:
    """Makes one call after the other through the mesh, which may be repeated."""

    def __init__(self, channel):
        self._say = channel.unary_unary(SAY)
        self.answered = 0

    async def run(self):
        while True:
            assert await self._say(b"good", timeout=10) == b"good"
            self.answered += 1

    async def calls(self, count):
        """Wait until so many more have been answered."""
        until = self.answered + count
        while self.answered < until:  # noqa: ASYNC110 - no event for each
            await asyncio.sleep(0.005)


@pytest.fixture
async def good(serving):
    """Fails with the first of its calls that fails, or that takes 10 s."""
    registry = f"static:hostile={serving.address}"
    async with meshrpc.Mesh("good", registry=registry, control="none") as mesh:
        # A burst of calls beyond what the server takes in costs others some of theirs.
        retry = Retry(
            attempts=5,
            codes=frozenset({UNAVAILABLE, RESOURCE_EXHAUSTED}),
            backoff=Backoff(0.05, 0.5),
            non_idempotent=frozenset({SAY[1:]}),
        )
        budget = RetryBudget(ratio=1.0, min_per_second=100.0)
        throttle = Throttle(max_rejected=0.0)
        document = Policy(service="hostile", retry=retry, retry_budget=budget, throttle=throttle)
        mesh._session.policies._on_document("hostile", document)
        caller = GoodCaller(mesh.channel("hostile"))
        running = asyncio.ensure_future(caller.run())

        async def calls(count):
            waiting = asyncio.ensure_future(caller.calls(count))
            await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if running.done():
                running.result()

        await calls(5)
        yield calls
        await calls(5)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

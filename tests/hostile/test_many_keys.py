"""Callers that invent names without end, against a limit for each caller."""

import asyncio
import tracemalloc
from dataclasses import replace

import grpc

from meshrpc.limits.rate_limiter import RateLimiter
from meshrpc.policy.model import RateLimit
from tests.hostile import server
from tests.hostile.attacks import CORPUS

CANCELLED = grpc.StatusCode.CANCELLED
MIB = 1024 * 1024
CALLERS = 100_000
LIMIT = RateLimit("per-caller", rate=0.001, burst=3, key=("caller",), max_keys=1_000)
"""So slow that no bucket is full again while a test lasts."""


def test_a_hundred_thousand_callers_cost_no_more_than_max_keys():
    """Never one name twice, and every tenth of 14 KB; who was known before has what it had."""
    limiter = RateLimiter((LIMIT,))

    def passes(name):
        return limiter.check(0.0, name, "/hostile.Echo/Say", ()) is None

    assert passes("good")
    tail = "c" * 14_000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        passed = sum(
            passes(f"{number:06}" if number % 10 else f"{number:06}{tail}")
            for number in range(CALLERS)
        )
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert passed == LIMIT.max_keys - 1 + LIMIT.burst, "one bucket more, for all who find no room"
    assert after - before < 1 * MIB
    assert peak - before < 2 * MIB
    assert [passes("good") for _ in range(3)] == [True, True, False]


async def test_invented_names_take_nothing_from_who_is_known(serving):
    """A burst of strangers on one connection: the one who called before has its calls, no more."""
    serving._serving._offer.limits.configure((replace(LIMIT, max_keys=50),))
    attack, size, _ = CORPUS["many callers"]
    known = (("mesh-caller", "known"),)
    async with grpc.aio.insecure_channel(serving.address) as channel:
        say = channel.unary_unary(server.ECHO.decode())

        async def code():
            # A burst may have grpc cancel calls that wait, before any limit sees them.
            while (code := await say(b"", metadata=known, timeout=10).code()) is CANCELLED:
                pass
            return code

        assert await code() is grpc.StatusCode.OK
        for _ in range(10):
            (await asyncio.to_thread(attack, serving.address, size)).close()
        codes = [await code() for _ in range(3)]
    ok, exhausted = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
    assert codes == [ok, ok, exhausted]

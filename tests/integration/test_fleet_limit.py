"""One rate limit over several services' processes: shares over the real control stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Self

import aiohttp
import grpc
import grpc.aio
import pytest

from meshrpc.clock import SystemClock
from meshrpc.control.client import ControlClient
from meshrpc.control.server import ControlServer
from meshrpc.limits.shares import EVERY_KEY, FIRST, WHOLE
from meshrpc.policy import load_document
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.server.service import Service
from meshrpc.v1 import control_pb2, control_pb2_grpc

PATIENCE = 20.0

LIMIT = load_document(
    """
    schema: meshrpc.policy/v1
    service: shop
    rate_limits: [{name: all, rate: 100/s, burst: 20, share: fleet}]
    """
).canonical


class LaterClock(SystemClock):
    """The real time, and a while more: a control service that started long ago."""

    ahead = 0.0

    def now(self) -> float:
        """Seconds, in a future."""
        return SystemClock.now() + self.ahead


class HastyClock(SystemClock):
    """The real time, without the waits of draining: nobody else calls these services."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01) if 0.3 < seconds <= 3 else seconds)


@contextlib.asynccontextmanager
async def old_control() -> AsyncIterator[ControlServer]:
    """A control service whose recovery is over."""
    clock = LaterClock()
    async with ControlServer("127.0.0.1:0", "127.0.0.1:0", clock=clock) as control:
        clock.ahead = 60.0
        yield control


async def buy(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return request


class Shop:
    """One process of the service, more or less: its calls, and its share."""

    def __init__(self, address: str) -> None:
        self.service = Service(
            "shop", control=address, registry=MemoryRegistry(), clock=HastyClock()
        )
        handler = grpc.unary_unary_rpc_method_handler(buy)
        self.service.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("shop.Shop", {"Buy": handler}),)
        )
        self.answers: Counter[grpc.StatusCode] = Counter()
        self.refusal: grpc.aio.AioRpcError

    async def __aenter__(self) -> Self:
        await self.service.__aenter__()
        self.channel = grpc.aio.insecure_channel(self.service.address)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.channel.close()
        await self.service.__aexit__(None, None, None)

    @property
    def billionths(self) -> int:
        """What it may use of the limit."""
        claims = {claim.key: claim for claim in self.service._limits.claims()}
        return claims[EVERY_KEY].share if claims else 0

    @property
    def share(self) -> float:
        """The same as a fraction."""
        return self.billionths / WHOLE

    async def flood(self) -> None:
        """Call without a pause, until cancelled."""
        call = self.channel.unary_unary("/shop.Shop/Buy")
        while True:
            try:
                await call(b"", timeout=PATIENCE)
            except grpc.aio.AioRpcError as error:
                self.refusal = error
                self.answers[error.code()] += 1
            else:
                self.answers[grpc.StatusCode.OK] += 1


async def until(condition: Callable[[], bool], checked: Callable[[], None] = lambda: None) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            checked()
            await asyncio.sleep(0.01)


async def test_shares_follow_demand_and_outlive_control():
    """Three processes have a third each; the one that is flooded gets nearly all; at no time do
    they have more than the whole together; and without control each keeps what it has."""
    async with contextlib.AsyncExitStack() as stack:
        control = await stack.enter_async_context(old_control())
        client = ControlClient([control.address], namespace="default")
        await stack.enter_async_context(client)
        shops = [await stack.enter_async_context(Shop(control.address)) for _ in range(3)]

        def is_bounded() -> None:
            assert sum(shop.billionths for shop in shops) <= WHOLE

        await client.apply_policies([LIMIT])
        # Until all have been heard of, each may have its first share on top.
        await until(lambda: all(0.32 < shop.share < 0.34 for shop in shops))

        flooded, *others = shops
        flood = asyncio.create_task(flooded.flood())
        await until(lambda: flooded.share > 0.95, is_bounded)
        assert all(0.0 < shop.share < 0.02 for shop in others)
        assert flooded.answers[grpc.StatusCode.OK] > 0

        elsewhere = asyncio.create_task(others[0].flood())
        await until(lambda: others[0].share > 0.45, is_bounded)
        assert 0.45 < flooded.share < 0.55

        await stack.enter_async_context(stopped(control))
        before = [shop.share for shop in shops]
        flooded.answers.clear()
        await until(lambda: flooded.answers.total() > 300)
        assert [shop.share for shop in shops] == before
        assert flooded.answers[grpc.StatusCode.OK] > 0
        assert flooded.refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        share = f"{before[0] * 100:.3g}"
        assert flooded.refusal.details() == (
            f"rate limit 'all' of 100/s over the fleet, this instance's share is {share}/s,"
            " is used up"
        )
        trailers = {key for key, _ in flooded.refusal.trailing_metadata()}
        assert {"mesh-not-executed", "retry-after", "grpc-retry-pushback-ms"} <= trailers
        for task in (flood, elsewhere):
            task.cancel()
        await asyncio.gather(flood, elsewhere, return_exceptions=True)


@contextlib.asynccontextmanager
async def stopped(control: ControlServer) -> AsyncIterator[None]:
    await control.__aexit__(None, None, None)
    yield


async def test_a_control_service_that_has_just_started_raises_nobody():
    """It does not know who else has what: each keeps its first share, and one that comes does not
    add to what the others have."""
    async with contextlib.AsyncExitStack() as stack:
        control = ControlServer("127.0.0.1:0", "127.0.0.1:0")
        await stack.enter_async_context(control)
        client = await stack.enter_async_context(
            ControlClient([control.address], namespace="default")
        )
        await client.apply_policies([LIMIT])
        shops = [await stack.enter_async_context(Shop(control.address)) for _ in range(2)]
        await until(lambda: all(shop.share for shop in shops))
        flood = asyncio.create_task(shops[0].flood())
        # What they brought is two tenths: most of it goes where the demand is.
        await until(lambda: shops[0].share > 0.19)
        assert sum(shop.share for shop in shops) <= 0.2 + 1e-6
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)


# The protocol


class Process:
    """A process that says what the test has it say."""

    def __init__(self, channel: grpc.aio.Channel, instance: str = "shop-1") -> None:
        self.call = control_pb2_grpc.ControlStub(channel).Subscribe()
        self.instance = instance

    async def hello(self) -> None:
        hello = control_pb2.Hello(service="shop", instance=self.instance)
        await self.call.write(control_pb2.SubscribeRequest(hello=hello))

    async def claim(self, grant: int, *claims: tuple[bytes, float, int, bool]) -> None:
        report = control_pb2.QuotaReport(grant=grant)
        for key, demand, share, is_granted in claims:
            report.claims.add(
                limit="all",
                key=key,
                demand=int(demand * WHOLE),
                share=share,
                is_granted=is_granted,
            )
        await self.call.write(control_pb2.SubscribeRequest(quota=report))

    async def push(self) -> control_pb2.Push:
        async with asyncio.timeout(PATIENCE):
            push = await self.call.read()
        assert isinstance(push, control_pb2.Push), await self.call.details()
        return push

    async def grant(self) -> control_pb2.QuotaGrant:
        while not (push := await self.push()).HasField("quota"):
            pass
        return push.quota


@pytest.fixture
async def channel():
    async with (
        old_control() as control,
        grpc.aio.insecure_channel(control.address) as channel,
    ):
        yield channel


async def test_shares_wait_for_no_push_and_no_push_for_shares(channel):
    """A push that nobody has acknowledged holds up no share; and a share needs no acknowledgement."""
    process = Process(channel)
    await process.hello()
    interest = control_pb2.Interest(policies=["shop"])
    await process.call.write(control_pb2.SubscribeRequest(interest=interest))
    unanswered = await process.push()
    assert unanswered.nonce
    await process.claim(0, (EVERY_KEY, 0.0, FIRST, False))
    push = await process.push()
    assert not push.nonce
    (share,) = push.quota.shares
    assert (push.quota.number, share.limit, share.key) == (1, "all", EVERY_KEY)
    assert share.share > 0.99 * WHOLE
    process.call.cancel()


async def test_a_share_is_given_out_of_what_others_have_said_they_gave_up(channel):
    """The second process gets nothing before the first one has said that it uses less."""
    first, second = Process(channel), Process(channel, "shop-2")
    await first.hello()
    await first.claim(0, (EVERY_KEY, 1.0, FIRST, False))
    grant = await first.grant()
    await first.claim(grant.number, (EVERY_KEY, 1.0, grant.shares[0].share, True))

    await second.hello()
    await second.claim(0, (EVERY_KEY, 1.0, FIRST, False))
    lowered = await first.grant()
    assert lowered.shares[0].share == pytest.approx(WHOLE / 2, rel=0.01)
    # Its first share is on top of the whole: it may keep that, and is not raised.
    await second.claim(0, (EVERY_KEY, 1.1, FIRST, False))
    reading = asyncio.create_task(second.grant())
    await first.claim(grant.number, (EVERY_KEY, 1.0, grant.shares[0].share, True))
    await asyncio.wait([reading], timeout=0.3)
    assert not reading.done()
    await first.claim(lowered.number, (EVERY_KEY, 1.0, lowered.shares[0].share, True))
    raised = await reading
    assert raised.shares[0].share <= WHOLE - lowered.shares[0].share
    assert raised.shares[0].share == pytest.approx(WHOLE / 2, rel=0.02)
    first.call.cancel()
    second.call.cancel()


class Obedient(Process):
    """A process that takes what it is given and says so."""

    async def run(self) -> None:
        self.shares = {EVERY_KEY: FIRST}
        self.wants: dict[bytes, float] = {}
        self.number = 0
        self.saying = asyncio.Lock()  # a stream takes one write at a time
        self.task = asyncio.create_task(self._follow())

    async def say(self) -> None:
        async with self.saying:
            keys = {EVERY_KEY: 0.0, **dict.fromkeys(self.shares, 0.0), **self.wants}
            general = self.shares[EVERY_KEY]
            claims = [
                (key, wanted, self.shares.get(key, general), key in self.shares)
                for key, wanted in keys.items()
            ]
            await self.claim(self.number, *claims)

    async def _follow(self) -> None:
        await self.hello()
        await self.say()
        while True:
            grant = await self.grant()
            self.number = grant.number
            self.shares |= {one.key: one.share for one in grant.shares}
            await self.say()


async def test_a_busy_key_gets_shares_of_its_own_everywhere(channel):
    """Also in a process that has never seen it: there it is next to nothing."""
    first, second = Obedient(channel), Obedient(channel, "shop-2")
    for process in (first, second):
        await process.run()
    both = (first.shares, second.shares)
    await until(lambda: all(0.49 < shares[EVERY_KEY] / WHOLE < 0.51 for shares in both))
    first.wants[b"=hot"] = 3.0
    await first.say()
    await until(lambda: first.shares.get(b"=hot", 0) > 0.95 * WHOLE)
    assert 0 < second.shares[b"=hot"] < 0.02 * WHOLE
    assert first.shares[b"=hot"] + second.shares[b"=hot"] <= WHOLE
    for process in (first, second):
        process.call.cancel()
        process.task.cancel()
    await asyncio.gather(first.task, second.task, return_exceptions=True)


async def test_a_process_without_such_limits_hears_nothing_of_shares(channel):
    """Whoever does not know of shares, as an older release, is sent none."""
    process = Process(channel)
    await process.hello()
    interest = control_pb2.Interest(policies=["shop"])
    await process.call.write(control_pb2.SubscribeRequest(interest=interest))
    push = await process.push()
    assert push.nonce
    assert not push.HasField("quota")
    process.call.cancel()


async def test_an_impossible_grant_ends_the_stream_with_a_reason(channel):
    """Control would otherwise fail at the next one, whose number no message can hold."""
    process = Process(channel)
    await process.hello()
    await process.claim(2**64 - 1, (EVERY_KEY, 1.0, FIRST, False))
    async with asyncio.timeout(PATIENCE):
        assert await process.call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_people_see_who_holds_what():
    """Over HTTP, of one service in one namespace, also what counts for a process that has gone."""
    async with (
        old_control() as control,
        grpc.aio.insecure_channel(control.address) as channel,
        aiohttp.ClientSession(f"http://{control.http_address}") as session,
    ):

        async def get(query: str):
            async with session.get(f"/api/v1/limits{query}") as response:
                return response.status, await response.json()

        process = Process(channel)
        await process.hello()
        await process.claim(0, (EVERY_KEY, 2.5, FIRST, False), (b"=order\0a", 1.5, FIRST, False))
        await process.grant()
        status, rows = await get("?service=shop")
        assert status == 200
        assert [(row["limit"], row["key"], row["instance"]) for row in rows] == [
            ("all", "*", "shop-1"),
            ("all", "order a", "shop-1"),
        ]
        assert [row["demand"] for row in rows] == [2.5, 1.5]
        assert [row["away"] for row in rows] == [False, False]
        assert rows[0]["share"] == 0.1
        assert 0.99 < rows[1]["share"] <= 1.0
        assert await get("?service=shop&namespace=test") == (200, [])
        assert await get("?service=other") == (200, [])
        assert await get("") == (400, {"error": "service=NAME: of which service?"})
        process.call.cancel()
        async with asyncio.timeout(PATIENCE):
            while not (await get("?service=shop"))[1][0]["away"]:
                pass

"""Many instances: a process connects to some of them, and to others when those go."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import grpc
import pytest

from tests.echo import COUNT_UP, PLAIN, ROUND_ROBIN, UNAVAILABLE, EchoServer, policy, ready

MANY = 10_000
SUBSETS = {f"s{number}": {"version": f"v{number}"} for number in range(10)}


def instance(server, number):
    return replace(server.instance, id=f"e{number}", version=f"v{number % 50}")


@pytest.fixture
async def server(registry):
    """One server that stands for 10,000 instances."""
    async with EchoServer("e") as server:
        for number in range(MANY):
            await registry.register(instance(server, number))
        yield server


async def until(holds):
    """Wait until something holds that nobody tells of."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.001)


async def test_one_that_leaves_costs_one_connection(mesh, registry, server):
    """Of those it connects to; of the others, none. Nobody else's connection changes."""
    policy(mesh, subset_size=20)
    channel = mesh.channel("echo")
    await ready(channel, 20)
    destination = channel.bound()
    before = set(destination.endpoints)
    assert len(before) == 20
    mine = {each.id for each in before}
    other = next(number for number in range(MANY) if f"e{number}" not in mine)
    await registry.deregister(instance(server, other))
    left = min(before, key=lambda each: each.id)
    await registry.deregister(left.instance)
    await until(lambda: left not in destination.endpoints)
    assert len(before & set(destination.endpoints)) == 19
    assert len(destination.endpoints) == 20


async def test_the_subset_grows_and_shrinks_while_calls_run(mesh, registry, server):
    """No call fails, and those under way end on the connections that they have."""
    policy(mesh, subset_size=10, balancer=ROUND_ROBIN)
    channel = mesh.channel("echo")
    await ready(channel, 10)
    destination = channel.bound()
    server.script = told = Told()
    under_way = [channel.unary_unary(PLAIN)(b"") for _ in range(10)]
    await server.calls(10)
    server.script = None
    codes, over = Counter(), asyncio.Event()

    async def load():
        while not over.is_set():
            codes[await channel.unary_unary(PLAIN)(b"").code()] += 1
            codes[await channel.unary_stream(COUNT_UP)(b"0").code()] += 1

    loads = [asyncio.create_task(load()) for _ in range(3)]
    for size in (40, 2, 30, 1):
        policy(mesh, subset_size=size, balancer=ROUND_ROBIN)
        await ready(channel, size)
        assert len(destination.endpoints) == size
        made = codes.total()
        await until(lambda made=made: codes.total() > made + 10)
    await until(lambda: len(destination.closing) == 9)
    assert not any(call.done() for call in under_way)
    told.may_go.set()
    assert [await call for call in under_way] == [b"@e"] * 10
    over.set()
    await asyncio.gather(*loads)
    assert codes.keys() == {grpc.StatusCode.OK}
    await until(lambda: not destination.closing)


class Told:
    """A script that answers when it is told to."""

    def __init__(self):
        self.may_go = asyncio.Event()

    async def __call__(self, server, context):
        await self.may_go.wait()


async def test_a_subset_that_is_out_of_reach_is_not_left_for_another(mesh, registry):
    """The registry drops instances that are gone; then others take their places."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EchoServer("e"))
        for number in range(30):
            await registry.register(instance(server, number))
        policy(mesh, subset_size=2)
        channel = mesh.channel("echo")
        await ready(channel, 2)
        mine = channel.bound().endpoints
        for each in mine:
            await registry.register(replace(each.instance, address="127.0.0.1:1"))
        await until(lambda: not set(mine) & set(channel.bound().endpoints))
        say = channel.unary_unary(PLAIN)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(b"", timeout=5)
        assert caught.value.code() is UNAVAILABLE
        for each in mine:
            await registry.deregister(each.instance)
        assert await say(b"", timeout=5, wait_for_ready=True) == b"@e"

"""What a stream's caller is told when its instance leaves, whatever becomes of the connection."""

import asyncio
import contextlib
from dataclasses import replace

import grpc
import pytest

from meshrpc.client import endpoints
from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.registry.instance import State
from meshrpc.testing.proxy import Proxy
from meshrpc.wire import DRAIN
from tests.echo import MIRROR, EchoServer

TALK = 10
"""Messages that show that a stream goes on."""


@pytest.fixture
async def wire():
    """A proxy in front of an instance."""
    proxy = Proxy(SYSTEM_CLOCK, lambda: None)
    yield proxy
    await proxy.close()


@contextlib.asynccontextmanager
async def talking(mesh, registry, wire):
    """Give the record of an instance behind the wire, who connects to it, and a stream under way."""
    async with EchoServer("one") as one:
        wire.lead_to(one.instance.address)
        record = replace(one.instance, address=wire.address)
        await registry.register(record)
        channel = mesh.channel("echo")
        stream = channel.stream_stream(MIRROR)()
        await say(stream)
        yield record, channel.bound(), stream


async def say(stream):
    await stream.write(b"word")
    assert await stream.read() == b"word"


async def seen(destination, *states):
    """Return when the instances that it connects to are in these states."""
    async with asyncio.timeout(10):
        while tuple(each.instance.state for each in destination.endpoints) != states:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.005)


async def hung_up(wire, stream):
    """Break the connection; return the code and the trailers of the stream."""
    wire.reset()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()
    trailers = dict(raised.value.trailing_metadata())
    assert dict(await stream.trailing_metadata()) == trailers
    return raised.value.code(), trailers


async def test_a_stream_is_told_that_its_instance_leaves_though_the_last_words_got_lost(
    mesh, registry, wire
):
    """A server that hangs up while it is written to resets the connection, and its status with it."""
    async with talking(mesh, registry, wire) as (record, destination, stream):
        await registry.drain(record)
        await seen(destination, State.DRAINING)
        await registry.deregister(record)
        code, trailers = await hung_up(wire, stream)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert trailers[DRAIN] == "1"


async def test_a_stream_of_an_instance_that_breaks_is_not_told_that_it_leaves(mesh, registry, wire):
    """Nobody said that it would."""
    async with talking(mesh, registry, wire) as (_record, _destination, stream):
        code, trailers = await hung_up(wire, stream)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert DRAIN not in trailers


async def test_an_instance_that_leaves_ends_its_streams_itself(mesh, registry, wire, monkeypatch):
    """Its grace is its own, and this side knows nothing of it: the stream goes on until it is over."""
    monkeypatch.setattr(endpoints, "CLOSE_GRACE", 0.0)
    async with talking(mesh, registry, wire) as (record, destination, stream):
        await registry.drain(record)
        await seen(destination, State.DRAINING)
        await registry.deregister(record)
        await seen(destination)
        for _ in range(TALK):
            await say(stream)
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_stream_of_an_instance_that_vanished_is_ended_after_a_while(
    mesh, registry, wire, monkeypatch
):
    """It did not say that it leaves, and may never end what it has."""
    monkeypatch.setattr(endpoints, "CLOSE_GRACE", 0.0)
    async with talking(mesh, registry, wire) as (record, destination, stream):
        await registry.deregister(record)
        await seen(destination)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()
    assert raised.value.details() == "the connection to one was closed"
    assert DRAIN not in dict(raised.value.trailing_metadata())

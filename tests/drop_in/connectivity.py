"""Scenarios: the state of a channel, and waiting for it to change."""

from __future__ import annotations

import asyncio

import grpc

from tests.drop_in.battery import Difference, scenario
from tests.drop_in.handlers import echo
from tests.drop_in.observations import is_soon_over
from tests.drop_in.world import World

Connectivity = grpc.ChannelConnectivity

QUICK = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 10_000)]
"""Options of a channel that soon tries again to connect; to connect may take its time."""


async def changed(channel, state):
    """Return the state of a channel once it is another one."""
    while channel.get_state() is state:
        await channel.wait_for_state_change(state)
    return channel.get_state()


async def failing(channel):
    """Return once a connection was refused."""
    while (state := channel.get_state(try_to_connect=True)) is not Connectivity.TRANSIENT_FAILURE:
        await channel.wait_for_state_change(state)


@scenario()
async def a_new_channel_is_idle(world: World):
    """Nothing is connected before it is needed, however often one looks."""
    channel = world.make_channel()
    return [channel.get_state(), channel.get_state(try_to_connect=False), channel.get_state()]


@scenario()
async def asking_to_connect_makes_a_channel_ready(world: World):
    """get_state(try_to_connect=True) returns at once, and the channel connects."""
    channel = world.make_channel()
    channel.get_state(try_to_connect=True)
    while (state := channel.get_state()) is not Connectivity.READY:
        await channel.wait_for_state_change(state)
    return channel.get_state()


@scenario()
async def channel_ready_returns_once_connected(world: World):
    """Afterwards the state is READY, and it may be awaited again."""
    channel = world.make_channel()
    return [await channel.channel_ready(), channel.get_state(), await channel.channel_ready()]


@scenario()
async def a_call_makes_a_channel_ready(world: World):
    """A first call connects by itself."""
    return [await world.unary_unary(echo)(b"a"), world.channel.get_state()]


@scenario()
async def waiting_for_a_change_returns_at_once_when_the_state_is_another(world: World):
    """The state given is not the present one: nothing to wait for."""
    channel = world.make_channel()
    await channel.channel_ready()
    return await channel.wait_for_state_change(Connectivity.IDLE)


@scenario(
    differs=Difference("Waiting for a channel's state connects it", grpcio="IDLE", meshrpc="other")
)
async def waiting_for_an_idle_channel_to_change(world: World):
    """Nobody calls, and nobody asks it to connect."""
    channel = world.make_channel()
    changing = asyncio.ensure_future(channel.wait_for_state_change(Connectivity.IDLE))
    return "other" if await is_soon_over(changing) else channel.get_state().name


@scenario()
async def waiting_for_a_change_can_be_given_up(world: World):
    """A wait that is cancelled leaves the channel as it was."""
    channel = world.make_channel()
    await channel.channel_ready()
    try:
        async with asyncio.timeout(0.05):
            await channel.wait_for_state_change(Connectivity.READY)
    except TimeoutError:
        world.note("given up")
    return [channel.get_state(), await world.unary_unary(echo, channel)(b"a")]


@scenario()
async def several_can_wait_for_the_same_change(world: World):
    """All of them hear of it."""
    channel = world.make_channel()
    return await asyncio.gather(*(channel.channel_ready() for _ in range(3)))


@scenario()
async def a_channel_to_nobody_fails(world: World):
    """Its state becomes TRANSIENT_FAILURE when the connection is refused, without asking again."""
    channel = world.make_channel(world.closed_port())
    state = channel.get_state(try_to_connect=True)
    while state is not Connectivity.TRANSIENT_FAILURE:
        state = await changed(channel, state)
    return state


@scenario()
async def a_channel_becomes_ready_when_its_server_comes(world: World):
    """channel_ready waits through any number of refused connections."""
    await world.stop_server()
    channel = world.make_channel(options=QUICK)
    ready = asyncio.ensure_future(channel.channel_ready())
    await failing(channel)
    await world.start_server()
    await ready
    return channel.get_state()


@scenario()
async def a_channel_notices_that_its_server_went(world: World):
    """It is READY no more, without any call."""
    channel = world.make_channel()
    await channel.channel_ready()
    await world.stop_server()
    return await changed(channel, Connectivity.READY) is not Connectivity.READY

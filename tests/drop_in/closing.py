"""Scenarios: a channel that is closed, with grace or without, and what becomes of its calls."""

from __future__ import annotations

import asyncio

import grpc

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.connectivity import failing
from tests.drop_in.handlers import Held, echo
from tests.drop_in.observations import answer, begin, outcome, raised, refused, status
from tests.drop_in.world import World

READY = grpc.ChannelConnectivity.READY


# --- The channel --------------------------------------------------------------------------


@scenario()
async def a_closed_channel_is_shut_down(world: World):
    """Whether one asks it to connect or not."""
    channel = world.make_channel()
    await channel.channel_ready()
    await channel.close()
    return [channel.get_state(), channel.get_state(try_to_connect=True)]


@scenario()
async def a_channel_closed_unused_is_shut_down(world: World):
    """A channel that never connected closes like any other."""
    channel = world.make_channel()
    return [await channel.close(), channel.get_state(), await channel.close(grace=1)]


@scenario()
async def closing_ends_a_wait_for_a_change(world: World):
    """Whoever waits for the channel's state hears of SHUTDOWN."""
    channel = world.make_channel()
    await channel.channel_ready()
    waiting = asyncio.ensure_future(raised(channel.wait_for_state_change(READY)))
    await asyncio.sleep(0)
    await channel.close()
    return [await waiting, channel.get_state()]


@scenario()
async def closing_ends_a_wait_for_ready(world: World):
    """channel_ready on a channel that is closed meanwhile does not wait for ever."""
    channel = world.make_channel(world.closed_port())
    await failing(channel)
    waiting = asyncio.ensure_future(raised(channel.channel_ready()))
    await asyncio.sleep(0)
    await channel.close()
    return (await waiting)[0]


@scenario()
async def a_closed_channel_is_never_ready(world: World):
    """Waiting on a channel closed before is an error of use."""
    channel = world.make_channel()
    await channel.close()
    return await raised(channel.channel_ready())


@scenario()
async def a_closed_channel_changes_no_more(world: World):
    """Waiting for another state than SHUTDOWN, or for a change of it, fails the same way."""
    channel = world.make_channel()
    await channel.close()
    return [
        await raised(channel.wait_for_state_change(state))
        for state in (grpc.ChannelConnectivity.SHUTDOWN, grpc.ChannelConnectivity.IDLE)
    ]


@scenario_of_each_kind()
async def a_closed_channel_refuses_calls(world: World, kind: str):
    """Through methods made before and after: an error of use, raised where the call is made."""
    channel = world.make_channel()
    before = getattr(channel, kind)("/drop.In/None")
    await channel.close()
    after = getattr(channel, kind)("/drop.In/None")
    return [refused(begin, kind, method) for method in (before, after)]


@scenario()
async def a_channel_can_be_closed_twice(world: World):
    """The second time does nothing."""
    await world.unary_unary(echo)(b"a")
    return [await world.channel.close(), await world.channel.close(grace=1)]


@scenario()
async def leaving_the_block_closes_the_channel(world: World):
    """`async with` gives the channel itself, and cancels what is under way at the end."""
    held, channel = Held(), world.make_channel()
    async with channel as entered:
        call = world.start("unary_unary", held, entered)
        await held.started.wait()
    await held.cancelled.wait()
    return [entered is channel, channel.get_state(), await raised(call)]


@scenario()
async def an_error_in_the_block_goes_through(world: World):
    """The channel is closed, and the error not swallowed."""
    channel = world.make_channel()

    async def use():
        async with channel:
            raise LookupError("mine")

    return [await raised(use()), channel.get_state()]


# --- Calls under way ----------------------------------------------------------------------


async def under_way(world, kind="unary_unary", channel=None):
    """Start a call; return it once the server holds it, and what holds it."""
    held = Held()
    call = world.start(kind, held, channel)
    await held.started.wait()
    return call, held


@scenario_of_each_kind(since=(1, 83))
async def closing_cancels_a_call_under_way(world: World, kind: str):
    """On both ends."""
    call, held = await under_way(world, kind)
    await world.channel.close()
    await held.cancelled.wait()
    return await outcome(call)


@scenario_of_each_kind(since=(1, 83))
async def closing_with_grace_waits_for_a_call(world: World, kind: str):
    """One that ends within the grace ends well."""
    call, held = await under_way(world, kind)
    closing = asyncio.ensure_future(world.channel.close(grace=30))
    await asyncio.sleep(0)
    world.note(("closed", closing.done()))
    held.go_on.set()
    received = await answer(call)
    await closing
    return [received, await status(call), world.channel.get_state()]


@scenario_of_each_kind(since=(1, 83))
async def a_call_that_outlasts_the_grace_is_cancelled(world: World, kind: str):
    """One that is still under way when the grace is over."""
    call, held = await under_way(world, kind)
    await world.channel.close(grace=0.05)
    await held.cancelled.wait()
    return await outcome(call)


@scenario_of_each_kind("unary_stream", "stream_stream", since=(1, 83))
async def a_stream_being_read_is_cancelled_by_closing(world: World, kind: str):
    """The reader gets CancelledError after the messages that came, not a silent end."""
    held = Held()

    async def behave(context):
        await context.write(b"first")
        await held(context)

    call = world.start(kind, behave)
    world.note(await call.read())
    reading = asyncio.ensure_future(raised(call.read()))
    await held.started.wait()
    await world.channel.close()
    await held.cancelled.wait()
    return [await reading, await status(call)]


@scenario()
async def a_grace_of_zero_is_no_grace(world: World):
    """Calls are cancelled at once."""
    call, held = await under_way(world)
    await world.channel.close(grace=0)
    await held.cancelled.wait()
    return await raised(call)


@scenario(since=(1, 83))
async def a_negative_grace_is_refused(world: World):
    """ValueError, and the channel stays open."""
    refusal = await raised(world.channel.close(grace=-1))
    return [refusal[0], await world.unary_unary(echo)(b"a")]


@scenario()
async def closing_an_idle_channel_with_grace_does_not_wait(world: World):
    """Without calls under way there is nothing to wait for."""
    await world.unary_unary(echo)(b"a")
    async with asyncio.timeout(5):
        return await world.channel.close(grace=600)


@scenario()
async def a_channel_that_closes_with_grace_refuses_new_calls(world: World):
    """While it waits for those under way."""
    call, held = await under_way(world)
    method = world.unary_unary(echo)
    closing = asyncio.ensure_future(world.channel.close(grace=30))
    await asyncio.sleep(0)
    world.note(refused(method, b"b"))
    held.go_on.set()
    return [await call, await closing]


@scenario()
async def a_channel_can_be_closed_by_two_at_once(world: World):
    """Both waits return, and the call under way is cancelled once."""
    call, held = await under_way(world)
    closed = await asyncio.gather(world.channel.close(), world.channel.close())
    await held.cancelled.wait()
    return [closed, await raised(call)]


@scenario()
async def closing_again_does_not_cut_a_grace_short(world: World):
    """It returns at once; until the first is through, calls go on and the channel is READY."""
    call, held = await under_way(world)
    first = asyncio.ensure_future(world.channel.close(grace=30))
    await asyncio.sleep(0)
    await world.channel.close()
    world.note((first.done(), call.done(), world.channel.get_state()))
    held.go_on.set()
    return [await call, await first, world.channel.get_state()]


@scenario()
async def giving_up_a_close_lets_calls_go_on(world: World):
    """The channel refuses new calls nevertheless."""
    call, held = await under_way(world)
    try:
        async with asyncio.timeout(0.05):
            await world.channel.close(grace=30)
    except TimeoutError:
        world.note("given up")
    world.note(refused(world.unary_unary(echo), b"b"))
    held.go_on.set()
    return await call


@scenario()
async def finished_calls_can_be_read_after_closing(world: World):
    """Answer and status of a call outlive the channel."""
    call = world.unary_unary(echo)(b"a")
    await call
    await world.channel.close()
    return [await call, await status(call), call.cancel()]


@scenario()
async def a_done_callback_is_called_when_closing_cancels(world: World):
    """Whoever asked to be told is told, once."""
    call, held = await under_way(world)
    call.add_done_callback(lambda over: world.note(("done", over is call, over.cancelled())))
    await world.channel.close()
    await held.cancelled.wait()
    return await raised(call)


@scenario()
async def other_channels_stay_open(world: World):
    """Closing one of two channels to a server does nothing to the calls of the other."""
    one, other = world.make_channel(), world.make_channel()
    call, held = await under_way(world, channel=other)
    await world.unary_unary(echo, one)(b"a")
    await one.close()
    held.go_on.set()
    return [await call, other.get_state(), await world.unary_unary(echo, other)(b"b")]

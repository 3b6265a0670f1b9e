"""Scenarios: the client interceptors of a channel, how many, of which kinds, in which order."""

from __future__ import annotations

import grpc
import grpc.aio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.handlers import KINDS, at_once, echo
from tests.drop_in.intercepting import interceptor, start
from tests.drop_in.observations import answer, refused
from tests.drop_in.world import World


def noting(world, event):
    """Make a function that notes an event and continues."""

    async def note(continuation, details, request):
        world.note(event)
        return await continuation(details, request)

    return note


@scenario_of_each_kind()
async def interceptors_run_in_the_order_given(world: World, kind: str):
    """The first one is outermost."""

    def named(name):
        async def note(continuation, details, request):
            world.note(f"{name} before")
            call = await continuation(details, request)
            world.note(f"{name} after")
            return call

        return note

    return await answer(start(world, kind, *map(named, ("one", "two", "three"))))


@scenario_of_each_kind()
async def interceptors_of_other_kinds_stay_out(world: World, kind: str):
    """Each kind of call meets its own kind of interceptor only."""
    every = [interceptor(each, noting(world, each)) for each in KINDS]
    return await answer(world.start(kind, at_once, world.make_channel(interceptors=every)))


@scenario()
async def an_interceptor_of_two_kinds_is_of_the_first(world: World):
    """grpcio takes one that is both for the first of the two only."""

    class Both(grpc.aio.UnaryUnaryClientInterceptor, grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            world.note("unary")
            return await continuation(details, request)

        async def intercept_unary_stream(self, continuation, details, request):
            world.note("stream")
            return await continuation(details, request)

    channel = world.make_channel(interceptors=[Both()])
    return [
        await answer(world.start(kind, at_once, channel))
        for kind in ("unary_unary", "unary_stream")
    ]


@scenario()
async def what_is_no_interceptor_is_refused_where_the_channel_is_made(world: World):
    """ValueError, as grpcio raises: for a class, a synchronous interceptor, anything else."""

    class Sync(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation, details, request):
            return continuation(details, request)

    wrongs = (object(), Sync(), None, "name", grpc.aio.UnaryUnaryClientInterceptor)
    refusals = [refused(world.make_channel, interceptors=[wrong]) for wrong in wrongs]
    return [refusal and refusal[0] for refusal in refusals]


@scenario()
async def interceptors_may_be_any_sequence(world: World):
    """Tuple, list, none at all."""
    made = interceptor("unary_unary", noting(world, "seen"))
    return [
        await world.unary_unary(echo, world.make_channel(interceptors=given))(b"a")
        for given in ((made,), [made], (), None)
    ]


@scenario()
async def one_interceptor_serves_two_channels(world: World):
    """It is no part of either."""
    shared = interceptor("unary_unary", noting(world, "seen"))
    channels = [world.make_channel(interceptors=[shared]) for _ in range(2)]
    return [await world.unary_unary(echo, channel)(b"a") for channel in channels]

"""Scenarios: credentials of calls."""

from __future__ import annotations

import grpc
import grpc.aio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.observations import answer, outcome, plain
from tests.drop_in.world import World


async def seen_metadata(request, context):
    """Answer with the metadata of the call."""
    return repr(plain(context.invocation_metadata())).encode()


async def local(world, *of_calls, **arguments):
    """Return a channel over which credentials of calls may travel, and with some of its own."""
    port = await world.secure_server(grpc.local_server_credentials())
    credentials = grpc.local_channel_credentials()
    if of_calls:
        credentials = grpc.composite_channel_credentials(credentials, *of_calls)
    return world.make_channel(port, credentials=credentials, **arguments)


class Token(grpc.AuthMetadataPlugin):
    """Adds a token, and remembers what it was asked for."""

    def __init__(self, world):
        self.world = world

    def __call__(self, context, callback):
        self.world.note((context.method_name, context.service_url.rsplit("/", 1)[-1]))
        callback((("x-token", "t"),), None)


class Failing(grpc.AuthMetadataPlugin):
    """Has no token."""

    def __call__(self, context, callback):
        callback((), LookupError("no token"))


class Raising(grpc.AuthMetadataPlugin):
    """Fails by itself."""

    def __call__(self, context, callback):
        raise LookupError("no plugin")


@scenario_of_each_kind()
async def a_plugin_adds_metadata_to_a_call(world: World, kind: str):
    """It is asked once for the call, by its method, and the server sees what it gives."""

    async def behave(context):
        world.note(plain(context.invocation_metadata()))

    credentials = grpc.metadata_call_credentials(Token(world), "token")
    channel, metadata = await local(world), (("k", "v"),)
    return await answer(
        world.start(kind, behave, channel, credentials=credentials, metadata=metadata)
    )


@scenario()
async def an_access_token_goes_out_as_authorization(world: World):
    """grpc.access_token_call_credentials."""
    method = world.unary_unary(seen_metadata, await local(world))
    return await method(b"a", credentials=grpc.access_token_call_credentials("abc"))


@scenario()
async def two_credentials_of_a_call_are_both_added(world: World):
    """grpc.composite_call_credentials."""
    method = world.unary_unary(seen_metadata, await local(world))
    both = grpc.composite_call_credentials(
        grpc.access_token_call_credentials("abc"),
        grpc.metadata_call_credentials(Token(world)),
    )
    return await method(b"a", credentials=both)


@scenario()
async def credentials_of_a_channel_are_added_to_each_call(world: World):
    """grpc.composite_channel_credentials: the plugin is asked for every call."""
    channel = await local(world, grpc.metadata_call_credentials(Token(world)))
    method = world.unary_unary(seen_metadata, channel)
    return [await method(b"a"), await method(b"b")]


@scenario()
async def credentials_of_channel_and_call_are_both_added(world: World):
    """Neither replaces the other."""
    channel = await local(world, grpc.access_token_call_credentials("abc"))
    method = world.unary_unary(seen_metadata, channel)
    return await method(b"a", credentials=grpc.metadata_call_credentials(Token(world)))


@scenario()
async def a_plugin_that_fails_fails_the_call(world: World):
    """It has no token, or breaks: grpcio's status and its reason; the server hears of nothing."""

    async def handler(request, context):
        world.note("called")
        return request

    method = world.unary_unary(handler, await local(world))
    return [
        await outcome(method(b"a", credentials=grpc.metadata_call_credentials(plugin)))
        for plugin in (Failing(), Raising())
    ]


@scenario()
async def a_call_without_credentials_follows_one_with(world: World):
    """Credentials are the call's own."""
    method = world.unary_unary(seen_metadata, await local(world))
    token = grpc.metadata_call_credentials(Token(world))
    return [await method(b"a", credentials=token), await method(b"b")]


@scenario()
async def an_interceptor_adds_credentials(world: World):
    """By replacing them in the call's details."""
    token = grpc.metadata_call_credentials(Token(world))

    class Adds(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            return await continuation(details._replace(credentials=token), request)

    method = world.unary_unary(seen_metadata, await local(world, interceptors=[Adds()]))
    return await method(b"a")

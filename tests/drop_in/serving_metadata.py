"""Scenarios: what handlers learn of a call and send beside its answer, on either side's server."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.handlers import Opening
from tests.drop_in.observations import answer, outcome, plain, raised, refused, text
from tests.drop_in.world import World


@scenario_of_each_kind()
async def metadata_of_a_served_call_both_ways(world: World, kind: str):
    """Repeated keys and bytes keep their order and value."""

    opening = Opening(kind, ("i", "1"), ("i", "2"), ("raw-bin", b"\xff"))

    async def behave(context):
        world.note(plain(context.invocation_metadata()))
        await opening.send(context)
        context.set_trailing_metadata((("t", "1"), ("t", "2")))

    call = await world.served(behave, kind, metadata=(("k", "v"), ("k-bin", b"\0")))
    return await outcome(await opening.of(call))


@scenario()
async def initial_metadata_is_sent_once(world: World):
    """A second time is an error of use."""

    async def behave(context):
        await context.send_initial_metadata((("i", "1"),))
        world.note(await raised(context.send_initial_metadata((("i", "2"),))))

    return await outcome(await world.served(behave))


@scenario()
async def initial_metadata_arrives_before_the_first_answer(world: World):
    """The caller of a stream reads it while the handler still works."""
    go = asyncio.Event()

    async def behave(context):
        await context.send_initial_metadata((("i", "1"),))
        await go.wait()

    call = await world.served(behave, "unary_stream")
    early = plain(await call.initial_metadata())
    world.note(call.done())
    go.set()
    return [early, await answer(call)]


@scenario()
async def initial_metadata_after_an_answer_is_too_late(world: World):
    """The first answer has sent it."""

    async def behave(context):
        await context.write(b"a")
        world.note((await raised(context.send_initial_metadata((("i", "1"),))))[0])

    return await outcome(await world.served(behave, "unary_stream"))


@scenario()
async def trailing_metadata_may_be_set_again(world: World):
    """The last one counts."""

    async def behave(context):
        context.set_trailing_metadata((("t", "1"),))
        context.set_trailing_metadata((("t", "2"),))

    return await outcome(await world.served(behave))


@scenario()
async def metadata_of_a_handler_may_be_of_any_form(world: World):
    """Tuple, list or grpc.aio.Metadata."""

    async def handler(request, context):
        form = (tuple, list, lambda pairs: grpc.aio.Metadata(*pairs))[int(request)]
        await context.send_initial_metadata(form([("i", "1")]))
        context.set_trailing_metadata(form([("t", "1")]))
        return b"x"

    server = await world.serve(unary_unary=handler)
    return [await outcome(server.unary_unary(form)) for form in (b"0", b"1", b"2")]


@scenario()
async def the_request_s_metadata_is_what_was_sent(world: World):
    """As a tuple of pairs that reads like one of grpcio's."""

    async def behave(context):
        metadata = context.invocation_metadata()
        found = [pair for pair in metadata if pair[0] == "k"]
        world.note((type(metadata).__name__, found, dict(metadata)["k-bin"]))
        first = found[0]
        world.note((first.key, first.value) if hasattr(first, "key") else first)

    return await (await world.served(behave, metadata=(("k", "v"), ("k-bin", b"\0\xff"))))


@scenario()
async def a_handler_knows_its_peer(world: World):
    """The caller's address, no identity, and what the transport tells."""

    async def behave(context):
        world.note(text(context.peer()))
        world.note((context.peer_identities(), context.peer_identity_key()))
        world.note(sorted(context.auth_context()))

    return await (await world.served(behave))


@scenario()
async def a_synchronous_handler_s_context(world: World):
    """Metadata, code, details and trailers work from its thread."""

    def handler(request, context):
        world.note(plain(context.invocation_metadata()))
        context.set_trailing_metadata((("t", "1"),))
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("none")
        world.note(text(context.peer()))
        return b""

    server = await world.serve(unary_unary=handler)
    return await outcome(server.unary_unary(b"a", metadata=(("k", "v"),)))


@scenario()
async def compression_of_answers(world: World):
    """Set for the call, or left out for one message, answers arrive whole."""

    async def behave(context):
        context.set_compression(grpc.Compression.Gzip)
        await context.write(b"a" * 5000)
        context.disable_next_message_compression()
        await context.write(b"b" * 5000)

    return [len(message) async for message in await world.served(behave, "unary_stream")]


@scenario()
async def compression_after_initial_metadata_is_too_late(world: World):
    """grpcio says so."""

    async def behave(context):
        await context.send_initial_metadata(())
        world.note(refused(context.set_compression, grpc.Compression.Gzip)[0])

    return await (await world.served(behave))

"""Scenarios: a channel that is shared, the methods it makes, and the options it takes."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, scenario
from tests.drop_in.handlers import HANDLERS, KINDS, Held, echo
from tests.drop_in.observations import answer, begin, raised, refused
from tests.drop_in.world import World

LONGEST = 4 * 1024 * 1024


# --- Sharing ------------------------------------------------------------------------------


@scenario()
async def many_tasks_share_a_channel(world: World):
    """Each gets its own answer."""
    method = world.unary_unary(echo)

    async def call(number):
        return await method(str(number).encode())

    return await asyncio.gather(*(call(number) for number in range(50)))


@scenario()
async def a_call_made_in_one_task_can_be_awaited_in_another(world: World):
    """And in several at once."""
    held = Held()
    call = world.start("unary_unary", held)
    waits = [asyncio.create_task(answer(call)) for _ in range(3)]
    await held.started.wait()
    held.go_on.set()
    return await asyncio.gather(*waits)


@scenario()
async def many_methods_share_a_channel(world: World):
    """Calls of all kinds under way at the same time do not disturb each other."""
    calls = [begin(kind, getattr(world, kind)(HANDLERS[kind]), kind.encode()) for kind in KINDS]
    return [await answer(call) for call in reversed(calls)]


# --- Methods ------------------------------------------------------------------------------


@scenario()
async def a_method_may_be_named_in_bytes(world: World):
    """As str or as bytes, the server is asked for the same one."""
    world.unary_unary(echo)
    return [
        await world.channel.unary_unary("/drop.In/Method0")(b"a"),
        await world.channel.unary_unary(b"/drop.In/Method0")(b"b"),
    ]


@scenario()
async def a_method_without_a_slash_is_sent_as_it_is(world: World):
    """The name is the server's business."""
    return await raised(world.channel.unary_unary("nothing")(b"a"))


@scenario()
async def a_registered_method_is_called_like_any_other(world: World):
    """Newer generated code says _registered_method=True."""
    world.unary_unary(echo)
    registered = world.channel.unary_unary("/drop.In/Method0", _registered_method=True)
    return [await registered(b"a"), await registered(b"b")]


@scenario()
async def a_method_takes_its_codecs_by_name_or_position(world: World):
    """Serialiser and deserialiser, as stubs give them."""
    world.unary_unary(echo)
    path = "/drop.In/Method0"
    named = world.channel.unary_unary(
        path, request_serializer=str.encode, response_deserializer=bytes.decode
    )
    placed = world.channel.unary_unary(path, str.encode, bytes.decode)
    return [await named("a"), await placed("b")]


@scenario()
async def a_channel_may_be_dropped_while_its_methods_are_used(world: World):
    """The stub keeps what it needs."""
    world.unary_unary(echo)
    method = world.make_channel().unary_unary("/drop.In/Method0")
    return [await method(b"a"), await method(b"b")]


# --- Options ------------------------------------------------------------------------------


@scenario()
async def an_answer_longer_than_allowed_is_refused(world: World):
    """grpc.max_receive_message_length of the channel: RESOURCE_EXHAUSTED, with both lengths."""
    channel = world.make_channel(options=[("grpc.max_receive_message_length", 10)])
    method = world.unary_unary(echo, channel)
    return [await method(b"a" * 10), await raised(method(b"a" * 11))]


@scenario()
async def a_request_longer_than_allowed_is_not_sent(world: World):
    """grpc.max_send_message_length of the channel: RESOURCE_EXHAUSTED, and no call arrives."""

    async def handler(request, context):
        world.note(len(request))
        return request

    channel = world.make_channel(options=[("grpc.max_send_message_length", 10)])
    method = world.unary_unary(handler, channel)
    return [await method(b"a" * 10), await raised(method(b"a" * 11))]


async def as_long_as_asked(request, context):
    return b"a" * int(request)


@scenario()
async def four_mebibytes_are_received_by_default(world: World):
    """The default limit is grpcio's: one byte more is refused."""
    method = world.unary_unary(as_long_as_asked)
    return [len(await method(b"%d" % LONGEST)), await raised(method(b"%d" % (LONGEST + 1)))]


@scenario()
async def a_length_of_minus_one_is_no_limit(world: World):
    """The common way to lift the limit."""
    channel = world.make_channel(options=[("grpc.max_receive_message_length", -1)])
    return len(await world.unary_unary(as_long_as_asked, channel)(b"%d" % (LONGEST + 1)))


@scenario()
async def a_user_agent_can_be_added(world: World):
    """grpc.primary_user_agent comes first in what the server sees."""

    async def behave(context):
        world.note(dict(context.invocation_metadata())["user-agent"])

    options = [("grpc.primary_user_agent", "mine/1"), ("grpc.secondary_user_agent", "other/2")]
    return await world.start("unary_unary", behave, world.make_channel(options=options))


@scenario()
async def an_authority_can_be_named(world: World):
    """Calls go through whatever name the channel uses for its server."""
    options = [("grpc.default_authority", "elsewhere.example")]
    return await world.unary_unary(echo, world.make_channel(options=options))(b"a")


@scenario()
async def options_may_be_any_sequence_of_pairs(world: World):
    """Tuple, list, lists as pairs, or nothing."""
    pair = ("grpc.max_send_message_length", 10)
    seen = []
    for options in ((pair,), [pair], (list(pair),), None, ()):
        try:
            channel = world.make_channel(options=options)
            seen.append((await raised(world.unary_unary(echo, channel)(b"a" * 11)))[:2])
        except Exception as error:  # noqa: BLE001 - that is the question
            seen.append(type(error).__name__)
    return seen


@scenario()
async def an_option_of_a_wrong_kind_is_refused_where_the_channel_is_made(world: World):
    """TypeError names nothing later and elsewhere."""
    wrong = [(7, 8), ("grpc.keepalive_time_ms", None), ("grpc.keepalive_time_ms", [1])]
    refusals = [refused(world.make_channel, options=[option]) for option in wrong]
    return [refusal and refusal[0] for refusal in refusals]


@scenario()
async def a_compression_of_a_wrong_kind_is_refused_where_the_channel_is_made(world: World):
    """ValueError; members of grpc.Compression are taken, NoCompression too."""
    given = ("gzip", grpc.Compression.NoCompression, grpc.Compression.Gzip)
    refusals = [refused(world.make_channel, compression=each) for each in given]
    return [refusal and refusal[0] for refusal in refusals]


@scenario(
    differs=Difference(
        "A channel belongs to the loop of its mesh",
        grpcio="RuntimeError",
        meshrpc="UsageError",
    )
)
async def a_channel_is_made_in_one_thread_and_used_in_another(world: World):
    """With an event loop of its own there."""
    method = world.unary_unary(echo, world.make_channel())

    async def use():
        try:
            return await method(b"a")
        except (RuntimeError, grpc.aio.UsageError) as error:
            return type(error).__name__

    return await asyncio.to_thread(asyncio.run, use())

"""Scenarios: messages, how they become bytes, and how large they may be."""

from __future__ import annotations

import pickle

import grpc
import grpc.aio
from google.protobuf import wrappers_pb2

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.handlers import HANDLERS, echo, echo_twice
from tests.drop_in.observations import answer, raised, status
from tests.drop_in.world import World

LIMIT = 4 * 1024 * 1024


def method_of(world, kind, channel=None, **codec):
    return getattr(world, kind)(HANDLERS[kind], channel, **codec)


def begin(kind, method, request, **options):
    return method(request if kind.startswith("unary") else [request], **options)


@scenario_of_each_kind()
async def messages_are_serialised_and_deserialised(world: World, kind: str):
    """By the functions that the multicallable was made with."""
    method = method_of(
        world, kind, request_serializer=str.encode, response_deserializer=bytes.decode
    )
    return await answer(begin(kind, method, "text"))


@scenario_of_each_kind()
async def messages_without_serialisers_are_bytes(world: World, kind: str):
    """As they are, in both directions; empty ones too."""
    method = method_of(world, kind)
    return [await answer(begin(kind, method, request)) for request in (b"bytes", b"")]


@scenario_of_each_kind()
async def protobuf_messages_travel(world: World, kind: str):
    """As generated stubs send them, an empty one included."""
    type_ = wrappers_pb2.StringValue
    method = method_of(
        world,
        kind,
        request_serializer=type_.SerializeToString,
        response_deserializer=type_.FromString,
    )
    return [
        await answer(begin(kind, method, type_(value=value)))
        == (
            type_(value=value)
            if kind.endswith("unary")
            else [type_(value=value)] * (2 if kind == "unary_stream" else 1)
        )
        for value in ("text", "", "x" * 1_000_000)
    ]


@scenario()
async def a_deserialiser_may_return_anything(world: World):
    """None, False and an exception object are answers."""
    made = iter([None, False, 0, ValueError("an answer")])
    method = world.unary_unary(echo, response_deserializer=lambda data: next(made))
    return [repr(await method(b"")) for _ in range(4)]


@scenario()
async def a_stream_may_carry_none(world: World):
    """A deserialiser that returns None does not end an iteration."""
    method = world.unary_stream(echo_twice, response_deserializer=lambda data: None)
    return [message async for message in method(b"")]


@scenario()
async def an_answer_is_deserialised_once(world: World):
    """However often it is awaited; it is the same object each time."""
    made = []

    def deserialise(data):
        made.append(data)
        return object()

    call = world.unary_unary(echo, response_deserializer=deserialise)(b"a")
    first, second = await call, await call
    return first is second, made


@scenario()
async def a_request_is_serialised_once(world: World):
    """For each call."""
    made = []

    def serialise(request):
        made.append(request)
        return request

    method = world.unary_unary(echo, request_serializer=serialise)
    await method(b"a")
    await method(b"b")
    return made


@scenario(
    differs=Difference(
        "A serialiser that fails",
        grpcio=[b"", b""],
        meshrpc=["ValueError", "TypeError"],
    )
)
async def a_serialiser_that_fails(world: World):
    """By raising, or by returning what is not bytes; what the server got."""

    def raises(request):
        raise ValueError("unable")

    seen = []

    async def handler(request, context):
        seen.append(request)
        return request

    outcomes = []
    for serialiser in (raises, lambda request: None):
        try:
            await world.unary_unary(handler, request_serializer=serialiser)("a")
        except (TypeError, ValueError) as error:
            outcomes.append(type(error).__name__)
    return seen + outcomes


@scenario_of_each_kind(
    differs=Difference(
        "A deserialiser that raises",
        grpcio="no message, and no error",
        meshrpc=grpc.StatusCode.INTERNAL,
    )
)
async def a_deserialiser_that_raises(world: World, kind: str):
    """The error says that the answer could not be read."""

    def unable(data):
        raise ValueError("unable")

    call = begin(kind, method_of(world, kind, response_deserializer=unable), b"a")
    try:
        received = await answer(call)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return "no message, and no error" if received in (None, [None], [None, None]) else received


@scenario_of_each_kind("unary_unary", "stream_stream")
async def a_request_larger_than_the_server_takes(world: World, kind: str):
    """RESOURCE_EXHAUSTED, from the server; the channel remains usable."""
    method = method_of(world, kind)
    call = begin(kind, method, b"x" * (LIMIT + 1))
    outcome = await raised(answer(call))
    return outcome[:2], await call.code(), await answer(begin(kind, method, b"small"))


@scenario_of_each_kind()
async def an_answer_larger_than_the_client_takes(world: World, kind: str):
    """RESOURCE_EXHAUSTED, from the client itself."""
    channel = world.make_channel(options=[("grpc.max_receive_message_length", 1000)])
    method = method_of(world, kind, channel)
    call = begin(kind, method, b"x" * 1001)
    outcome = await raised(answer(call))
    return outcome, await status(call), len(await answer(begin(kind, method, b"x" * 1000)))


@scenario_of_each_kind("unary_unary", "unary_stream")
async def a_request_larger_than_the_client_sends(world: World, kind: str):
    """RESOURCE_EXHAUSTED, from the client itself."""
    channel = world.make_channel(options=[("grpc.max_send_message_length", 1000)])
    method = method_of(world, kind, channel)
    call = begin(kind, method, b"x" * 1001)
    outcome = await raised(answer(call))
    return outcome[:3], await call.code()


@scenario()
async def messages_of_any_size_travel(world: World):
    """Up to the limit."""
    method = world.unary_unary(echo)
    sizes = (0, 1, 16_383, 16_384, 65_535, 65_536, 1_000_000, LIMIT)
    return [len(await method(b"x" * size)) for size in sizes]


@scenario()
async def a_pickled_object_travels(world: World):
    """Any pair of functions is a codec."""
    method = world.unary_unary(
        echo, request_serializer=pickle.dumps, response_deserializer=pickle.loads
    )
    return await method({"a": [1, None, 2.5]})

"""Scenarios: compression of a call and of a channel, and what the server sees of it."""

from __future__ import annotations

import grpc
import grpc.aio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.handlers import echo
from tests.drop_in.observations import answer, begin
from tests.drop_in.world import World

ALGORITHMS = tuple(grpc.Compression)


class Encoding:
    """A behaviour that notes how the requests of its call are encoded."""

    def __init__(self, world):
        self._world = world

    async def __call__(self, context):
        self._world.note(
            sorted(
                pair
                for pair in context.invocation_metadata()
                if pair[0] in ("grpc-encoding", "grpc-internal-encoding-request")
            )
        )


@scenario_of_each_kind()
async def a_call_is_compressed(world: World, kind: str):
    """With each algorithm, and with none; the server sees which."""
    method = world.method(kind, Encoding(world))
    return [
        await answer(begin(kind, method, compression=algorithm))
        for algorithm in (*ALGORITHMS, None)
    ]


@scenario_of_each_kind()
async def a_channel_is_compressed(world: World, kind: str):
    """With each algorithm."""
    received = []
    for algorithm in ALGORITHMS:
        channel = world.make_channel(compression=algorithm)
        received.append(await answer(begin(kind, world.method(kind, Encoding(world), channel))))
    return received


@scenario_of_each_kind()
async def a_call_is_compressed_otherwise_than_its_channel(world: World, kind: str):
    """The call's own algorithm wins, none included."""
    channel = world.make_channel(compression=grpc.Compression.Gzip)
    method = world.method(kind, Encoding(world), channel)
    return [await answer(begin(kind, method, compression=algorithm)) for algorithm in ALGORITHMS]


@scenario()
async def compressed_messages_arrive_whole(world: World):
    """Large, empty and incompressible ones."""
    method = world.unary_unary(echo)
    requests = [b"", b"x" * 1_000_000, bytes(range(256)) * 100]
    return [
        await method(request, compression=algorithm) == request
        for request in requests
        for algorithm in ALGORITHMS
    ]


@scenario()
async def a_server_compresses_its_answers(world: World):
    """The client reads them, whatever it asked for itself."""

    async def behave(context):
        context.set_compression(grpc.Compression.Gzip)

    return [await answer(world.start(kind, behave)) for kind in ("unary_unary", "stream_stream")]


@scenario()
async def compression_and_metadata_together(world: World):
    """The user's metadata arrives beside the algorithm."""
    seen = []

    async def behave(context):
        seen.extend(pair for pair in context.invocation_metadata() if pair[0] == "k")

    method = world.method("unary_unary", behave)
    for metadata in ((("k", "v"),), [("k", "v")], grpc.aio.Metadata(("k", "v"))):
        await method(b"", metadata=metadata, compression=grpc.Compression.Deflate)
    return seen

"""Scenarios: metadata, which forms are accepted, what arrives, and when."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.handlers import Opening, at_once
from tests.drop_in.observations import answer, begin, plain, raised
from tests.drop_in.world import World


class Seeing:
    """A behaviour that notes the metadata of its call."""

    def __init__(self, world):
        self._world = world

    async def __call__(self, context):
        self._world.note(plain(context.invocation_metadata()))


@scenario_of_each_kind()
async def metadata_may_have_any_of_grpcios_forms(world: World, kind: str):
    """A tuple, a list, a Metadata, nothing at all."""
    method = world.method(kind, Seeing(world))
    pairs = (("a", "1"), ("b", "2"))
    for form in (
        pairs,
        list(pairs),
        grpc.aio.Metadata(*pairs),
        grpc.aio.Metadata(),
        (),
        [],
        None,
        [list(pair) for pair in pairs],
        ((b"a", b"1"), ("b", "2")),
    ):
        await answer(begin(kind, method, metadata=form))


@scenario()
async def metadata_arrives_in_order(world: World):
    """Duplicates included, whatever stands between them."""
    method = world.method("unary_unary", Seeing(world))
    await method(b"", metadata=(("b", "1"), ("a", "2"), ("b", "3"), ("b", "1")))
    metadata = grpc.aio.Metadata(("b", "1"), ("a", "2"))
    metadata.add("b", "3")
    await method(b"", metadata=metadata)


@scenario()
async def binary_metadata_arrives_as_bytes(world: World):
    """Any bytes under a -bin key, none at all included."""
    method = world.method("unary_unary", Seeing(world))
    await method(b"", metadata=(("k-bin", bytes(range(256))), ("k-bin", b""), ("l-bin", b"\x00")))


@scenario()
async def odd_but_legal_metadata_arrives(world: World):
    """Empty values, every printable character, every kind of key."""
    method = world.method("unary_unary", Seeing(world))
    printable = "".join(chr(each) for each in range(0x21, 0x7F))
    for pair in [
        ("empty", ""),
        ("printable", printable),
        ("spaces", "in the middle"),
        ("k.e-y_0", "v"),
        ("0", "v"),
        ("bytes", b"are text too"),
        ("long", "x" * 4000),
    ]:
        await method(b"", metadata=(pair,))


@scenario()
async def spaces_around_a_value(world: World):
    """What becomes of them on the way."""
    method = world.method("unary_unary", Seeing(world))
    await method(b"", metadata=(("k", " v "),))


@scenario()
async def reserved_metadata(world: World):
    """What a user says in keys that belong to gRPC: refused or dropped."""
    method = world.method("unary_unary", Seeing(world))
    outcomes = []
    for pair in [("grpc-mine", "1"), ("grpc-timeout", "1S"), ("te", "x"), ("content-type", "x")]:
        try:
            outcomes.append((await raised(method(b"", metadata=(pair,), timeout=2)))[:2])
        except Exception as error:  # noqa: BLE001 - its type is the question
            outcomes.append(type(error))
    return outcomes


@scenario()
async def more_metadata_than_a_server_takes(world: World):
    """RESOURCE_EXHAUSTED."""
    method = world.method("unary_unary", at_once)
    return (await raised(method(b"", metadata=(("k", "x" * 20_000),))))[:2]


async def refused(method, metadata):
    """Return when metadata is refused: where the call is made, when it is awaited, or never."""
    try:
        call = method(b"", metadata=metadata)
    except (TypeError, ValueError) as error:
        return "at the call", type(error)
    try:
        await asyncio.wait_for(call, 5)
    except (TypeError, ValueError) as error:
        return "awaiting", type(error)
    except Exception as error:  # noqa: BLE001 - grpcio's own has no public name
        return "awaiting", type(error).__name__
    return "accepted", None


_REFUSED = "Metadata that gRPC cannot carry"


@scenario(
    differs=Difference(
        _REFUSED,
        grpcio=[("awaiting", "ExecuteBatchError")] * 4
        + [("awaiting", TypeError)] * 2
        + [("accepted", None)],
        meshrpc=[("at the call", ValueError)] * 4 + [("at the call", TypeError)] * 3,
    )
)
async def metadata_that_cannot_be_carried_is_refused_at_once(world: World):
    """Keys in upper case or empty, text beyond ASCII or of two lines, of a wrong type, or None."""
    method = world.method("unary_unary", at_once)
    pairs = [("K", "v"), ("", "v"), ("k", "ü"), ("k", "a\nb"), ("k", 1), ("k-bin", "text")]
    pairs.append(("k", None))
    return [await refused(method, (pair,)) for pair in pairs]


@scenario(
    differs=Difference(
        _REFUSED,
        grpcio=("accepted", None),
        meshrpc=("at the call", TypeError),
    )
)
async def metadata_that_is_a_mapping_is_refused(world: World):
    """Grpcio takes the letters of a key of two for a key and a value."""
    return await refused(world.method("unary_unary", at_once), {"kv": "lost"})


@scenario_of_each_kind("unary_stream", "stream_unary", "stream_stream")
async def initial_metadata_comes_before_the_answer(world: World, kind: str):
    """Sent early, it can be had while the handler still works."""
    go_on = asyncio.Event()

    async def behave(context):
        await context.send_initial_metadata((("a", "1"), ("a", "2"), ("b-bin", b"\xff")))
        await go_on.wait()

    call = world.start(kind, behave)
    early = plain(await call.initial_metadata())
    done = call.done()
    go_on.set()
    return early, done, await answer(call), plain(await call.initial_metadata())


@scenario_of_each_kind()
async def initial_metadata_that_is_not_sent_is_empty(world: World, kind: str):
    """And there when the call is over."""
    call = world.start(kind, at_once)
    initial = await call.initial_metadata()
    return plain(initial), type(initial), await answer(call)


@scenario_of_each_kind()
async def trailing_metadata_comes_with_the_end(world: World, kind: str):
    """Duplicates, order and bytes are kept."""

    async def behave(context):
        context.set_trailing_metadata((("b", "1"), ("a", "2"), ("b", "3"), ("c-bin", b"\xff")))

    call = world.start(kind, behave)
    received = await answer(call)
    trailing = await call.trailing_metadata()
    return received, plain(trailing), type(trailing), trailing["b"], trailing.get_all("b")


@scenario_of_each_kind()
async def metadata_of_a_failed_call_is_in_its_error(world: World, kind: str):
    """Initial and trailing, of grpcio's type, with all that it offers."""

    opening = Opening(kind, ("i", "1"))

    async def behave(context):
        await opening.send(context)
        await context.abort(grpc.StatusCode.ABORTED, "", (("t", "2"), ("t", "3")))

    call = await opening.of(world.start(kind, behave))
    try:
        await answer(call)
    except grpc.aio.AioRpcError as error:
        initial, trailing = error.initial_metadata(), error.trailing_metadata()
        return [
            *(plain(initial), type(initial), plain(trailing), type(trailing)),
            *(trailing.get_all("t"), trailing == await call.trailing_metadata()),
            initial == await call.initial_metadata(),
        ]


@scenario()
async def metadata_of_an_answer_without_any(world: World):
    """Both kinds are an empty Metadata, and equal to one."""
    call = world.method("unary_unary", at_once)(b"")
    await call
    both = [await call.initial_metadata(), await call.trailing_metadata()]
    return [(type(each), each == grpc.aio.Metadata(), len(each), bool(each)) for each in both]


@scenario()
async def a_stream_sends_initial_metadata_with_its_first_message(world: World):
    """Without sending it explicitly, it comes when the first message does."""

    go_on = asyncio.Event()

    async def handler(request, context):
        await context.send_initial_metadata((("k", "v"),))
        yield b"1"
        await go_on.wait()
        context.set_trailing_metadata((("t", "v"),))

    call = world.unary_stream(handler)(b"")
    events = [await call.read(), plain(await call.initial_metadata())]
    go_on.set()
    await call.read()
    return events, plain(await call.trailing_metadata())


@scenario()
async def initial_metadata_of_a_unary_call_comes_with_its_answer(world: World):
    """Sent early, it is still had no earlier: grpcio asks for both at once."""
    sent, go_on = asyncio.Event(), asyncio.Event()

    async def behave(context):
        await context.send_initial_metadata((("k", "v"),))
        sent.set()
        await go_on.wait()

    call = world.start("unary_unary", behave)
    asking = asyncio.ensure_future(call.initial_metadata())
    await sent.wait()
    await world.start("unary_unary", at_once)
    early = asking.done()
    go_on.set()
    return early, plain(await asking), await call


@scenario()
async def metadata_of_a_caller_is_left_as_it_was(world: World):
    """The object that was given is not changed, and may be used again."""
    method = world.method("unary_unary", Seeing(world))
    metadata = grpc.aio.Metadata(("a", "1"))
    await method(b"", metadata=metadata, compression=grpc.Compression.Gzip)
    await method(b"", metadata=metadata)
    return list(metadata)


@scenario()
async def what_a_server_sees_besides(world: World):
    """User-agent and the like: the keys that grpcio itself adds are there."""
    seen = []

    async def behave(context):
        seen.extend(key for key, _ in context.invocation_metadata())

    await world.start("unary_unary", behave)
    return "user-agent" in seen

"""Scenarios: what a channel itself does, from making to closing."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, World, each_kind, raised, scenario, status

Connectivity = grpc.ChannelConnectivity
QUICK = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100)]


async def echo(request, context):
    return request


async def echo_each(requests, context):
    async for request in requests:
        yield request


async def join(requests, context):
    return b"".join([request async for request in requests])


async def repeat(request, context):
    for _ in range(3):
        yield request


class Held:
    """Handlers of every kind that arrive, and then wait to be let go."""

    def __init__(self, world):
        self.world = world
        self.arrived = asyncio.Event()
        self.go = asyncio.Event()
        self.over = asyncio.Event()

    async def _hold(self):
        self.arrived.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.world.note("handler cancelled")
            raise
        finally:
            self.over.set()

    async def unary_unary(self, request, context):
        await self._hold()
        return b"late"

    async def unary_stream(self, request, context):
        yield b"first"
        await self._hold()
        yield b"late"

    async def stream_unary(self, requests, context):
        await anext(requests)
        await self._hold()
        return b"late"

    async def stream_stream(self, requests, context):
        yield await anext(requests)
        await self._hold()
        yield b"late"


def start(world, kind, held, channel=None):
    """Call the held handler of a kind."""
    method = getattr(world, kind)(getattr(held, kind), channel)
    return method(b"a") if kind.startswith("unary") else method([b"a"])


async def answers(call, kind):
    """Return all that a call answers."""
    if kind.endswith("unary"):
        return await call
    return [message async for message in call]


# --- Connectivity -------------------------------------------------------------------------


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
    answer = await world.unary_unary(echo)(b"a")
    return [answer, world.channel.get_state()]


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
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await channel.wait_for_state_change(Connectivity.IDLE)
            return "other"
    return channel.get_state().name


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
    waits = [asyncio.ensure_future(channel.channel_ready()) for _ in range(3)]
    return await asyncio.gather(*waits)


@scenario()
async def a_channel_to_nobody_fails(world: World):
    """Its state becomes TRANSIENT_FAILURE when the connection is refused."""
    await world.stop_server()
    channel = world.make_channel()
    state = channel.get_state(try_to_connect=True)
    while state is not Connectivity.TRANSIENT_FAILURE:
        await channel.wait_for_state_change(state)
        state = channel.get_state()
    return state


@scenario()
async def a_channel_becomes_ready_when_its_server_comes(world: World):
    """channel_ready waits through any number of refused connections."""
    await world.stop_server()
    channel = world.make_channel(options=QUICK)
    ready = asyncio.ensure_future(channel.channel_ready())
    state = channel.get_state(try_to_connect=True)
    while state is not Connectivity.TRANSIENT_FAILURE:
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    await world.start_server()
    await ready
    return channel.get_state()


@scenario()
async def a_channel_notices_that_its_server_went(world: World):
    """It is READY no more, without any call."""
    channel = world.make_channel()
    await channel.channel_ready()
    await world.stop_server()
    while channel.get_state() is Connectivity.READY:
        await channel.wait_for_state_change(Connectivity.READY)
    return channel.get_state() is not Connectivity.READY


# --- Closing ------------------------------------------------------------------------------


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
    waiting = asyncio.ensure_future(raised(channel.wait_for_state_change(Connectivity.READY)))
    await asyncio.sleep(0)
    await channel.close()
    return [await waiting, channel.get_state()]


@scenario()
async def closing_ends_a_wait_for_ready(world: World):
    """channel_ready on a channel that is closed meanwhile does not wait for ever."""
    await world.stop_server()
    channel = world.make_channel()
    while (state := channel.get_state(True)) is not Connectivity.TRANSIENT_FAILURE:
        await channel.wait_for_state_change(state)
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
        await raised(channel.wait_for_state_change(Connectivity.SHUTDOWN)),
        await raised(channel.wait_for_state_change(Connectivity.IDLE)),
    ]


async def _calls_after_closing(world, close_first):
    channel = world.make_channel()
    if close_first:
        await channel.close()
    methods = [
        channel.unary_unary("/drop.In/None"),
        channel.unary_stream("/drop.In/None"),
        channel.stream_unary("/drop.In/None"),
        channel.stream_stream("/drop.In/None"),
    ]
    await channel.close()
    seen = []
    for method, request in zip(methods, (b"a", b"a", [b"a"], None), strict=True):
        try:
            call = method(request)
        except Exception as error:  # noqa: BLE001 - that is the question
            seen.append((type(error).__name__, str(error)))
        else:
            seen.append(("a call", await raised(call.code())))
    return seen


@scenario()
async def methods_made_before_closing_refuse_calls_after_it(world: World):
    """Every kind of call on a closed channel is an error of use, raised where it is made."""
    return await _calls_after_closing(world, close_first=False)


@scenario()
async def methods_can_be_made_after_closing_and_refuse_calls(world: World):
    """Making them is no error yet."""
    return await _calls_after_closing(world, close_first=True)


@each_kind(since=(1, 83))
def _closing_cancels(kind):
    async def run(world: World):
        held = Held(world)
        call = start(world, kind, held)
        await held.arrived.wait()
        await world.channel.close()
        await held.over.wait()
        return [await raised(answers(call, kind)), await status(call)]

    return (
        run,
        f"closing_cancels_a_{kind}_call_under_way",
        f"A {kind} call under way is cancelled, on both ends.",
    )


@each_kind(since=(1, 83))
def _closing_with_grace_waits(kind):
    async def run(world: World):
        held = Held(world)
        call = start(world, kind, held)
        await held.arrived.wait()
        closing = asyncio.ensure_future(world.channel.close(grace=30))
        await asyncio.sleep(0)
        world.note(("closed", closing.done()))
        held.go.set()
        answer = await answers(call, kind)
        await closing
        return [answer, await status(call), world.channel.get_state()]

    return (
        run,
        f"closing_with_grace_waits_for_a_{kind}_call",
        f"A {kind} call that ends within the grace ends well.",
    )


@each_kind(since=(1, 83))
def _grace_runs_out(kind):
    async def run(world: World):
        held = Held(world)
        call = start(world, kind, held)
        await held.arrived.wait()
        await world.channel.close(grace=0.05)
        await held.over.wait()
        return [await raised(answers(call, kind)), await status(call)]

    return (
        run,
        f"a_{kind}_call_that_outlasts_the_grace_is_cancelled",
        f"A {kind} call still under way when the grace is over is cancelled.",
    )


@scenario()
async def a_channel_that_closes_with_grace_refuses_new_calls(world: World):
    """While it waits for those under way."""
    held = Held(world)
    call = start(world, "unary_unary", held)
    method = world.unary_unary(echo)
    await held.arrived.wait()
    closing = asyncio.ensure_future(world.channel.close(grace=30))
    await asyncio.sleep(0)
    try:
        method(b"b")
    except grpc.aio.UsageError as error:
        world.note(str(error))
    held.go.set()
    return [await call, await closing]


@scenario()
async def closing_an_idle_channel_with_grace_does_not_wait(world: World):
    """Without calls under way there is nothing to wait for."""
    await world.unary_unary(echo)(b"a")
    async with asyncio.timeout(5):
        return await world.channel.close(grace=600)


@scenario()
async def a_channel_can_be_closed_twice(world: World):
    """The second time does nothing."""
    await world.unary_unary(echo)(b"a")
    return [await world.channel.close(), await world.channel.close(grace=1)]


@scenario()
async def a_channel_can_be_closed_by_two_at_once(world: World):
    """Both waits return, and the call under way is cancelled once."""
    held = Held(world)
    call = start(world, "unary_unary", held)
    await held.arrived.wait()
    closed = await asyncio.gather(world.channel.close(), world.channel.close())
    await held.over.wait()
    return [closed, await raised(call)]


@scenario()
async def closing_again_does_not_cut_a_grace_short(world: World):
    """It returns at once; until the first is through, calls go on and the channel is READY."""
    held = Held(world)
    call = start(world, "unary_unary", held)
    await held.arrived.wait()
    first = asyncio.ensure_future(world.channel.close(grace=30))
    await asyncio.sleep(0)
    await world.channel.close()
    world.note((first.done(), call.done(), world.channel.get_state()))
    held.go.set()
    return [await call, await first, world.channel.get_state()]


@scenario()
async def giving_up_a_close_lets_calls_go_on(world: World):
    """The channel refuses new calls nevertheless."""
    held = Held(world)
    call = start(world, "unary_unary", held)
    await held.arrived.wait()
    try:
        async with asyncio.timeout(0.05):
            await world.channel.close(grace=30)
    except TimeoutError:
        world.note("given up")
    try:
        world.channel.unary_unary("/drop.In/Method0")(b"b")
    except grpc.aio.UsageError as error:
        world.note(str(error))
    held.go.set()
    return await call


@scenario(since=(1, 83))
async def a_negative_grace_is_refused(world: World):
    """ValueError, and the channel stays open."""
    refused = await raised(world.channel.close(grace=-1))
    return [refused[0], await world.unary_unary(echo)(b"a")]


@scenario()
async def a_grace_of_zero_is_no_grace(world: World):
    """Calls are cancelled at once."""
    held = Held(world)
    call = start(world, "unary_unary", held)
    await held.arrived.wait()
    await world.channel.close(grace=0)
    await held.over.wait()
    return await raised(call)


@scenario()
async def leaving_the_block_closes_the_channel(world: World):
    """`async with` gives the channel itself, and cancels what is under way at the end."""
    held = Held(world)
    channel = world.make_channel()
    async with channel as entered:
        call = start(world, "unary_unary", held, entered)
        await held.arrived.wait()
    await held.over.wait()
    return [entered is channel, channel.get_state(), await raised(call)]


@scenario()
async def an_error_in_the_block_goes_through(world: World):
    """The channel is closed, and the error not swallowed."""
    channel = world.make_channel()

    async def use():
        async with channel:
            raise LookupError("mine")

    return [await raised(use()), channel.get_state()]


@scenario()
async def finished_calls_can_be_read_after_closing(world: World):
    """Answer and status of a call outlive the channel."""
    call = world.unary_unary(echo)(b"a")
    await call
    await world.channel.close()
    return [await call, await status(call), call.cancel()]


@scenario(since=(1, 83))
async def a_stream_being_read_by_a_task_is_cancelled_by_closing(world: World):
    """The reader gets CancelledError, not a silent end."""
    held = Held(world)
    call = start(world, "unary_stream", held)
    reading = asyncio.ensure_future(raised(answers(call, "unary_stream")))
    await held.arrived.wait()
    await world.channel.close()
    await held.over.wait()
    return [await reading, await call.code()]


@scenario()
async def a_done_callback_is_called_when_closing_cancels(world: World):
    """Whoever asked to be told is told, once."""
    held = Held(world)
    call = start(world, "unary_unary", held)
    call.add_done_callback(lambda over: world.note(("done", over is call, over.cancelled())))
    await held.arrived.wait()
    await world.channel.close()
    await held.over.wait()
    return await raised(call)


@scenario()
async def other_channels_stay_open(world: World):
    """Closing one of two channels to a server does nothing to the calls of the other."""
    one, other = world.make_channel(), world.make_channel()
    held = Held(world)
    call = start(world, "unary_unary", held, other)
    await world.unary_unary(echo, one)(b"a")
    await held.arrived.wait()
    await one.close()
    held.go.set()
    return [await call, other.get_state(), await world.unary_unary(echo, other)(b"b")]


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
    held = Held(world)
    call = start(world, "unary_unary", held)

    async def wait():
        return await call

    waits = [asyncio.ensure_future(wait()) for _ in range(3)]
    await held.arrived.wait()
    held.go.set()
    return await asyncio.gather(*waits)


@scenario()
async def many_methods_share_a_channel(world: World):
    """Calls of all kinds under way at the same time do not disturb each other."""
    unary = world.unary_unary(echo)(b"a")
    out = world.unary_stream(repeat)(b"b")
    into = world.stream_unary(join)([b"c", b"d"])
    both = world.stream_stream(echo_each)([b"e", b"f"])
    return [
        [message async for message in both],
        await into,
        [message async for message in out],
        await unary,
    ]


# --- Methods ------------------------------------------------------------------------------


@scenario()
async def channel_methods_and_calls_are_grpc_aio_s(world: World):
    """Type checks against the public base classes hold for all kinds."""
    held = Held(world)
    held.go.set()
    seen = [isinstance(world.channel, grpc.aio.Channel)]
    for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        camel = "".join(part.capitalize() for part in kind.split("_"))
        method = getattr(world, kind)(getattr(held, kind))
        call = method(b"a") if kind.startswith("unary") else method([b"a"])
        seen.append(
            (
                isinstance(method, getattr(grpc.aio, f"{camel}MultiCallable")),
                isinstance(call, getattr(grpc.aio, f"{camel}Call")),
                isinstance(call, grpc.aio.Call),
                isinstance(call, grpc.RpcError),
            )
        )
        await answers(call, kind)
    return seen


@scenario()
async def a_method_may_be_named_in_bytes(world: World):
    """As str or as bytes, the server is asked for the same one."""
    path = "/drop.In/Method0"
    world.unary_unary(echo)
    return [
        await world.channel.unary_unary(path)(b"a"),
        await world.channel.unary_unary(path.encode())(b"b"),
    ]


@scenario()
async def a_method_nobody_answers_is_unimplemented(world: World):
    """Of each kind, with the server's own words."""
    channel = world.channel
    return [
        await raised(channel.unary_unary("/drop.In/None")(b"a")),
        await raised(channel.unary_stream("/drop.In/None")(b"a").read()),
        await raised(channel.stream_unary("/drop.In/None")()),
        await raised(channel.stream_stream("/drop.In/None")().read()),
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


@scenario()
async def four_mebibytes_are_received_by_default(world: World):
    """The default limit is grpcio's: one byte more is refused."""
    longest = 4 * 1024 * 1024

    async def handler(request, context):
        return b"a" * int(request)

    method = world.unary_unary(handler)
    return [
        len(await method(str(longest).encode())),
        await raised(method(str(longest + 1).encode())),
    ]


@scenario()
async def a_length_of_minus_one_is_no_limit(world: World):
    """The common way to lift the limit."""

    async def handler(request, context):
        return b"a" * int(request)

    channel = world.make_channel(options=[("grpc.max_receive_message_length", -1)])
    return len(await world.unary_unary(handler, channel)(b"5000000"))


@scenario()
async def a_user_agent_can_be_added(world: World):
    """grpc.primary_user_agent comes first in what the server sees."""

    async def handler(request, context):
        world.note(dict(context.invocation_metadata())["user-agent"])
        return request

    options = [("grpc.primary_user_agent", "mine/1"), ("grpc.secondary_user_agent", "other/2")]
    return await world.unary_unary(handler, world.make_channel(options=options))(b"a")


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
    seen = []
    for option in ((7, 8), ("grpc.keepalive_time_ms", None), ("grpc.keepalive_time_ms", [1])):
        try:
            world.make_channel(options=[option])
        except Exception as error:  # noqa: BLE001 - that is the question
            seen.append(type(error).__name__)
        else:
            seen.append("made")
    return seen


@scenario()
async def a_compression_of_a_wrong_kind_is_refused_where_the_channel_is_made(world: World):
    """ValueError; members of grpc.Compression are taken, NoCompression too."""
    seen = []
    for compression in ("gzip", grpc.Compression.NoCompression, grpc.Compression.Gzip):
        try:
            world.make_channel(compression=compression)
        except Exception as error:  # noqa: BLE001 - that is the question
            seen.append(type(error).__name__)
        else:
            seen.append("made")
    return seen


@scenario()
async def compression_of_a_channel_applies_to_its_calls(world: World):
    """The server sees each request compressed as the channel says, or as the call does."""

    async def handler(request, context):
        return request

    channel = world.make_channel(compression=grpc.Compression.Gzip)
    method = world.unary_unary(handler, channel)
    return [await method(b"a" * 1000), await method(b"a", compression=grpc.Compression.Deflate)]

"""Scenarios: one request, one answer, and what all four kinds of call have in common."""

from __future__ import annotations

import asyncio
import inspect

import grpc
import grpc.aio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.handlers import Held, Opening, at_once, echo
from tests.drop_in.observations import answer, begin, plain, raised, status
from tests.drop_in.world import World


@scenario()
async def a_unary_call_can_be_awaited_twice(world: World):
    """Both times the same answer, and one call on the server."""

    async def handler(request, context):
        world.note("called")
        return request

    call = world.unary_unary(handler)(b"a")
    return [await call, await call, await status(call)]


@scenario()
async def a_unary_call_starts_when_it_is_made(world: World):
    """The server hears of it although nobody awaits it."""
    arrived = asyncio.Event()

    async def handler(request, context):
        arrived.set()
        return request

    call = world.unary_unary(handler)(b"a")
    await arrived.wait()
    return await raised(call)


@scenario()
async def two_tasks_await_one_call(world: World):
    """Both get the same answer, from one call on the server."""
    go_on = asyncio.Event()

    async def handler(request, context):
        world.note("called")
        await go_on.wait()
        return request

    call = world.unary_unary(handler)(b"a")
    waits = [asyncio.create_task(answer(call)) for _ in range(2)]
    go_on.set()
    return await asyncio.gather(*waits)


@scenario()
async def calls_of_one_multicallable_are_independent(world: World):
    """Every call gets the answer to its own request, in whatever order the server answers."""
    turns = {b"0": asyncio.Event(), b"1": asyncio.Event(), b"2": asyncio.Event()}

    async def handler(request, context):
        await turns[request].wait()
        return request * 2

    method = world.unary_unary(handler)
    calls = [method(request) for request in turns]
    answers = []
    for request in reversed(turns):
        turns[request].set()
        answers.append(await calls[int(request)])
    return answers


@scenario()
async def a_call_works_with_asyncios_own_functions(world: World):
    """`gather`, `wait_for`, `shield` and `ensure_future` take a call as any other awaitable."""
    method = world.unary_unary(echo)
    return [
        await asyncio.gather(method(b"a"), method(b"b")),
        await asyncio.wait_for(method(b"c"), 5),
        await asyncio.shield(method(b"d")),
        await asyncio.ensure_future(method(b"e")),
    ]


@scenario()
async def a_call_is_no_coroutine(world: World):
    """`create_task` and `asyncio.wait` refuse one."""
    call = world.unary_unary(echo)(b"a")
    refused = []
    for use in (asyncio.create_task, asyncio.run_coroutine_threadsafe):
        try:
            use(call) if use is asyncio.create_task else use(call, asyncio.get_running_loop())
        except TypeError as error:
            refused.append(type(error))
    return refused, asyncio.iscoroutine(call), inspect.isawaitable(call), await call


@scenario()
async def a_handler_that_is_no_coroutine_answers(world: World):
    """The server may run a plain function in a thread; the client does not care."""
    return await status_and_answer(world.unary_unary(lambda request, context: request)(b"a"))


async def status_and_answer(call):
    return await call, await status(call)


@scenario()
async def options_other_than_the_request_are_given_by_name(world: World):
    """A unary call takes its timeout by keyword only, and no argument that it does not know."""
    method = world.unary_unary(echo)
    refused = []
    for arguments, options in [((b"a", 1.0), {}), ((), {}), ((b"a",), {"deadline": 1.0})]:
        try:
            method(*arguments, **options)
        except TypeError:
            refused.append((arguments, options))
    return refused


@scenario_of_each_kind()
async def a_multicallable_has_grpcios_signature(world: World, kind: str):
    """Names, order, defaults and kinds of its parameters."""
    method = world.method(kind, at_once)
    return [
        (each.name, each.kind, each.default)
        for each in inspect.signature(method.__call__).parameters.values()
    ]


@scenario_of_each_kind()
async def calls_and_multicallables_are_of_the_public_types(world: World, kind: str):
    """What `isinstance` says of every public type of grpc.aio."""
    method = world.method(kind, at_once)
    call = begin(kind, method)
    await answer(call)
    names = [
        f"{side}{side_}{what}"
        for side in ("Unary", "Stream")
        for side_ in ("Unary", "Stream")
        for what in ("Call", "MultiCallable")
    ]
    names += ["Call", "RpcContext", "Channel"]
    public = {name: getattr(grpc.aio, name) for name in names}
    return [
        (name, isinstance(call, type_), isinstance(method, type_), isinstance(world.channel, type_))
        for name, type_ in public.items()
    ] + [isinstance(call, type_) for type_ in (grpc.RpcError, grpc.Future, asyncio.Future)]


@scenario_of_each_kind()
async def a_call_that_succeeds_says_so(world: World, kind: str):
    """Its answer, code, details, metadata, and what `done` and `cancelled` are."""

    opening = Opening(kind, ("a", "1"))

    async def behave(context):
        await opening.send(context)
        context.set_trailing_metadata((("b", "2"),))
        context.set_details("all is well")

    call = await opening.of(world.start(kind, behave))
    return [await answer(call), await status(call), await call.debug_error_string()]


@scenario_of_each_kind()
async def a_running_call_is_not_done(world: World, kind: str):
    """Neither `done` nor `cancelled` before its end; no time remains where none was set."""
    held = Held()
    call = world.start(kind, held)
    before = [call.done(), call.cancelled(), call.time_remaining()]
    await held.started.wait()
    before += [call.done(), call.cancelled(), call.time_remaining()]
    held.go_on.set()
    return [before, await answer(call), call.done(), call.cancelled(), call.time_remaining()]


@scenario_of_each_kind()
async def code_and_details_wait_for_the_end(world: World, kind: str):
    """Asked while the call runs they answer when it is over, without anybody reading it."""
    go_on = asyncio.Event()

    async def behave(context):
        await go_on.wait()
        context.set_trailing_metadata((("k", "v"),))
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone")

    call = world.start(kind, behave)
    asked = [call.code(), call.details(), call.trailing_metadata(), call.initial_metadata()]
    answers = asyncio.gather(*asked)
    go_on.set()
    code, details, trailing, initial = await answers
    return [code, details, plain(trailing), plain(initial), call.done()]


@scenario_of_each_kind()
async def waiting_for_a_connection_leaves_the_call_alone(world: World, kind: str):
    """It returns None, before the end and after it, and the answer is still there to be had."""
    call = world.start(kind, at_once)
    return [
        await call.wait_for_connection(),
        await answer(call),
        await raised(call.wait_for_connection()),
    ]


@scenario_of_each_kind()
async def a_call_that_waits_for_ready_is_answered(world: World, kind: str):
    """`wait_for_ready` may be True, False or None."""
    method = world.method(kind, at_once)
    return [await answer(begin(kind, method, wait_for_ready=wait)) for wait in (True, False, None)]


@scenario_of_each_kind()
async def call_credentials_need_a_secure_channel(world: World, kind: str):
    """On an insecure one the call is refused where it is made, connected or not."""
    method = world.method(kind, at_once)
    try:
        begin(kind, method, credentials=grpc.access_token_call_credentials("token"))
    except grpc.aio.UsageError as error:
        return str(error)
    return "started"


@scenario_of_each_kind()
async def a_call_has_every_public_method_of_its_kind(world: World, kind: str):
    """And none of another kind: nothing to read on a unary answer, nothing to write on a request."""
    call = world.start(kind, at_once)
    await answer(call)
    names = [
        *("__await__", "__aiter__", "__anext__", "__aenter__", "read", "write", "done_writing"),
        *("initial_metadata", "trailing_metadata", "code", "details", "debug_error_string"),
        *("cancel", "cancelled", "done", "time_remaining", "add_done_callback"),
        "wait_for_connection",
    ]
    return [name for name in names if hasattr(call, name)]

"""Scenarios: client interceptors, what they see of a call and change of it on its way out."""

from __future__ import annotations

import asyncio
import contextvars

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.handlers import answering
from tests.drop_in.intercepting import camel, intercepted, passes, start
from tests.drop_in.observations import answer, outcome, plain, raised
from tests.drop_in.overdue import overdue
from tests.drop_in.streams import aiter_of
from tests.drop_in.world import World

# --- What they see ------------------------------------------------------------------------


@scenario_of_each_kind()
async def a_call_passes_through_an_interceptor(world: World, kind: str):
    """One that only continues changes nothing."""
    return await outcome(start(world, kind, passes))


@scenario_of_each_kind()
async def an_interceptor_sees_what_a_call_was_made_with(world: World, kind: str):
    """The request as the user's object, and all keywords."""

    async def look(continuation, details, request):
        world.note(request if kind.startswith("unary") else hasattr(request, "__aiter__"))
        world.note((details.method, details.credentials, details.wait_for_ready))
        world.note((plain(details.metadata), type(details.metadata).__name__))
        world.note((isinstance(details, grpc.ClientCallDetails), 50 < details.timeout <= 60))
        return await continuation(details, request)

    method = intercepted(world, kind, look)
    request = "a" if kind.startswith("unary") else aiter_of("a", "b")
    call = method(request, timeout=60, metadata=(("k", "v"),), wait_for_ready=True)
    return await answer(call)


@scenario_of_each_kind()
async def an_interceptor_sees_a_call_without_keywords(world: World, kind: str):
    """What it was not given is None, and metadata empty."""

    async def look(continuation, details, request):
        world.note((details.timeout, plain(details.metadata), details.credentials))
        world.note((details.wait_for_ready, details._fields))
        return await continuation(details, request)

    return await answer(start(world, kind, look))


@scenario(
    differs=Difference(
        "Interceptors get a stream of requests as an async iterator", "list", "async"
    )
)
async def an_interceptor_sees_a_list_of_requests(world: World):
    """What kind of object a stream of requests is for an interceptor."""
    seen = []

    async def look(continuation, details, requests):
        seen.append("async" if hasattr(requests, "__aiter__") else type(requests).__name__)
        return await continuation(details, requests)

    await intercepted(world, "stream_unary", look)(["a", "b"])
    return seen[0]


@scenario_of_each_kind()
async def an_interceptor_sees_the_caller_s_context(world: World, kind: str):
    """Context variables of the caller are there, and its own changes stay inside."""
    variable = contextvars.ContextVar("variable", default="unset")

    async def look(continuation, details, request):
        world.note(variable.get())
        variable.set("changed inside")
        return await continuation(details, request)

    variable.set("the caller's")
    return [await answer(start(world, kind, look)), variable.get()]


@scenario_of_each_kind()
async def an_intercepted_call_is_grpc_aio_s(world: World, kind: str):
    """What continuation returns, and what the caller gets, both pass a type check."""
    public = getattr(grpc.aio, f"{camel(kind)}Call")

    async def look(continuation, details, request):
        call = await continuation(details, request)
        world.note(isinstance(call, public))
        return call

    call = start(world, kind, look)
    return [isinstance(call, public), await answer(call)]


@scenario_of_each_kind()
async def done_callbacks_of_an_intercepted_call(world: World, kind: str):
    """Called once with the very call the user holds; at once when it is over."""
    done = asyncio.Event()

    def on_done(over):
        world.note((over is call, over.done()))
        done.set()

    call = start(world, kind, passes)
    call.add_done_callback(on_done)
    received = await answer(call)
    async with asyncio.timeout(10):
        await done.wait()
    call.add_done_callback(lambda over: world.note(("late", over is call)))
    return received


@scenario()
async def waiting_for_the_connection_of_an_intercepted_call(world: World):
    """Returns once the call is on its way."""
    call = start(world, "unary_unary", passes)
    return [await call.wait_for_connection(), await call]


# --- What they change ---------------------------------------------------------------------


def seeing_metadata(world, kind):
    """Make a handler that notes the metadata of its calls."""

    async def behave(context):
        world.note(plain(context.invocation_metadata()))

    return answering(kind, behave)


@scenario_of_each_kind()
async def an_interceptor_adds_metadata_to_a_call(world: World, kind: str):
    """The server sees the caller's own and what was added, in order."""

    async def add(continuation, details, request):
        metadata = grpc.aio.Metadata(*details.metadata, ("added", "x"), ("raw-bin", b"\0"))
        return await continuation(details._replace(metadata=metadata), request)

    handler = seeing_metadata(world, kind)
    return await answer(start(world, kind, add, handler=handler, metadata=(("k", "v"),)))


@scenario_of_each_kind()
async def an_interceptor_adds_metadata_in_place(world: World, kind: str):
    """Metadata is grpc.aio.Metadata with all its methods."""

    async def add(continuation, details, request):
        details.metadata.add("added", "x")
        return await continuation(details, request)

    handler, mine = seeing_metadata(world, kind), grpc.aio.Metadata(("k", "v"))
    return await answer(start(world, kind, add, handler=handler, metadata=mine))


@scenario()
async def an_interceptor_drops_metadata(world: World):
    """The call goes out without the caller's."""

    async def drop(continuation, details, request):
        return await continuation(details._replace(metadata=grpc.aio.Metadata()), request)

    handler = seeing_metadata(world, "unary_unary")
    return await start(world, "unary_unary", drop, handler=handler, metadata=(("k", "v"),))


@scenario()
async def an_interceptor_passes_on_details_of_its_own(world: World):
    """grpc.aio.ClientCallDetails made anew, with metadata as a plain tuple."""

    async def anew(continuation, details, request):
        metadata = (("mine", "x"),)
        new = grpc.aio.ClientCallDetails(details.method, 30.0, metadata, details.credentials, None)
        return await continuation(new, request)

    handler = seeing_metadata(world, "unary_unary")
    return await raised(start(world, "unary_unary", anew, handler=handler))


@scenario_of_each_kind()
async def an_interceptor_shortens_the_timeout_of_a_call(world: World, kind: str):
    """It ends with DEADLINE_EXCEEDED by the interceptor's timeout."""

    def shortened(held, timeout):
        async def shorten(continuation, details, request):
            return await continuation(details._replace(timeout=timeout), request)

        return start(world, kind, shorten, handler=answering(kind, held), timeout=60)

    call, _ = await overdue(shortened)
    return await outcome(call)


@scenario_of_each_kind()
async def an_interceptor_sends_a_call_to_another_method(world: World, kind: str):
    """The server is asked for the method the interceptor names."""

    async def behave(context):
        world.note("the other one")

    world.method(kind, behave)  # is Method0

    async def redirect(continuation, details, request):
        return await continuation(details._replace(method=b"/drop.In/Method0"), request)

    return await answer(start(world, kind, redirect))


@scenario_of_each_kind()
async def an_interceptor_changes_the_request_of_a_call(world: World, kind: str):
    """The server sees the changed one."""

    async def change(continuation, details, request):
        changed = "changed" if kind.startswith("unary") else iter(["changed"])
        return await continuation(details, changed)

    return await answer(start(world, kind, change))


async def upper(continuation, details, requests):
    """Put an iterator of its own in between."""

    async def each():
        async for request in requests:
            yield request.upper()

    return await continuation(details, each())


@scenario_of_each_kind("stream_unary", "stream_stream")
async def an_interceptor_changes_requests_of_an_iterator(world: World, kind: str):
    """It puts its own iterator in between."""
    return await answer(intercepted(world, kind, upper)(aiter_of("a", "b")))


@scenario_of_each_kind("stream_unary", "stream_stream")
async def an_interceptor_changes_written_requests(world: World, kind: str):
    """The same where the caller has no iterator."""
    call = intercepted(world, kind, upper)()
    await call.write("a")
    await call.write("b")
    await call.done_writing()
    return await answer(call)


@scenario_of_each_kind("stream_unary", "stream_stream")
async def requests_are_written_through_an_interceptor(world: World, kind: str):
    """A stream of requests without an iterator: the interceptor gets one anyway."""

    async def look(continuation, details, requests):
        world.note(hasattr(requests, "__aiter__"))
        return await continuation(details, requests)

    call = intercepted(world, kind, look)()
    await call.write("a")
    await call.write("b")
    await call.done_writing()
    return [await answer(call), await call.code()]


@scenario()
async def requests_are_written_and_answers_read_through_an_interceptor(world: World):
    """One after the other, both ways."""
    call = intercepted(world, "stream_stream", passes)()
    seen = []
    for request in ("a", "b"):
        await call.write(request)
        seen.append(await call.read())
    await call.done_writing()
    return [*seen, await call.read() is grpc.aio.EOF, await call.code()]


@scenario_of_each_kind("stream_unary", "stream_stream")
async def writing_with_an_iterator_through_an_interceptor_is_refused(world: World, kind: str):
    """The styles do not mix here either."""
    call = intercepted(world, kind, passes)(["a"])
    return [await raised(call.write("b")), await raised(call.done_writing()), await answer(call)]

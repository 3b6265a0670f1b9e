"""Scenarios: server interceptors, on a bare server and on a meshrpc.Service."""

from __future__ import annotations

import contextvars

import grpc
import grpc.aio

from tests.drop_in.battery import Difference, scenario, scenario_of_each_kind
from tests.drop_in.handlers import KINDS, Held, aborting, answering, at_once, echo, echo_twice
from tests.drop_in.observations import answer, outcome, plain, raised
from tests.drop_in.overdue import overdue
from tests.drop_in.world import World


def interceptor(intercept):
    """Make an interceptor of a function `(continuation, details)`."""

    class Made(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, handler_call_details):
            return await intercept(continuation, handler_call_details)

    return Made()


def serve(world, *intercepts, **handlers):
    """Serve with interceptors made of functions."""
    return world.serve(interceptors=[interceptor(each) for each in intercepts], **handlers)


async def intercepted(world, kind, *intercepts, behave=at_once, **options):
    """Start a call of a kind to a server with such interceptors."""
    server = await serve(world, *intercepts, **{kind: answering(kind, behave)})
    return server.start(kind, **options)


def handler_of(kind, behavior):
    """Return what grpcio makes of a handler."""
    return getattr(grpc, f"{kind}_rpc_method_handler")(behavior)


class Waits:
    """Waits before it continues until it may go on, or is cancelled."""

    def __init__(self):
        self.inside = Held()

    async def __call__(self, continuation, details):
        await self.inside(None)
        return await continuation(details)


# --- What they see ------------------------------------------------------------------------


@scenario_of_each_kind()
async def an_interceptor_of_the_server_sees_a_call(world: World, kind: str):
    """Its method and metadata, and the handler with its arity."""

    async def look(continuation, details):
        world.note((details.method, plain(details.invocation_metadata)))
        handler = await continuation(details)
        world.note((handler.request_streaming, handler.response_streaming))
        world.note([callable(getattr(handler, each)) for each in KINDS])
        return handler

    return await outcome(await intercepted(world, kind, look, metadata=(("k", "v"),)))


@scenario_of_each_kind()
async def interceptors_of_the_server_run_in_the_order_given(world: World, kind: str):
    """All of them before the handler, the first one outermost."""

    def named(name):
        async def note(continuation, details):
            world.note(f"{name} before")
            handler = await continuation(details)
            world.note(f"{name} after")
            return handler

        return note

    async def behave(context):
        world.note("handler")

    names = ("one", "two", "three")
    return await answer(await intercepted(world, kind, *map(named, names), behave=behave))


@scenario_of_each_kind()
async def context_variables_of_interceptors_are_seen_by_a_handler(world: World, kind: str):
    """Outer to inner to handler, and each call begins anew."""
    variable = contextvars.ContextVar("variable", default="unset")

    def named(name):
        async def note(continuation, details):
            world.note(variable.get())
            variable.set(name)
            return await continuation(details)

        return note

    async def behave(context):
        world.note(variable.get())
        variable.set("handler")

    handler = answering(kind, behave)
    server = await serve(world, named("outer"), named("inner"), **{kind: handler})
    return [await answer(server.start(kind)) for _ in range(2)]


@scenario()
async def an_interceptor_of_the_server_counts_concurrent_calls(world: World):
    """State of its own is shared by all calls."""
    counted = []

    async def count(continuation, details):
        counted.append(details.method)
        return await continuation(details)

    server = await serve(world, count, unary_unary=echo)
    calls = [server.unary_unary(b"%d" % number) for number in range(20)]
    return [[await call for call in calls], len(counted)]


@scenario()
async def an_interceptor_of_the_server_makes_calls(world: World):
    """To the very server it belongs to, under another method."""
    server = None

    async def ask(continuation, details):
        if details.method.endswith("unary_unary"):
            world.note(await answer(server.unary_stream(b"asked")))
        return await continuation(details)

    server = await serve(world, ask, unary_unary=echo, unary_stream=echo_twice)
    return await server.unary_unary(b"a")


@scenario()
async def what_is_no_interceptor_is_refused_where_the_server_is_made(world: World):
    """ValueError, as grpcio raises."""
    return [
        (await raised(world.serve(interceptors=[wrong], unary_unary=echo)))[0]
        for wrong in (object(), None, grpc.aio.UnaryUnaryClientInterceptor)
    ]


# --- What they wait for -------------------------------------------------------------------


@scenario()
async def an_interceptor_of_the_server_waits_before_it_continues(world: World):
    """Anything awaited there holds the call, and no other."""
    waits = Waits()

    async def wait(continuation, details):
        if dict(details.invocation_metadata).get("wait"):
            return await waits(continuation, details)
        return await continuation(details)

    server = await serve(world, wait, unary_unary=echo)
    held = server.unary_unary(b"held", metadata=(("wait", "1"),))
    other = await server.unary_unary(b"other")
    world.note(held.done())
    waits.inside.go_on.set()
    return [other, await held]


@scenario()
async def an_interceptor_of_the_server_is_cancelled_with_the_call(world: World):
    """One that waits sees CancelledError when the caller goes."""
    waits = Waits()
    call = await intercepted(world, "unary_unary", waits)
    await waits.inside.started.wait()
    call.cancel()
    await waits.inside.cancelled.wait()
    return await raised(call)


@scenario()
async def an_interceptor_of_the_server_at_the_deadline(world: World):
    """One that waits too long is cancelled as a handler is."""
    waits = Waits()
    server = await serve(world, waits, unary_unary=echo)

    def start(held, timeout):
        waits.inside = held
        return server.start("unary_unary", timeout=timeout)

    call, held = await overdue(start)
    seen = await raised(call)
    await held.cancelled.wait()
    return seen


# --- What they refuse ---------------------------------------------------------------------


def unsent(kind):
    """Return the request of a call that is refused unread: grpcio stumbles over one in transit."""
    return b"a" if kind.startswith("unary") else None


async def ended_by(world, kind, intercept):
    """Return how a call ends that never reaches its handler."""

    async def behave(context):
        world.note("called")

    server = await serve(world, intercept, **{kind: answering(kind, behave, at_start=True)})
    return await outcome(getattr(server, kind)(unsent(kind)))


@scenario_of_each_kind()
async def an_interceptor_of_the_server_refuses_a_call(world: World, kind: str):
    """It answers with a handler that aborts; the real one does not run."""
    behave = aborting(grpc.StatusCode.PERMISSION_DENIED, "no", (("t", "1"),))

    async def refuse(continuation, details):
        return handler_of(kind, answering(kind, behave, at_start=True))

    return await ended_by(world, kind, refuse)


@scenario_of_each_kind()
async def an_interceptor_of_the_server_hides_a_method(world: World, kind: str):
    """Without a handler the method is unimplemented."""

    async def hide(continuation, details):
        return None

    return await ended_by(world, kind, hide)


@scenario_of_each_kind(
    differs=Difference(
        "What a handler raises stays in its process",
        grpcio=(grpc.StatusCode.UNKNOWN, True),
        meshrpc=(grpc.StatusCode.INTERNAL, False),
    )
)
async def an_interceptor_of_the_server_raises_before_a_call(world: World, kind: str):
    """What its caller learns of it."""

    async def fail(continuation, details):
        raise LookupError("secret")

    seen, _ = await ended_by(world, kind, fail)
    return seen[1], "secret" in seen[2]


@scenario()
async def interceptors_of_the_server_refuse_early(world: World):
    """What comes after one that does not continue is not asked."""

    def named(name):
        async def note(continuation, details):
            world.note(name)
            return await continuation(details)

        return note

    async def refuse(continuation, details):
        who = aborting(grpc.StatusCode.UNAUTHENTICATED, "who are you")
        return handler_of("unary_unary", answering("unary_unary", who))

    intercepts = (named("first"), refuse, named("last"))
    return await raised(await intercepted(world, "unary_unary", *intercepts))

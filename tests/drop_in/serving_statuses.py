"""Scenarios: statuses that handlers give, on a bare grpc.aio.server and on a meshrpc.Service."""

from __future__ import annotations

import grpc
import grpc.aio

from tests.drop_in.battery import scenario, scenario_of_each_kind
from tests.drop_in.handlers import Opening, aborting
from tests.drop_in.observations import outcome, plain, raised
from tests.drop_in.world import World

NOT_FOUND = grpc.StatusCode.NOT_FOUND


# --- abort --------------------------------------------------------------------------------


@scenario_of_each_kind()
async def a_served_handler_aborts(world: World, kind: str):
    """Code, details and both metadata arrive; abort raises AbortError."""

    opening = Opening(kind, ("i", "1"))

    async def behave(context):
        await opening.send(context)
        try:
            await context.abort(NOT_FOUND, "none", (("t", "2"),))
        except BaseException as error:
            world.note(type(error).__name__)
            raise
        finally:
            world.note((context.code(), context.details(), plain(context.trailing_metadata())))

    return await outcome(await opening.of(await world.served(behave, kind)))


@scenario()
async def a_handler_aborts_twice(world: World):
    """The second abort is an error of use, and the first one stands."""

    async def behave(context):
        try:
            await context.abort(NOT_FOUND, "first")
        except grpc.aio.AbortError:
            world.note(await raised(context.abort(grpc.StatusCode.INTERNAL, "second")))
            raise

    return await outcome(await world.served(behave))


@scenario()
async def abort_needs_no_details(world: World):
    """Details and trailing metadata may be left out."""

    async def behave(context):
        await context.abort(NOT_FOUND)

    return await outcome(await world.served(behave))


@scenario()
async def abort_takes_its_arguments_by_name(world: World):
    """As grpcio calls them."""

    async def behave(context):
        await context.abort(code=NOT_FOUND, details="none", trailing_metadata=(("t", "1"),))

    return await outcome(await world.served(behave))


@scenario()
async def abort_keeps_trailing_metadata_set_before(world: World):
    """Unless it has its own."""

    async def handler(request, context):
        context.set_trailing_metadata((("set", "before"),))
        if request == b"own":
            await context.abort(NOT_FOUND, "none", (("t", "own"),))
        await context.abort(NOT_FOUND, "none")

    server = await world.serve(unary_unary=handler)
    return [await outcome(server.unary_unary(b"own")), await outcome(server.unary_unary(b""))]


@scenario()
async def abort_with_any_status_code(world: World):
    """Every code but OK."""

    async def handler(request, context):
        await context.abort(grpc.StatusCode[request.decode()], "so")

    server = await world.serve(unary_unary=handler)
    codes = [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
    return [(await raised(server.unary_unary(code.encode())))[:3] for code in codes]


@scenario()
async def abort_with_a_status(world: World):
    """context.abort_with_status, where grpcio has it."""

    class Status(grpc.Status):
        code = NOT_FOUND
        details = "none"
        trailing_metadata = (("t", "1"),)

    async def behave(context):
        await context.abort_with_status(Status())

    return await raised(await world.served(behave))


@scenario()
async def details_may_be_any_text(world: World):
    """Beyond ASCII, and more than one line."""
    return await outcome(await world.served(aborting(NOT_FOUND, "größer\nals 5 % ☃")))


@scenario()
async def a_handler_catches_what_abort_raises(world: World):
    """The status is sent nevertheless."""

    async def behave(context):
        try:
            await context.abort(NOT_FOUND, "none")
        except Exception:  # noqa: BLE001 - as handlers do
            world.note("caught")

    return await outcome(await world.served(behave, timeout=5))


@scenario()
async def a_handler_turns_what_abort_raises_into_something_else(world: World):
    """The status is sent nevertheless."""

    async def behave(context):
        try:
            await context.abort(NOT_FOUND, "none")
        except Exception as error:
            raise LookupError("mine") from error

    return await outcome(await world.served(behave, timeout=5))


@scenario(since=(1, 83))
async def a_synchronous_handler_aborts(world: World):
    """Nothing after abort is done."""

    def handler(request, context):
        context.abort(NOT_FOUND, "none")
        world.note("went on")

    return await outcome((await world.serve(unary_unary=handler)).unary_unary(b"a"))


# --- set_code -----------------------------------------------------------------------------


@scenario_of_each_kind()
async def a_served_handler_sets_its_status(world: World, kind: str):
    """What it set is the call's status, whatever it returns."""

    async def behave(context):
        context.set_code(grpc.StatusCode.ALREADY_EXISTS)
        context.set_details("there")
        context.set_trailing_metadata((("t", "2"), ("raw-bin", b"\0\1")))
        world.note((context.code(), context.details(), plain(context.trailing_metadata())))

    return await outcome(await world.served(behave, kind))


@scenario()
async def set_code_takes_a_number(world: World):
    """grpcio sends codes that its enum does not know, too."""

    async def handler(request, context):
        context.set_code(int(request))
        context.set_details("so")
        return b""

    server = await world.serve(unary_unary=handler)
    return [(await raised(server.unary_unary(number)))[:3] for number in (b"5", b"77")]


@scenario()
async def a_code_of_ok_is_ok(world: World):
    """set_code(OK) is what happens anyway; details go along."""

    async def behave(context):
        context.set_code(grpc.StatusCode.OK)
        context.set_details("fine")

    return await outcome(await world.served(behave))


@scenario()
async def a_context_before_anything_is_set(world: World):
    """No code, no details, no trailing metadata."""

    async def behave(context):
        world.note((context.code(), context.details(), plain(context.trailing_metadata())))
        world.note((context.cancelled(), context.done()))

    return await (await world.served(behave))


@scenario()
async def a_method_that_is_not_implemented(world: World):
    """As generated base classes do it."""

    async def behave(context):
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        context.set_details("Method not implemented!")
        raise NotImplementedError("Method not implemented!")

    seen = await raised(await world.served(behave))
    return [seen[1], "Method not implemented!" in seen[2]]

"""What callers learn of a handler that fails, and how it says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

import meshrpc
from meshrpc.interceptors.compose import ServerInterceptor
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.server import rich_status
from meshrpc.testing import LocalMesh
from services.payment.v1 import payment_pb2, payment_pb2_grpc

NOT_FOUND = grpc.StatusCode.NOT_FOUND
INVALID = grpc.StatusCode.INVALID_ARGUMENT
INTERNAL = grpc.StatusCode.INTERNAL
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
DETAILS = "grpc-status-details-bin"

REASON = error_details_pb2.ErrorInfo(reason="NO_SUCH_ORDER", domain="payment")


class Unpaid(Exception):
    """An exception of somebody's own."""


class OverdueToo(Unpaid):
    """A kind of it."""


class Speechless(Unpaid):
    """One whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("secret")


def no_such_order() -> meshrpc.RpcError:
    return meshrpc.RpcError(
        NOT_FOUND, "no such order: ünö", details=[REASON], metadata=[("order", "o1")]
    )


async def as_async(_request: Any, _context: Any) -> Any:
    raise no_such_order()


def as_def(_request: Any, _context: Any) -> Any:
    raise no_such_order()


async def as_async_generator(_request: Any, _context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    raise no_such_order()


def as_def_generator(_request: Any, _context: Any) -> Iterator[bytes]:
    yield b"first"
    raise no_such_order()


async def as_writer(_request: Any, context: Any) -> None:
    await context.write(b"first")
    raise no_such_order()


async def as_reader(requests: Any, _context: Any) -> bytes:
    async for _ in requests:
        raise no_such_order()
    return b""


async def in_a_task_group(_request: Any, _context: Any) -> Any:
    async def fail() -> None:
        raise no_such_order()

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())


async def over_a_code_that_was_set(_request: Any, context: Any) -> Any:
    context.set_code(grpc.StatusCode.ABORTED)
    raise no_such_order()


WAYS = {
    "async": grpc.unary_unary_rpc_method_handler(as_async),
    "def": grpc.unary_unary_rpc_method_handler(as_def),
    "async generator": grpc.unary_stream_rpc_method_handler(as_async_generator),
    "def generator": grpc.unary_stream_rpc_method_handler(as_def_generator),
    "context.write": grpc.unary_stream_rpc_method_handler(as_writer),
    "request stream": grpc.stream_unary_rpc_method_handler(as_reader),
    "task group": grpc.unary_unary_rpc_method_handler(in_a_task_group),
    "over set_code": grpc.unary_unary_rpc_method_handler(over_a_code_that_was_set),
}


@asynccontextmanager
async def serving(
    handler: grpc.RpcMethodHandler[Any, Any], clock: Any, errors: Any = None, *, over: bool = True
) -> AsyncIterator[Callable[..., Any]]:
    """Serve one handler; what calls it through the mesh, or from outside of it."""
    registry = MemoryRegistry()
    service = meshrpc.Service(
        "payment", registry=registry, control="none", clock=clock, errors=errors
    )
    handlers = {"it": handler}
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    async with service, meshrpc.Mesh("shell", registry=registry, control="none") as mesh:
        outside = grpc.aio.insecure_channel(service.address)
        channel = mesh.channel("payment") if over else outside
        arity = "stream" if handler.request_streaming else "unary"
        answers = "stream" if handler.response_streaming else "unary"
        callable_ = getattr(channel, f"{arity}_{answers}")("/t.T/it")

        async def messages() -> AsyncIterator[bytes]:
            yield b""

        yield lambda **options: callable_(messages() if arity == "stream" else b"", **options)
        await outside.close()


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    async with asyncio.timeout(10):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            if hasattr(call, "__aiter__"):
                async for _ in call:
                    pass
            else:
                await call
    return failed.value


@pytest.mark.parametrize("over", [True, False], ids=["mesh", "grpcio"])
@pytest.mark.parametrize("way", WAYS)
async def test_an_rpc_error_is_the_answer(hasty_clock, way: str, over: bool, caplog):
    """Code, text, details and metadata, from every kind of handler; and the log has no error."""
    caplog.set_level(logging.WARNING, "meshrpc.server")
    async with serving(WAYS[way], hasty_clock, over=over) as call:
        error = await failure_of(call())
    assert error.code() is NOT_FOUND
    assert error.details() == "no such order: ünö"
    trailers = dict(error.trailing_metadata())
    assert trailers["order"] == "o1"
    status = status_pb2.Status.FromString(trailers[DETAILS])
    assert (status.code, status.message) == (NOT_FOUND.value[0], error.details())
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info == REASON
    assert not caplog.records


async def test_grpcios_own_reader_of_details_reads_them(hasty_clock):
    """`rpc_status.from_call` of the error, and `rpc_status.aio.from_call` of the mesh's call."""
    async with serving(WAYS["async"], hasty_clock) as call:
        made = call()
        error = await failure_of(made)
        of_the_call = await rpc_status.aio.from_call(made)
    of_the_error = rpc_status.from_call(error)
    assert of_the_call == of_the_error
    assert of_the_error.details[0].Is(error_details_pb2.ErrorInfo.DESCRIPTOR)


async def test_details_that_no_caller_would_take_are_left_out(hasty_clock, caplog):
    """The status arrives without them, and the log says how large they were."""

    async def verbose(_request: Any, _context: Any) -> Any:
        raise meshrpc.RpcError(NOT_FOUND, "gone", details=[StringValue(value="x" * 7000)])

    async with serving(
        grpc.unary_unary_rpc_method_handler(verbose), hasty_clock, over=False
    ) as call:
        error = await failure_of(call())
    assert (error.code(), error.details()) == (NOT_FOUND, "gone")
    assert DETAILS not in dict(error.trailing_metadata())
    assert f"callers take {rich_status.MOST_BYTES}" in caplog.text


@pytest.mark.parametrize("text", ["half \ud800", "tab\tand\nline", "x" * 3000], ids=repr)
async def test_any_text_keeps_its_details_readable(hasty_clock, text: str):
    """Readers refuse details whose text is not that of the status: it is the same in both."""

    async def handle(_request: Any, _context: Any) -> Any:
        raise meshrpc.RpcError(NOT_FOUND, text, details=[REASON])

    async with serving(grpc.unary_unary_rpc_method_handler(handle), hasty_clock) as call:
        error = await failure_of(call())
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS])
    assert status.message == error.details()
    assert error.code() is NOT_FOUND


@pytest.mark.parametrize("text", ["x" * 20_000, "\u20ac" * 2_000], ids=["ascii", "percent-encoded"])
@pytest.mark.parametrize("over", [True, False], ids=["mesh", "grpcio"])
async def test_a_text_that_no_caller_would_take_is_cut(hasty_clock, text: str, over: bool):
    """The exception of a validator may have a long one: the status arrives all the same."""

    async def verbose(_request: Any, _context: Any) -> Any:
        raise Unpaid(text)

    handler = grpc.unary_unary_rpc_method_handler(verbose)
    async with serving(handler, hasty_clock, {Unpaid: INVALID}, over=over) as call:
        error = await failure_of(call(wait_for_ready=True))
    assert error.code() is INVALID
    assert error.details().endswith("...")
    assert text.startswith(error.details()[:-3])


async def test_details_beside_a_long_text_are_left_out(hasty_clock):
    """Either would fit alone: the text, which is in both, counts twice."""

    async def verbose(_request: Any, _context: Any) -> Any:
        raise meshrpc.RpcError(NOT_FOUND, "x" * 4000, details=[REASON])

    handler = grpc.unary_unary_rpc_method_handler(verbose)
    async with serving(handler, hasty_clock, over=False) as call:
        error = await failure_of(call(wait_for_ready=True))
    assert (error.code(), len(error.details())) == (NOT_FOUND, 4000)
    assert DETAILS not in dict(error.trailing_metadata())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"code": grpc.StatusCode.OK}, "OK is none"),
        ({"code": 5}, "a status code is a grpc.StatusCode, not 5"),
        ({"code": NOT_FOUND, "details": ["text"]}, "details are protobuf messages"),
        ({"code": NOT_FOUND, "metadata": [("Order", "1")]}, "lower-case"),
    ],
)
def test_an_rpc_error_that_cannot_be_sent_is_refused_where_it_is_made(arguments, complaint):
    """With one sentence, before any call depends on it."""
    with pytest.raises((TypeError, ValueError), match=complaint):
        meshrpc.RpcError(**arguments)


MAPPED = {
    ValueError: INVALID,
    KeyError: NOT_FOUND,
    Unpaid: grpc.StatusCode.FAILED_PRECONDITION,
    OverdueToo: grpc.StatusCode.PERMISSION_DENIED,
    TimeoutError: grpc.StatusCode.UNAVAILABLE,
}


@pytest.mark.parametrize(
    ("raised", "code", "details"),
    [
        (ValueError("amount below 0"), INVALID, "amount below 0"),
        (KeyError("o1"), NOT_FOUND, "'o1'"),
        (Unpaid("pay first"), grpc.StatusCode.FAILED_PRECONDITION, "pay first"),
        (OverdueToo("too late"), grpc.StatusCode.PERMISSION_DENIED, "too late"),
        (UnicodeError("a kind of ValueError"), INVALID, "a kind of ValueError"),
        (ExceptionGroup("", [ExceptionGroup("", [Unpaid("1")])]), MAPPED[Unpaid], "1"),
        (TimeoutError("database"), grpc.StatusCode.UNAVAILABLE, "database"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("plain", [False, True], ids=["async", "def"])
async def test_mapped_exceptions_are_the_answer(
    hasty_clock, raised, code, details: str, plain: bool, caplog
):
    """The nearest class decides; the text is sent, because mapping it says that it may be."""
    caplog.set_level(logging.WARNING, "meshrpc.server")

    async def handle(_request: Any, _context: Any) -> Any:
        raise raised

    def handle_plainly(_request: Any, _context: Any) -> Any:
        raise raised

    handler = grpc.unary_unary_rpc_method_handler(handle_plainly if plain else handle)
    async with serving(handler, hasty_clock, MAPPED) as call:
        error = await failure_of(call(wait_for_ready=True))
    assert (error.code(), error.details()) == (code, details)
    assert not caplog.records


@pytest.mark.parametrize(
    "raised",
    [
        LookupError("above KeyError"),
        ExceptionGroup("", [ValueError("1"), ValueError("2")]),
        NotImplementedError("secret"),
        Speechless(),
    ],
    ids=repr,
)
async def test_all_others_stay_a_number(hasty_clock, raised: Exception, caplog):
    """No class above a mapped one, and no group of several: nothing of them leaves the process."""

    async def handle(_request: Any, _context: Any) -> Any:
        raise raised

    async with serving(grpc.unary_unary_rpc_method_handler(handle), hasty_clock, MAPPED) as call:
        error = await failure_of(call())
    assert error.code() is INTERNAL
    prefix, number = error.details().rsplit(" ", 1)
    assert prefix == "internal error"
    assert number in caplog.text


async def test_a_code_that_was_set_wins_over_the_mapping(hasty_clock):
    """As it does over everything but an RpcError: the handler was more exact than the service."""

    async def handle(_request: Any, context: Any) -> Any:
        context.set_code(grpc.StatusCode.ABORTED)
        context.set_details("by hand")
        raise ValueError("mapped")

    async with serving(grpc.unary_unary_rpc_method_handler(handle), hasty_clock, MAPPED) as call:
        error = await failure_of(call())
    assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "by hand")


@pytest.mark.parametrize(
    ("errors", "complaint"),
    [
        ({ValueError: grpc.StatusCode.OK}, "ValueError to OK"),
        ({ValueError: 3}, "not 3"),
        ({"ValueError": INVALID}, "'ValueError' is none"),
        ({asyncio.CancelledError: INVALID}, "is none"),
    ],
)
def test_a_mapping_that_means_nothing_is_refused(errors, complaint: str):
    """Where the service is made, in one sentence."""
    with pytest.raises((TypeError, ValueError), match=complaint):
        meshrpc.Service("payment", registry="memory:", control="none", errors=errors)


@pytest.mark.parametrize("nested", [False, True], ids=["TimeoutError", "nested call"])
@pytest.mark.parametrize("passed", [True, False])
async def test_a_deadline_that_has_passed_is_told_as_such(nested: bool, passed: bool):
    """Also by way of a nested call. A wait that was given less time is a fault of the handler."""
    seen: list[grpc.StatusCode] = []

    class Watch(ServerInterceptor):
        def end(self, call: Any, code: grpc.StatusCode) -> None:
            seen.append(code)

    async with LocalMesh() as mesh:
        clock = mesh.clock
        payment = await mesh.script(
            "payment", payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]
        )
        payment.answer("Charge", lambda _request: clock.sleep(60))
        stub = payment_pb2_grpc.PaymentServiceStub(mesh.channel("payment"))

        async def handle(_request: bytes, _context: Any) -> bytes:
            # The client's end of the call, and grpc's own timer, have nothing to do with it here.
            call = meshrpc.current_call()
            assert call is not None
            call.deadline = clock.now() + (5 if passed else 50)
            if nested:
                await stub.Charge(payment_pb2.ChargeRequest(), timeout=5)
            else:
                async with clock.timeout(5):
                    await clock.sleep(60)
            return b""

        service = meshrpc.Service("order", interceptors=[Watch()])
        handlers = {"it": grpc.unary_unary_rpc_method_handler(handle)}
        service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
        await mesh.serve(service)
        error = await failure_of(clock.run(mesh.channel("order").unary_unary("/t.T/it")(b"")))
    assert error.code() is (DEADLINE_EXCEEDED if passed else INTERNAL)
    assert seen == [error.code()]
    if passed:
        assert error.details() == "the deadline has passed"

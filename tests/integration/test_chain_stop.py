"""What a service answers when it fails because a call that it made has failed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

import meshrpc
from meshrpc.interceptors.arrival import TargetInterceptor
from meshrpc.interceptors.sync_handler import SyncHandlers
from meshrpc.server.handler import HandlerTable
from meshrpc.wire import RETRY_PUSHBACK

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
OK = grpc.StatusCode.OK

NESTED_FAILED = (("nested", "failed"),)
STOP = (RETRY_PUSHBACK, "-1")
OWN_PUSHBACK = (RETRY_PUSHBACK, "50")
OWN = ("own", "1")

unary = grpc.unary_unary_rpc_method_handler
server_stream = grpc.unary_stream_rpc_method_handler
client_stream = grpc.stream_unary_rpc_method_handler
both_streams = grpc.stream_stream_rpc_method_handler


def call_another() -> None:
    """Make the nested call of a handler, as far as its server knows: it fails if so told."""
    call = meshrpc.current_call()
    assert call is not None
    call.dependency_failed = ("nested", "failed") in call.metadata


# --- Ways to fail -------------------------------------------------------------------------


async def raises(request: Any, context: Any) -> bytes:
    call_another()
    raise ValueError("secret")


async def passes_the_error_on(request: Any, context: Any) -> bytes:
    call_another()
    raise grpc.aio.AioRpcError(UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "down")


async def aborts(request: Any, context: Any) -> bytes:
    call_another()
    await context.abort(UNAVAILABLE, "down")


async def aborts_with_trailers(request: Any, context: Any) -> bytes:
    call_another()
    await context.abort(UNAVAILABLE, "down", (OWN,))


async def aborts_after_setting_trailers(request: Any, context: Any) -> bytes:
    call_another()
    context.set_trailing_metadata((OWN,))
    await context.abort(UNAVAILABLE, "down")


async def aborts_and_hides_it(request: Any, context: Any) -> bytes:
    call_another()
    try:
        await context.abort(UNAVAILABLE, "down")
    except grpc.aio.AbortError:
        raise ValueError("secret") from None


async def aborts_with_status(request: Any, context: Any) -> bytes:
    call_another()
    status = SimpleNamespace(code=UNAVAILABLE, details="down", trailing_metadata=())
    await context.abort_with_status(status)


async def sets_a_code(request: Any, context: Any) -> bytes:
    call_another()
    context.set_code(UNAVAILABLE)
    return b""


async def sets_a_code_and_trailers(request: Any, context: Any) -> bytes:
    call_another()
    context.set_code(UNAVAILABLE)
    context.set_trailing_metadata((OWN,))
    return b""


async def sets_a_code_and_raises(request: Any, context: Any) -> bytes:
    call_another()
    context.set_code(UNAVAILABLE)
    raise ValueError("secret")


async def cancels_itself(request: Any, context: Any) -> bytes:
    call_another()
    raise asyncio.CancelledError


async def answers_nonsense(request: Any, context: Any) -> Any:
    call_another()
    return 1


def raises_in_a_thread(request: Any, context: Any) -> bytes:
    call_another()
    raise ValueError("secret")


def aborts_in_a_thread(request: Any, context: Any) -> bytes:
    call_another()
    context.abort(UNAVAILABLE, "down")


def aborts_with_status_in_a_thread(request: Any, context: Any) -> bytes:
    call_another()
    context.abort_with_status(
        SimpleNamespace(code=UNAVAILABLE, details="down", trailing_metadata=())
    )


def sets_a_code_in_a_thread(request: Any, context: Any) -> bytes:
    call_another()
    context.set_code(UNAVAILABLE)
    return b""


async def generates_and_raises(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    call_another()
    raise ValueError("secret")


async def generates_and_aborts(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    call_another()
    await context.abort(UNAVAILABLE, "down")


async def generates_and_sets_a_code(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    call_another()
    context.set_code(UNAVAILABLE)


async def writes_and_raises(request: Any, context: Any) -> None:
    await context.write(b"first")
    call_another()
    raise ValueError("secret")


async def writes_and_sets_a_code(request: Any, context: Any) -> None:
    await context.write(b"first")
    call_another()
    context.set_code(UNAVAILABLE)


def generates_in_a_thread_and_aborts(request: Any, context: Any) -> Iterator[bytes]:
    yield b"first"
    call_another()
    context.abort(UNAVAILABLE, "down")


def generates_in_a_thread_and_raises(request: Any, context: Any) -> Iterator[bytes]:
    yield b"first"
    call_another()
    raise ValueError("secret")


def generates_in_a_thread_and_sets_a_code(request: Any, context: Any) -> Iterator[bytes]:
    yield b"first"
    call_another()
    context.set_code(UNAVAILABLE)


OWN_TRAILERS = {aborts_with_trailers, aborts_after_setting_trailers, sets_a_code_and_trailers}

UNARY = (
    *(raises, passes_the_error_on, aborts, aborts_with_trailers, aborts_after_setting_trailers),
    *(aborts_and_hides_it, aborts_with_status, sets_a_code, sets_a_code_and_trailers),
    *(sets_a_code_and_raises, cancels_itself, answers_nonsense),
)
PLAIN_UNARY = (
    *(raises_in_a_thread, aborts_in_a_thread, aborts_with_status_in_a_thread),
    sets_a_code_in_a_thread,
)
STREAM = (
    *(generates_and_raises, generates_and_aborts, generates_and_sets_a_code),
    *(writes_and_raises, writes_and_sets_a_code),
)
PLAIN_STREAM = (
    *(generates_in_a_thread_and_aborts, generates_in_a_thread_and_raises),
    generates_in_a_thread_and_sets_a_code,
)
FAILURES = [
    *((unary, behavior) for behavior in (*UNARY, *PLAIN_UNARY)),
    *((client_stream, behavior) for behavior in UNARY),
    *((server_stream, behavior) for behavior in (*STREAM, *PLAIN_STREAM)),
    *((both_streams, behavior) for behavior in STREAM),
]


CASES = pytest.mark.parametrize(
    ("kind", "behavior"),
    FAILURES,
    ids=[f"{kind.__name__.split('_rpc')[0]}-{behavior.__name__}" for kind, behavior in FAILURES],
)


def handled(kind: Any, behavior: Any) -> Any:
    """Make a handler; one of a stream reads it first, for bare clients fail when they cannot send."""
    if kind not in (client_stream, both_streams):
        return kind(behavior)

    async def run(requests: Any, context: Any) -> Any:
        async for _ in requests:
            pass
        return await behavior(requests, context)

    async def generate(requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            pass
        async for response in behavior(requests, context):
            yield response

    return kind(generate if inspect.isasyncgenfunction(behavior) else run)


@contextlib.asynccontextmanager
async def serving(
    handler: Any, *interceptors: grpc.aio.ServerInterceptor
) -> AsyncIterator[Callable[..., Any]]:
    """Serve one handler; a function that calls it and returns its status and trailers."""
    sync_handlers = SyncHandlers()
    table = HandlerTable(sync_handlers)
    table.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"it": handler}),))
    table.wrap(inner=interceptors)
    try:
        async with answering(handler, grpc.aio.server(handlers=(table,))) as call:
            yield call
    finally:
        sync_handlers.close()


@contextlib.asynccontextmanager
async def answering(handler: Any, server: grpc.aio.Server) -> AsyncIterator[Callable[..., Any]]:
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            kinds: Any = {
                (False, False): channel.unary_unary,
                (False, True): channel.unary_stream,
                (True, False): channel.stream_unary,
                (True, True): channel.stream_stream,
            }
            make = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]

            async def call(metadata: Any = ()) -> tuple[grpc.StatusCode, list[Any]]:
                request = iter([b"a"]) if handler.request_streaming else b"a"
                called = make("/t.T/it")(request, metadata=metadata, timeout=10)
                if handler.response_streaming:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        async for _ in called:
                            pass
                return await called.code(), sorted(map(tuple, await called.trailing_metadata()))

            yield call
    finally:
        await server.stop(None)


@CASES
async def test_a_failure_from_further_down_says_not_to_try_again(kind: Any, behavior: Any):
    """Whatever way the handler then fails; other trailers stay."""
    async with serving(handled(kind, behavior)) as call:
        code, trailers = await call(NESTED_FAILED)
    assert code is not OK
    assert trailers == [STOP, *([OWN] if behavior in OWN_TRAILERS else [])]


@CASES
async def test_a_failure_of_its_own_may_be_tried_again(kind: Any, behavior: Any):
    """Nothing that the handler called has failed: whether to try again is the caller's business."""
    async with serving(handled(kind, behavior)) as call:
        code, trailers = await call()
    assert code is not OK
    assert trailers == ([OWN] if behavior in OWN_TRAILERS else [])


# --- What stops nothing -------------------------------------------------------------------


async def answers(request: Any, context: Any) -> bytes:
    call_another()
    return b"without it"


def answers_in_a_thread(request: Any, context: Any) -> bytes:
    call_another()
    return b"without it"


async def sets_ok(request: Any, context: Any) -> bytes:
    call_another()
    context.set_code(OK)
    return b"without it"


async def generates(request: Any, context: Any) -> AsyncIterator[bytes]:
    call_another()
    yield b"without it"


async def writes(request: Any, context: Any) -> None:
    call_another()
    await context.write(b"without it")


def generates_in_a_thread(request: Any, context: Any) -> Iterator[bytes]:
    call_another()
    yield b"without it"


@pytest.mark.parametrize(
    ("kind", "behavior"),
    [
        (unary, answers),
        (unary, answers_in_a_thread),
        (unary, sets_ok),
        (client_stream, answers),
        (server_stream, generates),
        (server_stream, writes),
        (server_stream, generates_in_a_thread),
        (both_streams, generates),
    ],
)
async def test_an_answer_in_spite_of_it_is_an_answer(kind: Any, behavior: Any):
    """A handler that does without what it could not get has not failed."""
    async with serving(handled(kind, behavior)) as call:
        assert await call(NESTED_FAILED) == (OK, [])


async def aborts_with_its_pushback(request: Any, context: Any) -> bytes:
    call_another()
    await context.abort(UNAVAILABLE, "down", (OWN_PUSHBACK,))


async def sets_its_pushback_and_aborts(request: Any, context: Any) -> bytes:
    call_another()
    context.set_trailing_metadata((OWN_PUSHBACK,))
    await context.abort(UNAVAILABLE, "down")


async def sets_its_pushback_and_raises(request: Any, context: Any) -> bytes:
    call_another()
    context.set_trailing_metadata((OWN_PUSHBACK,))
    raise ValueError("secret")


async def sets_its_pushback_and_a_code(request: Any, context: Any) -> bytes:
    call_another()
    context.set_trailing_metadata((OWN_PUSHBACK,))
    context.set_code(UNAVAILABLE)
    return b""


def aborts_in_a_thread_with_its_pushback(request: Any, context: Any) -> bytes:
    call_another()
    context.abort(UNAVAILABLE, "down", (OWN_PUSHBACK,))


@pytest.mark.parametrize(
    "behavior",
    [
        aborts_with_its_pushback,
        sets_its_pushback_and_aborts,
        sets_its_pushback_and_raises,
        sets_its_pushback_and_a_code,
        aborts_in_a_thread_with_its_pushback,
    ],
)
async def test_what_a_handler_says_of_coming_back_stands(behavior: Any):
    """It may know better, and there is one such word in an answer."""
    async with serving(unary(behavior)) as call:
        code, trailers = await call(NESTED_FAILED)
    assert code is not OK
    assert trailers == [OWN_PUSHBACK]


# --- The user's interceptors --------------------------------------------------------------


class CallsAnotherItself(grpc.aio.ServerInterceptor):
    """Fails before there is a handler."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        call_another()
        raise ValueError("secret")


class AnswersInstead(grpc.aio.ServerInterceptor):
    """Has a handler of its own, as interceptors that refuse calls do."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        return unary(aborts)


class Watches(grpc.aio.ServerInterceptor):
    """Comes round the handler and changes nothing."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)

        async def watched(request: Any, context: Any) -> Any:
            return await handler.unary_unary(request, context)

        return unary(watched)


class Heals(grpc.aio.ServerInterceptor):
    """Answers when the handler cannot."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)

        async def healed(request: Any, context: Any) -> Any:
            try:
                return await handler.unary_unary(request, context)
            except ValueError:
                return b"from memory"

        return unary(healed)


@pytest.mark.parametrize(
    ("interceptor", "behavior"),
    [
        (CallsAnotherItself(), answers),
        (AnswersInstead(), answers),
        (Watches(), raises),
        (Watches(), aborts),
        (Watches(), sets_a_code),
        (Watches(), aborts_in_a_thread),
        (Heals(), aborts),
    ],
)
async def test_a_failure_under_interceptors_says_so_too(interceptor: Any, behavior: Any):
    """It is the call that fails, whoever makes it fail."""
    async with serving(unary(behavior), interceptor) as call:
        code, trailers = await call(NESTED_FAILED)
    assert code is not OK
    assert trailers == [STOP]


async def test_a_failure_that_an_interceptor_heals_is_none():
    """What is answered in the end counts."""
    async with serving(unary(raises), Heals()) as call:
        assert await call(NESTED_FAILED) == (OK, [])


@pytest.mark.parametrize(
    ("kind", "behavior"),
    [(unary, raises), (unary, sets_a_code), (server_stream, generates_and_raises)],
)
async def test_a_concern_on_a_bare_server_stops_chains_too(kind: Any, behavior: Any, caplog):
    """Except for `abort`, which is grpcio's own there."""
    handler = kind(behavior)
    server = grpc.aio.server(interceptors=(TargetInterceptor("t-1"),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"it": handler}),))
    async with answering(handler, server) as call:
        assert (await call())[1] == []
        code, trailers = await call(NESTED_FAILED)
    assert code is not OK
    assert trailers == [STOP]

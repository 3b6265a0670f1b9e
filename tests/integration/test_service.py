"""A service as its callers see it: over real connections, from registering to leaving."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from meshrpc.client.options import MESH
from meshrpc.clock import SystemClock
from meshrpc.errors import RegistryError, SettingsError
from meshrpc.interceptors.server_call import current_call
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registration import Registration
from meshrpc.server import readiness
from meshrpc.server.handler import HandlerTable
from meshrpc.server.listening import advertised
from meshrpc.server.service import Service
from meshrpc.wire import DRAIN, NOT_EXECUTED, WRONG_TARGET
from services.payment.v1 import payment_pb2, payment_pb2_grpc

CHARGE = "/payment.v1.PaymentService/Charge"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Payments(payment_pb2_grpc.PaymentServiceServicer):
    async def Charge(self, request: Any, context: Any) -> Any:
        return payment_pb2.Payment(order_id=request.order_id)


class HastyClock(SystemClock):
    """The real time, without the waits of draining: nobody else calls these services."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01) if seconds <= 3 else seconds)


def make_service(registry: Any = None, **arguments: Any) -> Service:
    return Service(
        "payment",
        registry=registry or MemoryRegistry(),
        control="none",
        clock=arguments.pop("clock", HastyClock()),
        **arguments,
    )


def payment_service(registry: Any = None, **arguments: Any) -> Service:
    service = make_service(registry, **arguments)
    payment_pb2_grpc.add_PaymentServiceServicer_to_server(Payments(), service)
    return service


def add(service: Service, **handlers: grpc.RpcMethodHandler[Any, Any]) -> None:
    """Register as older generated code does: generically alone."""
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    """Enter the service; a plain grpcio channel to it."""
    async with service, grpc.aio.insecure_channel(service.address) as channel:
        yield channel


@asynccontextmanager
async def serving_one(handler: grpc.RpcMethodHandler[Any, Any]) -> AsyncIterator[Any]:
    """Serve one handler; what to call it with."""
    service = make_service()
    add(service, it=handler)
    async with serving(service) as channel:
        if handler.response_streaming:
            yield channel.unary_stream("/t.T/it")
        else:
            yield channel.unary_unary("/t.T/it")


unary = grpc.unary_unary_rpc_method_handler
server_stream = grpc.unary_stream_rpc_method_handler


async def failure(awaitable: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await awaitable
    return failed.value


# --- Joining and leaving ------------------------------------------------------------------


async def test_a_service_is_registered_while_it_is_entered():
    """Its record says where and what it is, and goes away with it."""
    registry = MemoryRegistry()
    service = payment_service(registry, version="v1", zone="a", weight=3, labels={"tier": "x"})
    async with registry:
        async with service:
            (instance,) = await registry.instances("payment")
            assert instance == service.instance
            assert instance.address == service.address
            assert (instance.version, instance.zone, instance.weight) == ("v1", "a", 3)
            assert instance.labels == {"tier": "x"}
            assert instance.health is Health.SERVING
            assert instance.pid == os.getpid()
        assert await registry.instances("payment") == ()


async def test_a_service_can_be_entered_again_as_a_newer_incarnation():
    """Leaving leaves nothing behind that would keep it from coming back."""
    service = payment_service()
    incarnations = []
    for _ in range(3):
        async with serving(service) as channel:
            stub = payment_pb2_grpc.PaymentServiceStub(channel)
            assert (await stub.Charge(payment_pb2.ChargeRequest(order_id="o1"))).order_id == "o1"
            incarnations.append(service.instance.incarnation)
    assert incarnations == [1, 2, 3]


def test_a_service_can_be_entered_in_another_event_loop():
    """Nothing of it is bound to the loop it was made or first entered in."""
    service = payment_service()

    async def once() -> None:
        async with serving(service) as channel:
            await payment_pb2_grpc.PaymentServiceStub(channel).Charge(payment_pb2.ChargeRequest())

    asyncio.run(once())
    asyncio.run(once())


async def test_outside_of_its_block_a_service_says_so():
    """Address and instance exist only while it serves, and it cannot be entered twice."""
    service = payment_service()
    with pytest.raises(RuntimeError, match="not entered"):
        _ = service.address
    async with service:
        with pytest.raises(RuntimeError, match="entered twice"):
            await service.__aenter__()
        with pytest.raises(RuntimeError, match="registered before"):
            payment_pb2_grpc.add_PaymentServiceServicer_to_server(Payments(), service)
        with pytest.raises(RuntimeError, match="fixed"):
            service.settings = service.settings
    assert repr(service) == "<Service payment not serving>"


async def test_a_port_in_use_is_one_clear_error():
    """Cause and remedy, and nothing is left running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        service = payment_service(listen=f"127.0.0.1:{port}")
        with pytest.raises(
            SettingsError, match=rf"port {port} on 127\.0\.0\.1 is in use; .*listen="
        ):
            await service.__aenter__()
    async with service:
        assert service.address == f"127.0.0.1:{port}"


async def test_an_address_of_another_machine_is_one_clear_error():
    """Not taken for a port in use."""
    service = payment_service(listen="192.0.2.1:5001")
    with pytest.raises(SettingsError, match=r"cannot listen on 192\.0\.2\.1:5001: "):
        await service.__aenter__()


async def test_a_service_that_cannot_start_leaves_nothing_behind(monkeypatch):
    """A start that fails at its last step frees the port, and the next start works."""

    async def broken(registration: Registration) -> None:
        raise RegistryError("no")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service = payment_service(listen=f"127.0.0.1:{port}")
    with monkeypatch.context() as patch:
        patch.setattr(Registration, "start", broken)
        with pytest.raises(RegistryError):
            await service.__aenter__()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    async with service:
        assert service.address == f"127.0.0.1:{port}"


async def test_a_service_that_cannot_join_the_mesh_says_why():
    """The mesh's own error reaches whoever enters the service."""
    service = Service("payment", registry="mesh:", control="none")
    with pytest.raises(SettingsError, match="control is 'none'"):
        await service.__aenter__()


def test_the_advertised_address_is_one_that_callers_can_use():
    """What was set wins, port 0 is the real one, and `every address` becomes one of them."""
    assert advertised("127.0.0.1:5001", None) == "127.0.0.1:5001"
    assert advertised("0.0.0.0:5001", "10.1.2.3:0") == "10.1.2.3:5001"
    assert advertised("0.0.0.0:5001", "10.1.2.3:80") == "10.1.2.3:80"
    try:
        found = advertised("0.0.0.0:5001", None)
    except SettingsError as error:
        assert "advertise=" in str(error)  # noqa: PT017 - a machine without a network
    else:
        assert found.endswith(":5001")
        assert not found.startswith("0.")


async def test_leaving_is_announced_before_it_happens():
    """Health says NOT_SERVING, calls see the drain, callers see the mark, then the record goes."""
    registry = MemoryRegistry()
    service = make_service(registry)
    started, log = asyncio.Event(), []

    async def wait_for_drain(request: bytes, context: Any) -> bytes:
        started.set()
        call = current_call()
        assert call is not None
        await call.draining.wait()
        return b"drained"

    add(service, it=unary(wait_for_drain))
    async with registry:
        watch = registry.watch(
            "payment", lambda s: log.append([each.state for each in s.instances])
        )
        await service.__aenter__()
        async with grpc.aio.insecure_channel(service.address) as channel:
            running = channel.unary_unary("/t.T/it")(b"", wait_for_ready=True)
            await started.wait()
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watching.read()).status == SERVING
            leaving = asyncio.create_task(service.__aexit__(None, None, None))
            assert (await watching.read()).status == NOT_SERVING
            assert await running == b"drained"
            async with asyncio.timeout(5):
                await leaving
        watch.close()
    assert log == [[], [State.ACTIVE], [State.DRAINING], []]


@pytest.mark.parametrize("nested_failed", [False, True])
@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_call_that_outlasts_the_grace_is_told_why(kind: str, nested_failed: bool):
    """UNAVAILABLE and `mesh-drain`, never a hang and never CANCELLED.

    Nor that trying again is of no use: it is the server's leaving that ended the call, not a call
    that its handler made before and that failed.
    """
    service = make_service(grace=0.05)
    started = asyncio.Event()

    async def forever(request: bytes, context: Any) -> bytes:
        call = current_call()
        assert call is not None
        call.dependency_failed = nested_failed
        started.set()
        await asyncio.Event().wait()
        return b""

    async def stream_forever(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        await forever(request, context)

    add(service, unary=unary(forever), stream=server_stream(stream_forever))
    await service.__aenter__()
    async with grpc.aio.insecure_channel(service.address) as channel, asyncio.timeout(5):
        if kind == "unary":
            running = channel.unary_unary("/t.T/unary")(b"")
        else:
            running = channel.unary_stream("/t.T/stream")(b"")
            await running.read()
        await started.wait()
        await service.__aexit__(None, None, None)
        error = await failure(running if kind == "unary" else running.read())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "the server is leaving"
    assert dict(error.trailing_metadata()) == {DRAIN: "1"}


async def test_a_handler_that_ignores_its_end_is_named(caplog):
    """The service leaves without it; the log says what keeps the process from ending."""
    service = make_service(grace=0.0)
    started, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stubborn(request: bytes, context: Any) -> bytes:
        started.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        ended.set()
        return b""

    add(service, it=unary(stubborn))
    await service.__aenter__()
    async with grpc.aio.insecure_channel(service.address) as channel, asyncio.timeout(10):
        running = channel.unary_unary("/t.T/it")(b"")
        await started.wait()
        await service.__aexit__(None, None, None)
        error = await failure(running)
        release.set()
        await ended.wait()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "1 calls go on although they were cancelled" in caplog.text
    assert "/t.T/it" in caplog.text


# --- What callers get ---------------------------------------------------------------------


async def test_health_and_reflection_come_with_every_service():
    """Overall and per gRPC service; reflection lists them all."""
    async with serving(payment_service()) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "payment.v1.PaymentService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await info.write(request)
        answer = await info.read()
        await info.done_writing()
        names = {each.name for each in answer.list_services_response.service}
        assert names == {
            "payment.v1.PaymentService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


async def test_a_health_servicer_of_the_users_own_is_kept():
    """Registering one is not overruled."""

    class Ill(health_pb2_grpc.HealthServicer):
        async def Check(self, request: Any, context: Any) -> Any:
            return health_pb2.HealthCheckResponse(status=NOT_SERVING)

    service = make_service()
    health_pb2_grpc.add_HealthServicer_to_server(Ill(), service)
    async with serving(service) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING


async def test_older_and_newer_generated_code_register_each_method_once():
    """Generic registration, registration by name, or both: the same handlers."""
    handlers = {"it": unary(lambda request, context: request)}
    generic = grpc.method_handlers_generic_handler("t.T", handlers)
    older, newer = make_service(), make_service()
    older.add_generic_rpc_handlers((generic,))
    newer.add_generic_rpc_handlers((generic,))
    newer.add_registered_method_handlers("t.T", handlers)
    for service in (older, newer):
        assert list(service._handlers.methods) == ["/t.T/it"]
        async with serving(service) as channel:
            assert await channel.unary_unary("/t.T/it")(b"x") == b"x"


async def test_a_generic_handler_that_answers_to_any_name_works():
    """Proxies, whose methods cannot be listed, are asked about each call."""

    class Proxy(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            async def answer(request: bytes, context: Any) -> bytes:
                return handler_call_details.method.encode()

            return None if "Not" in handler_call_details.method else unary(answer)

    service = make_service()
    service.add_generic_rpc_handlers((Proxy(),))
    async with serving(service) as channel:
        assert await channel.unary_unary("/any.Thing/Goes")(b"") == b"/any.Thing/Goes"
        error = await failure(channel.unary_unary("/any.Thing/Not")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_method_nobody_wrote_is_unimplemented():
    """What the generated base class says arrives as it was meant."""
    async with serving(payment_service()) as channel:
        stub = payment_pb2_grpc.PaymentServiceStub(channel)
        error = await failure(stub.Refund(payment_pb2.RefundRequest()))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details() == "Method not implemented!"


async def test_an_exception_becomes_internal_without_its_text(caplog):
    """The client gets a number, the log has the traceback under it."""

    async def broken(request: bytes, context: Any) -> bytes:
        raise ValueError("password=hunter2")

    async with serving_one(unary(broken)) as it:
        error = await failure(it(b""))
    assert error.code() is grpc.StatusCode.INTERNAL
    number = str(error.details()).removeprefix("internal error ")
    assert len(number) == 8
    assert int(number, 16) >= 0
    assert "hunter2" not in str(error)
    assert number in caplog.text
    assert "hunter2" in caplog.text


async def test_a_status_set_before_raising_is_the_status():
    """`set_code` then raise: the code and text that the handler chose."""

    async def broken(request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
        context.set_details("not now")
        raise ValueError("secret")

    async with serving_one(unary(broken)) as it:
        error = await failure(it(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not now")


async def test_a_cancelled_error_that_the_client_did_not_cause_is_answered():
    """Bare grpcio would leave the client waiting for ever."""

    async def interrupted(request: bytes, context: Any) -> bytes:
        raise asyncio.CancelledError

    async with serving_one(unary(interrupted)) as it, asyncio.timeout(5):
        error = await failure(it(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "call interrupted")


async def test_a_stream_interrupted_from_within_is_answered():
    """The same for a stream, after what it has sent."""

    async def interrupted(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        raise asyncio.CancelledError

    async with serving_one(server_stream(interrupted)) as it, asyncio.timeout(5):
        call = it(b"")
        assert await call.read() == b"first"
        error = await failure(call.read())
    assert error.code() is grpc.StatusCode.UNAVAILABLE


class Unusual(BaseException):
    """Not an Exception, and so let through by grpcio, which then never answers."""


async def aborts_as_ok(request: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.OK, "fine")


def aborts_as_ok_in_a_thread(request: bytes, context: Any) -> bytes:
    context.abort(grpc.StatusCode.OK, "fine")


async def writes_beside_its_response(request: bytes, context: Any) -> bytes:
    await context.write(b"one")
    return b"another"


async def raises_what_is_no_exception(request: bytes, context: Any) -> bytes:
    raise Unusual


def stops_an_iteration_in_a_thread(request: bytes, context: Any) -> bytes:
    raise StopIteration


async def cancels_itself(request: bytes, context: Any) -> bytes:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()
    return b""


async def aborts_with_half_a_character(request: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.NOT_FOUND, "no \ud800")


async def fails_with_half_a_character(request: bytes, context: Any) -> bytes:
    context.set_code(grpc.StatusCode.NOT_FOUND)
    context.set_details("no \ud800")
    return b""


@pytest.mark.parametrize(
    ("handler", "code", "details"),
    [
        (aborts_as_ok, grpc.StatusCode.INTERNAL, "internal error"),
        (aborts_as_ok_in_a_thread, grpc.StatusCode.INTERNAL, "internal error"),
        (writes_beside_its_response, grpc.StatusCode.INTERNAL, "internal error"),
        (raises_what_is_no_exception, grpc.StatusCode.INTERNAL, "internal error"),
        (stops_an_iteration_in_a_thread, grpc.StatusCode.INTERNAL, "internal error"),
        (cancels_itself, grpc.StatusCode.UNAVAILABLE, "call interrupted"),
        (aborts_with_half_a_character, grpc.StatusCode.NOT_FOUND, r"no \ud800"),
        (fails_with_half_a_character, grpc.StatusCode.NOT_FOUND, r"no \ud800"),
    ],
)
async def test_every_handler_is_answered(handler: Any, code: grpc.StatusCode, details: str):
    """Each of these leaves the client of a bare grpcio server waiting for ever."""
    async with serving_one(unary(handler)) as it, asyncio.timeout(5):
        error = await failure(it(b""))
    assert error.code() is code
    assert str(error.details()).startswith(details)


async def test_two_tasks_may_write_at_once():
    """One message goes after the other; on bare grpcio neither they nor a status would arrive."""

    async def chatty(request: bytes, context: Any) -> None:
        await asyncio.gather(*(context.write(b"x") for _ in range(5)))

    async with serving_one(server_stream(chatty)) as it, asyncio.timeout(5):
        assert [message async for message in it(b"")] == [b"x"] * 5


async def test_a_write_to_a_client_that_has_gone_is_no_error(caplog):
    """It may fail before grpcio cancels the call: still the client's doing, and nothing to log."""

    class Gone:
        """grpcio's context of a call whose client went away a moment ago."""

        async def write(self, message: bytes) -> None:
            raise grpc.aio.InternalError("execute_batch")

        async def abort(self, code: Any, details: str, trailers: Any) -> None:
            raise grpc.aio.InternalError("execute_batch")

        def code(self) -> None:
            return None

        def time_remaining(self) -> None:
            return None

        def invocation_metadata(self) -> tuple[()]:
            return ()

    async def writes(request: bytes, context: Any) -> None:
        await context.write(b"x")

    table = HandlerTable()
    table.add_registered_method_handlers("t.T", {"it": server_stream(writes)})
    table.wrap()
    handler = table.service(SimpleNamespace(method="/t.T/it", invocation_metadata=()))
    with pytest.raises(asyncio.CancelledError):
        await handler.unary_stream(b"", Gone())
    assert not caplog.records


async def test_a_client_that_cancels_ends_its_handler():
    """The handler sees CancelledError, its context says cancelled, and nothing is logged."""
    started, ended, seen = asyncio.Event(), asyncio.Event(), []

    async def forever(request: bytes, context: Any) -> bytes:
        context.add_done_callback(lambda done: (seen.append(done.cancelled()), ended.set()))
        started.set()
        await asyncio.Event().wait()
        return b""

    async with serving_one(unary(forever)) as it, asyncio.timeout(5):
        call = it(b"")
        await started.wait()
        call.cancel()
        await ended.wait()
    assert seen == [True]


async def test_a_stream_whose_client_left_is_closed_at_once(caplog):
    """The generator's own clean-up runs in its task, not when it is collected."""
    closed, task = asyncio.Event(), []

    async def forever(request: bytes, context: Any) -> AsyncIterator[bytes]:
        task.append(asyncio.current_task())
        try:
            while True:
                yield b"x" * 100_000
        finally:
            task.append(asyncio.current_task())
            closed.set()

    async with serving_one(server_stream(forever)) as it, asyncio.timeout(5):
        call = it(b"")
        await call.read()
        call.cancel()
        await closed.wait()
    assert task[0] is task[1]
    assert "internal error" not in caplog.text


async def test_abort_works_and_cannot_be_replaced():
    """A handler that turns abort's exception into its own has aborted all the same."""

    async def aborts(request: bytes, context: Any) -> bytes:
        try:
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone", (("why", "gone"),))
        except Exception as error:
            raise ValueError("replaced") from error
        return b""

    async with serving_one(unary(aborts)) as it, asyncio.timeout(5):
        error = await failure(it(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert ("why", "gone") in tuple(error.trailing_metadata())


@pytest.mark.parametrize(
    "metadata", [(("Upper", "x"),), (("key", "ü"),), (("key-bin", "text"),), (("key", 1),)]
)
@pytest.mark.parametrize("way", ["initial", "trailing", "abort"])
async def test_metadata_that_cannot_be_sent_is_an_answer_too(metadata: Any, way: str, caplog):
    """The log names the key; bare grpcio names none, and for `-bin` never answers."""

    async def sends(request: bytes, context: Any) -> bytes:
        if way == "initial":
            await context.send_initial_metadata(metadata)
        elif way == "trailing":
            context.set_trailing_metadata(metadata)
        else:
            await context.abort(grpc.StatusCode.ABORTED, "", metadata)
        return b""

    async with serving_one(unary(sends)) as it, asyncio.timeout(5):
        error = await failure(it(b""))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "metadata key" in caplog.text
    assert metadata[0][0] in caplog.text


async def test_a_nested_call_that_failed_is_named_by_its_code_only():
    """The caller learns that it was a nested call, and nothing of what it said."""

    async def nested(request: bytes, context: Any) -> bytes:
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "secret"
        )

    async with serving_one(unary(nested)) as it:
        error = await failure(it(b""))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert str(error.details()).endswith(": nested call failed: UNAVAILABLE")
    assert "secret" not in str(error.details())


async def test_a_request_that_cannot_be_decoded_is_internal():
    """As grpcio's synchronous server answers; its handler does not run."""
    async with serving(payment_service()) as channel:
        error = await failure(channel.unary_unary(CHARGE)(b"\xff\xff\xff"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "request cannot be decoded"


@pytest.mark.parametrize("response", [None, "text", payment_pb2.Payment])
async def test_a_response_that_cannot_be_encoded_is_internal(response: Any):
    """The client learns whose fault it is, and nothing of the code behind it."""

    class Odd(payment_pb2_grpc.PaymentServiceServicer):
        async def Charge(self, request: Any, context: Any) -> Any:
            return response

    service = make_service()
    payment_pb2_grpc.add_PaymentServiceServicer_to_server(Odd(), service)
    async with serving(service) as channel:
        stub = payment_pb2_grpc.PaymentServiceStub(channel)
        error = await failure(stub.Charge(payment_pb2.ChargeRequest()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert str(error.details()).endswith(": response cannot be encoded")


async def test_a_call_for_another_instance_is_refused():
    """The address was another's before: not executed, so the caller can go elsewhere."""
    async with serving(payment_service()) as channel:
        call = channel.unary_unary(CHARGE)
        error = await failure(call(b"", metadata=(("mesh-target", "payment-0"),)))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(error.trailing_metadata()) == {NOT_EXECUTED: WRONG_TARGET}


# --- Plain def handlers -------------------------------------------------------------------


class PlainPayments(payment_pb2_grpc.PaymentServiceServicer):
    def Charge(self, request: Any, context: Any) -> Any:
        call = current_call()
        assert call is not None
        assert threading.current_thread() is not threading.main_thread()
        context.set_trailing_metadata([("seen", call.caller)])
        return payment_pb2.Payment(order_id=request.order_id)

    def Refund(self, request: Any, context: Any) -> Any:
        try:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such payment")
        except Exception:  # noqa: BLE001 - what careless handlers do
            logging.getLogger(__name__).debug("swallowed")
        return payment_pb2.Payment()

    def GetPayment(self, request: Any, context: Any) -> Any:
        raise ValueError("secret")


async def test_plain_handlers_run_in_threads_with_their_call():
    """They see caller and context, set trailers, abort, and fail like async ones."""
    service = make_service()
    payment_pb2_grpc.add_PaymentServiceServicer_to_server(PlainPayments(), service)
    async with serving(service) as channel:
        stub = payment_pb2_grpc.PaymentServiceStub(channel)
        call = stub.Charge(
            payment_pb2.ChargeRequest(order_id="o1"), metadata=(("mesh-caller", "order"),)
        )
        assert (await call).order_id == "o1"
        assert ("seen", "order") in tuple(await call.trailing_metadata())
        aborted = await failure(stub.Refund(payment_pb2.RefundRequest()))
        assert (aborted.code(), aborted.details()) == (
            grpc.StatusCode.NOT_FOUND,
            "no such payment",
        )
        broken = await failure(stub.GetPayment(payment_pb2.GetPaymentRequest()))
        assert broken.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(broken.details())


async def test_a_plain_generator_streams_and_is_closed_when_its_client_leaves():
    """Each message is made in a thread; the generator's clean-up runs after the client left."""
    closed = threading.Event()

    def forever(request: bytes, context: Any) -> Any:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            closed.set()

    async with serving_one(server_stream(forever)) as it, asyncio.timeout(5):
        call = it(b"")
        assert len(await call.read()) == 100_000
        call.cancel()
        assert await asyncio.to_thread(closed.wait, 5)


async def test_a_plain_generator_is_closed_even_when_its_service_has_left(caplog):
    """By the thread that is inside it, when that comes back; no new threads are made for it."""
    inside_of: list[str] = []
    closed_by: list[str] = []
    inside, release, closed = threading.Event(), threading.Event(), threading.Event()

    def slow(request: bytes, context: Any) -> Any:
        try:
            yield b"first"
            inside_of.append(threading.current_thread().name)
            inside.set()
            release.wait(5)
            yield b"second"
        finally:
            closed_by.append(threading.current_thread().name)
            closed.set()

    service = make_service(grace=0.0)
    add(service, it=server_stream(slow))
    async with serving(service) as channel:
        call = channel.unary_stream("/t.T/it")(b"")
        assert await call.read() == b"first"
        assert await asyncio.to_thread(inside.wait, 5)
    release.set()
    assert await asyncio.to_thread(closed.wait, 5)
    assert closed_by == inside_of
    assert closed_by[0].startswith("meshrpc-handler")
    assert "idle" in repr(service._sync_handlers)
    assert "Traceback" not in caplog.text


async def test_a_plain_stream_that_swallows_its_abort_sends_no_more():
    """What it makes after `abort` is not sent, and the status is that of the abort."""

    def careless(request: bytes, context: Any) -> Any:
        yield b"first"
        try:
            context.abort(grpc.StatusCode.ABORTED, "enough")
        except Exception:  # noqa: BLE001 - what careless handlers do
            yield b"second"

    async with serving_one(server_stream(careless)) as it, asyncio.timeout(5):
        call = it(b"")
        assert await call.read() == b"first"
        error = await failure(call.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "enough")


async def test_a_callback_of_a_plain_handler_that_fails_changes_nothing(caplog):
    """The call's answer stands, the others are called, and the log has it."""
    called = []

    def plain(request: bytes, context: Any) -> bytes:
        context.add_callback(lambda: 1 / 0)
        context.add_callback(lambda: called.append(True))
        return b"done"

    async with serving_one(unary(plain)) as it, asyncio.timeout(5):
        assert await it(b"") == b"done"
    assert called == [True]
    assert "ZeroDivisionError" in caplog.text


def test_a_plain_handler_of_request_streams_is_refused_when_registered():
    """One clear error at start, instead of a thread that waits."""

    def plain(requests: Any, context: Any) -> bytes:
        return b""

    with pytest.raises(SettingsError, match=r"/t\.T/it .*make it async def"):
        add(make_service(), it=grpc.stream_unary_rpc_method_handler(plain))


# --- grpcio's own interceptors --------------------------------------------------------------


async def test_grpcio_interceptors_see_messages_and_may_replace_the_handler():
    """They run next to the handler, under the guard, and see decoded requests."""
    seen: list[Any] = []

    class Peek(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            handler = await continuation(details)

            async def peek(request: Any, context: Any) -> Any:
                seen.append((details.method, request.order_id))
                return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(
                peek, handler.request_deserializer, handler.response_serializer
            )

    class Deny(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            if "deny" not in dict(details.invocation_metadata):
                return await continuation(details)

            async def deny(request: Any, context: Any) -> None:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "denied")

            return grpc.unary_unary_rpc_method_handler(deny)

    async with serving(payment_service(interceptors=[Deny(), Peek()])) as channel:
        stub = payment_pb2_grpc.PaymentServiceStub(channel)
        request = payment_pb2.ChargeRequest(order_id="o1")
        assert (await stub.Charge(request)).order_id == "o1"
        error = await failure(stub.Charge(request, metadata=(("deny", "1"),)))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert seen == [(CHARGE, "o1")]


# --- Connections ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "responses"),
    [("unary", "unary"), ("unary", "stream"), ("stream", "unary"), ("stream", "stream")],
)
@pytest.mark.parametrize("refuses", [True, False], ids=["refusal", "answer"])
async def test_an_interceptor_may_answer_every_arity_with_one_handler(
    requests: str, responses: str, refuses: bool
):
    """As grpcio's own examples do: one unary handler, most often one that aborts."""

    async def instead(request: bytes, context: Any) -> bytes:
        if refuses:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        return b"instead of " + request

    class Gate(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            return unary(instead)

    async def never(request: Any, context: Any) -> Any:
        raise AssertionError

    arity = f"{requests}_{responses}"
    service = make_service(interceptors=[Gate()])
    add(service, it=getattr(grpc, f"{arity}_rpc_method_handler")(never))
    async with serving(service) as channel, asyncio.timeout(5):
        sent = iter([b"it"]) if requests == "stream" else b"it"
        call = getattr(channel, arity)("/t.T/it")(sent)
        answer = call if responses == "unary" else call.read()
        if refuses:
            error = await failure(answer)
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        else:
            assert await answer == b"instead of it"


async def test_clients_that_ping_as_often_as_the_mesh_does_are_not_cut_off():
    """Pings at the mesh's own rate never count as abuse; on bare grpcio they do."""

    async def slow(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(6)  # a bare server loses patience after five pings
        return b"done"

    bare = grpc.aio.server()
    bare.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("t.T", {"it": unary(slow)}),)
    )
    bare_port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    service = make_service()
    add(service, it=unary(slow))
    async with service:
        answers = []
        for address in (service.address, f"127.0.0.1:{bare_port}"):
            channel = grpc.aio.insecure_channel(address, options=MESH)
            answers.append((channel, channel.unary_unary("/t.T/it")(b"")))
        (ours, on_ours), (theirs, on_theirs) = answers
        assert await on_ours == b"done"
        error = await failure(on_theirs)
        assert "many pings" in str(error.details())
        await ours.close()
        await theirs.close()
    await bare.stop(None)


# --- Processes ------------------------------------------------------------------------------

SCRIPT = """
import asyncio, sys, threading
import grpc
from meshrpc.server.service import Service

async def forever(request, context):
    print("called", flush=True)
    await asyncio.Event().wait()

service = Service("payment", control="none", registry="memory:", grace=60.0)
service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
    "t.T", {"it": grpc.unary_unary_rpc_method_handler(forever)}),))
service.run(on_ready=lambda instance: print(instance.address, flush=True))
print("left", flush=True)
"""


@pytest.mark.process
async def test_a_signal_drains_and_a_second_one_stops_at_once():
    """SIGTERM waits for the running call; the next one ends it with UNAVAILABLE; exit code 0."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            address = (await process.stdout.readline()).decode().strip()
            async with grpc.aio.insecure_channel(address) as channel:
                running = channel.unary_unary("/t.T/it")(b"")
                assert await process.stdout.readline() == b"called\n"
                process.send_signal(signal.SIGTERM)
                health = health_pb2_grpc.HealthStub(channel)
                watching = health.Watch(health_pb2.HealthCheckRequest())
                while (await watching.read()).status == SERVING:
                    pass
                assert not running.done()
                process.send_signal(signal.SIGINT)
                error = await failure(running)
                assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert await process.stdout.readline() == b"left\n"
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.process
@pytest.mark.parametrize("impatient", [False, True], ids=["once", "twice"])
def test_a_signal_during_the_start_waits_for_no_registry(impatient: bool, monkeypatch, caplog):
    """Neither for the answer to registering, nor, after a second signal, for any other."""
    told = []

    def signalled() -> None:
        told.append(True)
        os.kill(os.getpid(), signal.SIGTERM)

    async def register(registry: MemoryRegistry, instance: Instance) -> None:
        signalled()
        await asyncio.Event().wait()

    async def drain(registry: MemoryRegistry, instance: Instance) -> None:
        if impatient:
            signalled()
            await asyncio.Event().wait()

    monkeypatch.setattr(MemoryRegistry, "register", register)
    monkeypatch.setattr(MemoryRegistry, "drain", drain)
    ready = []
    payment_service().run(on_ready=ready.append)
    assert len(told) == 1 + impatient
    assert not ready
    assert "did not answer" not in caplog.text


@pytest.mark.process
def test_a_service_that_has_never_been_ready_does_not_say_that_it_is(monkeypatch):
    """`on_ready` waits for the checks, for as long as it takes: nobody may be replaced by it."""
    monkeypatch.setattr(readiness, "ASK_EVERY", 0.01)
    service = payment_service()
    asked, seen = [], []

    @service.ready_when
    def warm():
        asked.append(len(asked) > 5)
        return asked[-1]

    def on_ready(instance: Instance) -> None:
        seen.append((asked[-1], instance.health))
        os.kill(os.getpid(), signal.SIGTERM)

    service.run(on_ready=on_ready)
    assert seen == [(True, Health.SERVING)]


EXITING = """
import sys
import grpc
from meshrpc.server.service import Service

async def leave(request, context):
    sys.exit(7)

service = Service("payment", control="none", registry="memory:")
service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
    "t.T", {"it": grpc.unary_unary_rpc_method_handler(leave)}),))
service.run(on_ready=lambda instance: print(instance.address, flush=True))
"""


@pytest.mark.process
async def test_a_handler_that_exits_is_answered_before_its_process_ends():
    """`sys.exit` means the program: it ends with that code, once the caller knows."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", EXITING, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            address = (await process.stdout.readline()).decode().strip()
            async with grpc.aio.insecure_channel(address) as channel:
                error = await failure(channel.unary_unary("/t.T/it")(b""))
            assert await process.wait() == 7
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert error.code() is grpc.StatusCode.INTERNAL
    assert str(error.details()).startswith("internal error")


@pytest.mark.process
def test_a_setting_that_cannot_be_used_reaches_whoever_runs_the_service():
    """`run` raises; it does not hang and does not exit by itself."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service = payment_service(listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(SettingsError, match="in use"):
            service.run()


async def test_rate_limits_follow_the_policy(monkeypatch):
    """What the mesh says of this service's limits holds from the next call on."""
    from meshrpc.policy.model import EffectivePolicy, RateLimit  # noqa: PLC0415

    service = payment_service()
    followers = []

    class Followed:
        def close(self) -> None:
            followers.clear()

    def on_policy(name: str, follow: Any) -> Any:
        assert name == "payment"
        followers.append(follow)
        follow(EffectivePolicy("payment"))
        return Followed()

    monkeypatch.setattr(service.mesh, "on_policy", on_policy)
    async with serving(service) as channel:
        stub = payment_pb2_grpc.PaymentServiceStub(channel)
        request = payment_pb2.ChargeRequest()
        await stub.Charge(request)
        followers[0](EffectivePolicy("payment", rate_limits=(RateLimit("all", 0.01, 1),)))
        await stub.Charge(request)
        error = await failure(stub.Charge(request))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
        followers[0](EffectivePolicy("payment"))
        await stub.Charge(request)
    assert followers == []


def test_importing_a_service_does_not_import_the_tracing_sdk():
    """Only a process that exports spans pays for what exports them."""
    code = "import sys, meshrpc.server.service; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "False\n"


async def test_methods_that_a_servicer_leaves_out_answer_unimplemented():
    """What protoc wrote for every kind of method stands in until somebody overrides it."""

    class Left(payment_pb2_grpc.PaymentServiceServicer):
        pass

    service = Service("left", registry="memory:", control="none")
    payment_pb2_grpc.add_PaymentServiceServicer_to_server(Left(), service)
    # protoc writes the same plain def for streams of requests.
    streams = {
        kind: getattr(grpc, f"{kind}_rpc_method_handler")(Left().Charge)
        for kind in ("stream_unary", "stream_stream", "unary_stream")
    }
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Left", streams),))
    async with service, grpc.aio.insecure_channel(service.address) as channel:
        for call in (
            channel.unary_unary("/payment.v1.PaymentService/Charge")(b""),
            channel.stream_unary("/t.Left/stream_unary")(iter([])),
            channel.unary_stream("/t.Left/unary_stream")(b""),
            channel.stream_stream("/t.Left/stream_stream")(iter([])),
        ):
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
            assert await call.details() == "Method not implemented!"

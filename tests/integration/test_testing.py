"""meshrpc.testing: a mesh in one process, scripted services, and what they were asked."""

import asyncio
import gc
import logging
import threading
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.wrappers_pb2 import StringValue

import meshrpc
from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.testing import Failure, LocalMesh, local_mesh
from services.payment.v1 import payment_pb2, payment_pb2_grpc

PAYMENT = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]
DESCRIPTORS = Path("/proc/self/fd")
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ROUND_ROBIN = "{schema: meshrpc.policy/v1, service: payment, balancer: round_robin}"
NO_RETRIES = "{schema: meshrpc.policy/v1, service: payment, retry: {attempts: 1}}"


def kinds():
    """A service with a method of each kind, over StringValue."""
    pool = descriptor_pool.Default()
    try:
        return pool.FindServiceByName("test.kinds.Kinds")
    except KeyError:
        text = ".google.protobuf.StringValue"
        file = descriptor_pb2.FileDescriptorProto(
            name="test_kinds.proto",
            package="test.kinds",
            dependency=["google/protobuf/wrappers.proto"],
        )
        service = file.service.add(name="Kinds")
        for name, takes, answers in (
            ("One", False, False),
            ("Out", False, True),
            ("In", True, False),
            ("Both", True, True),
        ):
            service.method.add(
                name=name,
                input_type=text,
                output_type=text,
                client_streaming=takes,
                server_streaming=answers,
            )
        pool.AddSerializedFile(file.SerializeToString())
        return pool.FindServiceByName("test.kinds.Kinds")


def method(channel, kind, name):
    make = getattr(channel, kind)
    path = f"/test.kinds.Kinds/{name}"
    return make(path, StringValue.SerializeToString, StringValue.FromString)


def values(*texts):
    return [StringValue(value=text) for text in texts]


@pytest.fixture
def stub(local_mesh):
    return payment_pb2_grpc.PaymentServiceStub(local_mesh.channel("payment"))


def charge(order="o-1"):
    return payment_pb2.ChargeRequest(order_id=order)


async def code_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def test_a_scripted_service_answers_in_turn_and_the_last_answer_for_ever(local_mesh, stub):
    """Messages, failures and functions of the request, async ones too."""
    payment = await local_mesh.script("payment", PAYMENT)
    local_mesh.policy(NO_RETRIES)

    async def echo(request):
        return payment_pb2.Payment(id=request.order_id)

    payment.answer(
        "Charge",
        payment_pb2.Payment(id="first"),
        Failure(UNAVAILABLE, "sick"),
        lambda request: Failure(grpc.StatusCode.NOT_FOUND, request.order_id),
        echo,
    )
    assert (await stub.Charge(charge())).id == "first"
    assert await code_of(stub.Charge(charge())) == (UNAVAILABLE, "sick")
    assert await code_of(stub.Charge(charge("x"))) == (grpc.StatusCode.NOT_FOUND, "x")
    assert [(await stub.Charge(charge(order))).id for order in ("a", "b")] == ["a", "b"]


async def test_an_instances_own_script_wins_over_its_services(local_mesh, stub):
    """One instance fails, the other answers; each call says whom it asked."""
    payment = await local_mesh.script("payment", PAYMENT, instances=2)
    local_mesh.policy(NO_RETRIES.replace("retry", "balancer: round_robin, retry"))
    payment.answer("Charge", payment_pb2.Payment(id="paid"))
    payment[1].fail("Charge", UNAVAILABLE, "one is sick")
    await local_mesh.channel("payment").channel_ready()
    seen = {}
    while len(seen) < 2:
        call = stub.Charge(charge(), wait_for_ready=True)
        code = await call.code()
        seen[call.peer().id] = code
    assert seen == {"payment-1": UNAVAILABLE, "payment-2": grpc.StatusCode.OK}


async def test_a_call_that_one_instance_fails_is_retried_at_another(local_mesh, stub):
    """The backoff is the clock's, and `run` moves it."""
    payment = await local_mesh.script("payment", PAYMENT, instances=2)
    payment.answer("Charge", payment_pb2.Payment(id="paid"))
    payment[1].fail("Charge", UNAVAILABLE)
    local_mesh.policy(ROUND_ROBIN)
    before = local_mesh.clock.now()
    for _ in range(4):
        assert (await local_mesh.clock.run(stub.Charge(charge()))).id == "paid"
    assert payment[1].calls()
    assert local_mesh.clock.now() > before


async def test_every_instance_records_what_it_was_asked(local_mesh, stub):
    """Method, request, metadata, caller, time left; over all instances in order of arrival."""
    payment = await local_mesh.script("payment", PAYMENT, instances=2)
    payment.answer("Charge", payment_pb2.Payment())
    payment.answer("Refund", payment_pb2.Payment())
    for number in range(4):
        await stub.Charge(charge(f"o-{number}"), timeout=30, metadata=(("mine", "1"),))
    await stub.Refund(payment_pb2.RefundRequest(payment_id="p"))
    first, *_, last = payment.calls()
    assert [call.request.order_id for call in payment.calls("Charge")] == [
        *("o-0", "o-1", "o-2", "o-3"),
    ]
    assert (first.method, first.caller) == ("Charge", "test")
    assert dict(first.metadata)["mine"] == "1"
    assert 29 < first.time_remaining < 31
    assert (last.method, last.request.payment_id, last.time_remaining) == ("Refund", "p", None)
    each = [*payment[1].calls(), *payment[2].calls()]
    assert sorted(map(id, each)) == sorted(map(id, payment.calls()))
    assert {call.instance for call in payment[1].calls()} <= {"payment-1"}
    with pytest.raises(AttributeError):
        first.method = "other"


async def test_received_waits_for_calls_and_says_how_many_came(local_mesh, stub, monkeypatch):
    """It returns once they are there; otherwise it fails after a while."""
    payment = await local_mesh.script("payment", PAYMENT)
    answered = asyncio.Event()

    async def later(request):
        await answered.wait()
        return payment_pb2.Payment()

    payment.answer("Charge", later)
    calls = [stub.Charge(charge(str(number))) for number in range(2)]
    assert len(await payment.received(2, "Charge")) == 2
    answered.set()
    await asyncio.gather(*calls)
    monkeypatch.setattr("meshrpc.testing.received.RECEIVED_WITHIN", 0.01)
    with pytest.raises(TimeoutError, match="2 of 3 calls arrived"):
        await payment.received(3)


async def test_a_method_without_a_script_says_how_to_write_one(local_mesh, stub):
    """UNIMPLEMENTED, the method and the line that is missing."""
    await local_mesh.script("payment", PAYMENT)
    code, details = await code_of(stub.Charge(charge()))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert details == (
        'Charge of payment-1 has no script: give it one with .answer("Charge", Payment(...)) '
        'or .fail("Charge", code)'
    )


async def test_a_script_that_the_service_could_not_follow_is_refused_at_once(local_mesh):
    """Unknown methods with the nearest one, wrong types with the right one."""
    payment = await local_mesh.script("payment", PAYMENT)
    with pytest.raises(ValueError, match=r"no method 'Chrge'; did you mean 'Charge'\? it has"):
        payment.answer("Chrge", payment_pb2.Payment())
    with pytest.raises(ValueError, match="no method 'Pay'"):
        payment.calls("Pay")
    with pytest.raises(TypeError, match=r"Charge answers payment.v1.Payment, not ChargeRequest"):
        payment.answer("Charge", charge())
    with pytest.raises(TypeError, match="not the class Payment"):
        payment[1].answer("Charge", payment_pb2.Payment)
    with pytest.raises(ValueError, match="Charge needs an answer"):
        payment.answer("Charge")
    with pytest.raises(ValueError, match="other than OK"):
        payment.fail("Charge", grpc.StatusCode.OK)
    with pytest.raises(IndexError, match="payment has no instance 0, only 1"):
        payment[0]
    with pytest.raises(TypeError, match="services_by_name"):
        await local_mesh.script("other", payment_pb2)


async def test_a_function_that_returns_no_answer_is_named(local_mesh, stub):
    """The caller learns which script it was, and what it said, be that an empty message."""
    payment = await local_mesh.script("payment", PAYMENT)
    payment.answer("Charge", lambda request: 3, lambda request: payment_pb2.ChargeRequest())
    code, details = await code_of(stub.Charge(charge()))
    assert code is grpc.StatusCode.INTERNAL
    assert "the script of Charge at payment-1 answered int 3, which is no payment.v1" in details
    _, details = await code_of(stub.Charge(charge()))
    assert "answered ChargeRequest, which is no payment.v1.Payment" in details


async def test_what_is_no_service_is_refused(local_mesh):
    """The servicer in its place, for instance."""
    with pytest.raises(TypeError, match=r"serve takes a meshrpc.Service, not PaymentServiceServic"):
        await local_mesh.serve(payment_pb2_grpc.PaymentServiceServicer())
    service = meshrpc.Service("payment")
    await local_mesh.serve(service)
    with pytest.raises(RuntimeError, match="'payment' is served already"):
        await local_mesh.serve(service)


async def test_an_instance_that_streams_nothing_wins_over_its_service(local_mesh):
    """An empty list is an answer."""
    kind = await local_mesh.script("kinds", kinds())
    kind.answer("Out", values("a"))
    kind[1].answer("Out", [])
    out = method(local_mesh.channel("kinds"), "unary_stream", "Out")
    assert [message.value async for message in out(StringValue())] == []


async def test_messages_of_a_stream_arrive_each_at_its_own_time(local_mesh):
    """The clock waits for each before it moves on."""
    kind = await local_mesh.script("kinds", kinds())
    clock = local_mesh.clock

    async def count(request):
        for number in range(1, 11):
            await clock.sleep(1)
            yield StringValue(value=str(number))

    kind.answer("Out", count)
    call = method(local_mesh.channel("kinds"), "unary_stream", "Out")(StringValue())
    started = clock.now()
    arrived = []

    async def hear():
        while (message := await call.read()) is not grpc.aio.EOF:
            arrived.append((clock.now() - started, message.value))

    hearing = asyncio.create_task(hear())
    await clock.advance(10)
    assert arrived == [(number, str(number)) for number in range(1, 11)]
    await hearing


async def test_streams_of_every_kind_are_scripted_and_recorded(local_mesh):
    """Lists of messages, functions of all requests, generators that answer as requests come."""
    kind = await local_mesh.script("kinds", kinds())
    channel = local_mesh.channel("kinds")
    kind.answer("Out", values("a", "b"), [*values("c"), Failure(UNAVAILABLE, "broke off")])
    out = method(channel, "unary_stream", "Out")
    assert [m.value async for m in out(StringValue(value="go"))] == ["a", "b"]
    got = []
    with pytest.raises(grpc.aio.AioRpcError, match="broke off"):
        got.extend([message.value async for message in out(StringValue())])
    kind.answer("In", lambda requests: StringValue(value="+".join(r.value for r in requests)))
    joined = method(channel, "stream_unary", "In")(iter(values("1", "2")))
    assert (await joined).value == "1+2"
    assert [r.value for r in kind.calls("In")[0].requests] == ["1", "2"]

    async def echo(requests):
        async for request in requests:
            yield StringValue(value=request.value * 2)

    kind.answer("Both", echo)
    both = method(channel, "stream_stream", "Both")()
    for text in ("x", "y"):
        await both.write(StringValue(value=text))
        assert (await both.read()).value == text * 2
    assert [r.value for r in kind.calls("Both")[0].requests] == ["x", "y"]
    await both.done_writing()
    assert await both.read() is grpc.aio.EOF
    with pytest.raises(TypeError, match="Out answers a list of google"):
        kind.answer("Out", StringValue())


async def test_virtual_minutes_take_less_than_real_ones_and_nobody_loses_its_lease(
    local_mesh, stub
):
    """Five instances renew on the clock; after it they answer as before."""
    payment = await local_mesh.script("payment", PAYMENT, instances=5)
    payment.answer("Charge", payment_pb2.Payment(id="paid"))
    await stub.Charge(charge())
    started = time.perf_counter()
    for _ in range(3):
        await local_mesh.clock.advance(60)
    assert time.perf_counter() - started < 60
    assert (await stub.Charge(charge())).id == "paid"
    assert {each.record.incarnation for each in payment} == {1}


async def test_a_deadline_passes_when_the_clock_does(local_mesh, stub):
    """Not before, however long it takes in real time; the handler sees its time shrink."""
    payment = await local_mesh.script("payment", PAYMENT)
    left = []

    async def slow(request):
        await local_mesh.clock.sleep(2)
        left.append(meshrpc.current_call().time_remaining())
        await local_mesh.clock.sleep(60)

    payment.answer("Charge", slow)
    call = stub.Charge(charge(), timeout=20)
    await payment.received(1)
    await local_mesh.clock.advance(19.9)
    assert not call.done()
    assert 17 < left[0] < 19
    await local_mesh.clock.advance(0.2)
    assert (await code_of(call))[0] is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_what_is_due_on_the_way_is_answered_on_the_way(local_mesh, stub):
    """An answer that a handler gives at 3 s arrives before the clock goes on to 5 s."""
    payment = await local_mesh.script("payment", PAYMENT)

    async def slow(request):
        await local_mesh.clock.sleep(3)
        return payment_pb2.Payment()

    payment.answer("Charge", slow)
    call = stub.Charge(charge(), timeout=4)
    arrived = []
    call.add_done_callback(lambda _: arrived.append(local_mesh.clock.now()))
    started = local_mesh.clock.now()
    await local_mesh.clock.advance(5)
    assert arrived == [started + 3]
    assert await call.code() is grpc.StatusCode.OK


async def test_a_handlers_work_in_a_thread_is_waited_for(local_mesh, stub):
    """The clock does not run away from what it cannot see move."""
    payment = await local_mesh.script("payment", PAYMENT)

    async def work(request):
        await asyncio.to_thread(time.sleep, 0.05)
        return payment_pb2.Payment(id="done")

    payment.answer("Charge", work)
    started = local_mesh.clock.now()
    assert (await local_mesh.clock.run(stub.Charge(charge(), timeout=2))).id == "done"
    assert local_mesh.clock.now() == started


async def test_an_instance_that_stops_leaves_in_order(local_mesh, stub):
    """It drains for a second of the clock, and is gone from the registry; the other goes on."""
    payment = await local_mesh.script("payment", PAYMENT, instances=2)
    payment.answer("Charge", payment_pb2.Payment())
    await stub.Charge(charge())
    before = local_mesh.clock.now()
    await payment[1].stop()
    await payment[1].stop()
    assert local_mesh.clock.now() - before == pytest.approx(1.0)
    assert [each.id for each in payment] == ["payment-2"]
    call = stub.Charge(charge())
    await call
    assert call.peer().id == "payment-2"
    with pytest.raises(RuntimeError, match="payment-1 does not run any more"):
        payment[1].heal()


async def test_an_instance_that_is_killed_is_found_out_by_its_lease(local_mesh, stub):
    """Its call is reset, its port refuses, its record stays until the lease has run out."""
    payment = await local_mesh.script("payment", PAYMENT)
    local_mesh.policy(NO_RETRIES)
    payment.answer("Charge", lambda request: asyncio.Event().wait())
    call = stub.Charge(charge())
    await payment.received(1)
    address = payment[1].address
    await payment[1].kill()
    assert (await code_of(call))[0] is UNAVAILABLE
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address.split(":"))
    assert (await code_of(stub.Charge(charge())))[1].startswith("failed to connect")
    await local_mesh.clock.advance(16)
    assert (await code_of(stub.Charge(charge())))[1] == (
        "service 'payment' has no instances in the registry"
    )
    new = await payment.add()
    assert new is payment[2]
    new.answer("Charge", payment_pb2.Payment(id="back"))
    assert (await stub.Charge(charge())).id == "back"


async def test_policy_is_applied_at_once_and_strictly(local_mesh, stub):
    """Text or mapping; what is wrong raises and changes nothing; warnings are returned."""
    payment = await local_mesh.script("payment", PAYMENT)
    payment.answer("Charge", payment_pb2.Payment())
    limit = {"name": "all", "rate": "1/s", "burst": 1}
    document = {"schema": "meshrpc.policy/v1", "service": "payment", "rate_limits": [limit]}
    assert local_mesh.policy(document) == ()
    limited = NO_RETRIES[:-1] + ", rate_limits: [{name: all, rate: 1/s, burst: 1}]}"
    warnings = local_mesh.policy(limited[:-1] + ", telemetry: {}}")
    assert warnings == ("payment: telemetry: accepted, not carried out by this release",)
    with pytest.raises(meshrpc.PolicyError, match="retrry"):
        local_mesh.policy(limited.replace("retry", "retrry"))
    await stub.Charge(charge())
    assert (await code_of(stub.Charge(charge())))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    await local_mesh.clock.advance(1)
    await stub.Charge(charge())
    local_mesh.policy(NO_RETRIES)
    for _ in range(5):
        await stub.Charge(charge())


class Payments(payment_pb2_grpc.PaymentServiceServicer):
    async def Charge(self, request, context):
        return payment_pb2.Payment(id=request.order_id)


service = meshrpc.Service("payment", version="v7", control="127.0.0.1:1", registry="mesh:")
payment_pb2_grpc.add_PaymentServiceServicer_to_server(Payments(), service)


def test_a_service_of_the_users_own_is_served_in_one_loop_after_another():
    """Module-level, with settings that lead elsewhere; it gets everything of its own back."""
    settings, id_ = service.settings, service.mesh.id

    async def once():
        async with LocalMesh() as mesh:
            served = await mesh.serve(service)
            mesh.policy(NO_RETRIES[:-1] + ", rate_limits: [{name: all, rate: 1/s, burst: 1}]}")
            stub = payment_pb2_grpc.PaymentServiceStub(mesh.channel("payment"))
            call = stub.Charge(charge("mine"))
            assert (await call).id == "mine"
            assert (call.peer().id, call.peer().version) == ("payment-1", "v7")
            assert (await code_of(stub.Charge(charge())))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert served.is_running
            with pytest.raises(RuntimeError, match="is served already"):
                await mesh.serve(service)
        assert not served.is_running

    asyncio.run(once())
    asyncio.run(once())
    assert service.settings is settings
    assert (service.mesh.id, service.mesh.clock) == (id_, SYSTEM_CLOCK)
    assert service.mesh.policy_source is None


async def test_a_mesh_runs_on_real_time_when_told_so():
    """Nothing is frozen then, and there is no clock to move."""
    async with LocalMesh(clock=SYSTEM_CLOCK) as mesh:
        payment = await mesh.script("payment", PAYMENT, instances=2)
        payment.answer("Charge", payment_pb2.Payment())
        payment[1].fail("Charge", UNAVAILABLE)
        stub = payment_pb2_grpc.PaymentServiceStub(mesh.channel("payment"))
        for _ in range(4):
            await stub.Charge(charge())
        with pytest.raises(RuntimeError, match="cannot be moved"):
            mesh.clock.now()


async def test_a_mesh_is_for_one_test_and_a_clock_for_one_mesh():
    """Entered again, or on another mesh's clock, it says so; two meshes side by side are fine."""
    async with LocalMesh() as first, LocalMesh() as second:
        for mesh in (first, second):
            payment = await mesh.script("payment", PAYMENT)
            payment.answer("Charge", payment_pb2.Payment())
            stub = payment_pb2_grpc.PaymentServiceStub(mesh.channel("payment"))
            await stub.Charge(charge())
            assert len(payment.calls()) == 1
        with pytest.raises(RuntimeError, match="another mesh's"):
            await LocalMesh(clock=first.clock).__aenter__()
    with pytest.raises(RuntimeError, match="entered once"):
        await first.__aenter__()
    with pytest.raises(RuntimeError, match="between `async with mesh"):
        await first.script("payment", PAYMENT)
    assert await asyncio.to_thread(lambda: "still works") == "still works"


async def test_nothing_is_left_behind():
    """Entered and left twenty times, calls under way: no task, no descriptor, no thread more."""

    async def once():
        async with LocalMesh() as mesh:
            payment = await mesh.script("payment", PAYMENT, instances=2)
            payment.answer("Charge", payment_pb2.Payment())
            payment[2].answer("Charge", lambda request: mesh.clock.sleep(60))
            stub = payment_pb2_grpc.PaymentServiceStub(mesh.channel("payment"))
            calls = [stub.Charge(charge()) for _ in range(4)]
            await payment.received(4)
            await mesh.clock.advance(10)
        return await asyncio.gather(*calls, return_exceptions=True)

    def left():
        gc.collect()
        return len(asyncio.all_tasks()), len(list(DESCRIPTORS.iterdir())), threading.active_count()

    for _ in range(3):
        await once()
    tasks, files, threads = left()
    allowed = (tasks, files + 2, threads)
    for _ in range(20):
        await once()
    async with asyncio.timeout(10):
        while any(now > then for now, then in zip(left(), allowed, strict=True)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # grpc's threads close in their own time


async def test_calls_that_wait_for_a_frozen_clock_are_explained(caplog, monkeypatch):
    """A log line says what to do, instead of a test that hangs without a word."""
    monkeypatch.setattr(local_mesh, "STANDSTILL", 0.02)
    warned = asyncio.Event()

    class Handler(logging.Handler):
        def emit(self, record):
            warned.set()

    handler = Handler()
    logging.getLogger("meshrpc.testing").addHandler(handler)
    try:
        async with LocalMesh() as mesh:
            payment = await mesh.script("payment", PAYMENT)
            payment.answer("Charge", lambda request: mesh.clock.sleep(60))
            stub = payment_pb2_grpc.PaymentServiceStub(mesh.channel("payment"))
            call = stub.Charge(charge())
            async with asyncio.timeout(5):
                await warned.wait()
            call.cancel()
    finally:
        logging.getLogger("meshrpc.testing").removeHandler(handler)
    assert "calls to payment are under way" in caplog.text
    assert "await them with clock.run" in caplog.text

"""Calls that a process refuses itself, and what it tells those above it: on a virtual clock."""

import asyncio
import gc

import grpc
import pytest

import meshrpc
from meshrpc.testing import refuse
from meshrpc.wire import NOT_EXECUTED, WRONG_TARGET
from services.payment.v1 import payment_pb2, payment_pb2_grpc
from tests.echo import ready

PAYMENT = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]
REQUEST = payment_pb2.GetPaymentRequest(payment_id="p-1")
OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
LIMITED = """
    schema: meshrpc.policy/v1
    service: payment
    circuit_breaker: {max_requests: 3}
"""


@pytest.fixture
async def payment(local_mesh):
    script = await local_mesh.script("payment", PAYMENT, instances=2)
    script.answer("GetPayment", payment_pb2.Payment(id="p-1"))
    return script


@pytest.fixture
def get(local_mesh):
    return payment_pb2_grpc.PaymentServiceStub(local_mesh.channel("payment")).GetPayment


def control_of(local_mesh):
    return next(iter(local_mesh.client.destinations)).control


async def test_a_service_that_accepts_nothing_is_spared_most_calls(local_mesh, payment, get):
    """At 100 calls a second, of the calls of later seconds four in five are refused here."""
    payment.fail("GetPayment", UNAVAILABLE)
    await local_mesh.clock.advance(60)
    for _ in range(200):
        await local_mesh.clock.run(get(REQUEST).code())
        await local_mesh.clock.advance(0.01)
    before, refused = len(payment.calls()), 0
    for _ in range(200):
        call = get(REQUEST)
        assert await local_mesh.clock.run(call.code()) is UNAVAILABLE
        if "throttled" in await call.details():
            refused += 1
            assert (NOT_EXECUTED, "1") in tuple(await call.trailing_metadata())
        await local_mesh.clock.advance(0.01)
    assert 140 <= refused <= 180
    assert len(payment.calls()) - before <= 1.2 * (200 - refused) + 3


async def test_a_service_that_accepts_again_gets_all_its_calls_within_five_seconds(
    local_mesh, payment, get
):
    """One call in five finds out."""
    payment.fail("GetPayment", UNAVAILABLE)
    for _ in range(300):
        await local_mesh.clock.run(get(REQUEST).code())
        await local_mesh.clock.advance(0.02)
    payment.answer("GetPayment", payment_pb2.Payment(id="p-1"))
    for _ in range(250):
        await local_mesh.clock.run(get(REQUEST).code())
        await local_mesh.clock.advance(0.02)
    codes = []
    for _ in range(50):
        codes.append(await local_mesh.clock.run(get(REQUEST).code()))
        await local_mesh.clock.advance(0.02)
    assert codes.count(grpc.StatusCode.OK) >= 48


async def test_mistakes_of_a_service_do_not_throttle_it(local_mesh, payment, get):
    """INTERNAL is a defect of one method; the others may work."""
    payment.fail("GetPayment", grpc.StatusCode.INTERNAL)
    for _ in range(200):
        assert await local_mesh.clock.run(get(REQUEST).code()) is grpc.StatusCode.INTERNAL


async def test_a_service_that_nobody_can_reach_is_tried_once_a_call(local_mesh, payment, get):
    """Another instance could only say the same, and retries are for better times."""
    for instance in payment:
        instance.fault(refuse())
    await local_mesh.clock.run(get(REQUEST).code())
    destination = next(iter(local_mesh.client.destinations))
    async with asyncio.timeout(10):
        while destination.state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            await destination.changed()
    for _ in range(30):
        call = get(REQUEST)
        assert await local_mesh.clock.run(call.code()) is UNAVAILABLE
        assert "failed to connect" in await call.details()
        assert len(call._tried) == 1


async def test_retries_end_where_the_budget_does(local_mesh, payment, get):
    """Ten are saved; with nothing earned, the calls after those have one attempt each."""
    local_mesh.policy("""
        schema: meshrpc.policy/v1
        service: payment
        retry_budget: {ratio: 0%, min_per_second: 0}
    """)
    payment.fail("GetPayment", UNAVAILABLE)
    for _ in range(30):
        await local_mesh.clock.run(get(REQUEST).code())
        await local_mesh.clock.advance(0.2)
    assert len(payment.calls()) == 30 + 10


async def test_a_call_that_came_to_the_wrong_address_goes_on_for_nothing(local_mesh, payment, get):
    """It says nothing of anybody's load, and another instance is there; once for each call."""
    local_mesh.policy("""
        schema: meshrpc.policy/v1
        service: payment
        balancer: round_robin
        outlier: {max_ejected: 0%}
        retry_budget: {ratio: 0%, min_per_second: 0}
    """)
    await local_mesh.clock.run(get(REQUEST).code())
    while control_of(local_mesh).budget.withdraw(local_mesh.clock.now()):
        pass
    payment[1].fail("GetPayment", UNAVAILABLE, trailing_metadata=((NOT_EXECUTED, WRONG_TARGET),))
    for _ in range(30):
        call = get(REQUEST)
        assert await local_mesh.clock.run(call.code()) is OK
    payment.fail("GetPayment", UNAVAILABLE, trailing_metadata=((NOT_EXECUTED, WRONG_TARGET),))
    call = get(REQUEST)
    assert await local_mesh.clock.run(call.code()) is UNAVAILABLE
    assert len(call._tried) == 2


async def test_an_open_circuit_breaker_refuses_at_once(local_mesh, payment, get):
    """Three calls under way are enough here; the fourth is not sent."""
    local_mesh.policy(LIMITED)
    payment.answer("GetPayment", lambda request: local_mesh.clock.sleep(3600))
    calls = [get(REQUEST) for _ in range(3)]
    await payment.received(3)
    refused = get(REQUEST)
    assert await refused.code() is UNAVAILABLE
    assert "circuit breaker is open: 3 calls are under way" in await refused.details()
    assert (NOT_EXECUTED, "1") in tuple(await refused.trailing_metadata())
    for call in calls:
        call.cancel()
    await local_mesh.clock.settle()
    assert control_of(local_mesh).in_flight == 0


@pytest.mark.parametrize("way", ["answered", "failed", "cancelled", "late", "forgotten"])
async def test_every_call_that_ends_makes_room_for_another(local_mesh, payment, get, way):
    """Whatever ended it, and at the end none is counted."""
    local_mesh.policy(LIMITED)
    clock = local_mesh.clock
    if way == "failed":
        payment.fail("GetPayment", grpc.StatusCode.NOT_FOUND)
    elif way != "answered":
        payment.answer("GetPayment", lambda request: clock.sleep(3600))
    stream = local_mesh.channel("payment").unary_stream("/payment.v1.PaymentService/GetPayment")
    for _ in range(4):
        if way == "forgotten":
            call = stream(b"")
            await clock.settle()
            del call
            gc.collect()
        else:
            call = get(REQUEST, timeout=1)
            await clock.settle()
            if way == "cancelled":
                call.cancel()
            if way == "late":
                await clock.advance(1)
            assert await clock.run(call.code()) is not UNAVAILABLE
        await clock.settle()
        await asyncio.sleep(0)
        assert control_of(local_mesh).in_flight == 0


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_a_call_that_grpcio_refuses_is_not_under_way(local_mesh, payment, kind):
    """It raises where it is made, and nobody will ever see it end."""
    channel = local_mesh.channel("payment")
    await ready(channel, 2)
    make = getattr(channel, kind)("/payment.v1.PaymentService/GetPayment")
    with pytest.raises(KeyError):
        make(b"" if kind.startswith("unary") else iter([b""]), compression="none of grpc's")
    gc.collect()
    await local_mesh.clock.settle()
    assert control_of(local_mesh).in_flight == 0


async def test_a_call_that_is_cancelled_before_it_is_tried_again_says_nothing(
    local_mesh, payment, get
):
    """Nobody knows how it would have ended: not the throttle, nor who made it in a handler."""
    middle = meshrpc.Service("middle")
    nested = payment_pb2_grpc.PaymentServiceStub(middle.channel("payment"))
    served = []

    class Middle(payment_pb2_grpc.PaymentServiceServicer):
        async def GetPayment(self, request, context):
            served.append(request)
            call = nested.GetPayment(request)
            while call._next is None or call._attempt is None:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0)
            call.cancel()
            await context.abort(UNAVAILABLE, "for a reason of its own")

    payment_pb2_grpc.add_PaymentServiceServicer_to_server(Middle(), middle)
    await local_mesh.serve(middle)
    payment.fail("GetPayment", UNAVAILABLE)
    outer = payment_pb2_grpc.PaymentServiceStub(local_mesh.channel("middle"))
    assert await local_mesh.clock.run(outer.GetPayment(REQUEST).code()) is UNAVAILABLE
    assert len(served) == 3


async def test_attempts_of_a_chain_are_made_where_the_fault_is(local_mesh, payment):
    """Payment fails: what calls it tries again, and who calls that does not."""
    middle = meshrpc.Service("middle")
    nested = payment_pb2_grpc.PaymentServiceStub(middle.channel("payment"))

    class Middle(payment_pb2_grpc.PaymentServiceServicer):
        served = 0

        async def GetPayment(self, request, context):
            Middle.served += 1
            try:
                return await nested.GetPayment(request)
            except grpc.aio.AioRpcError as error:
                await context.abort(UNAVAILABLE, error.details())

    payment_pb2_grpc.add_PaymentServiceServicer_to_server(Middle(), middle)
    await local_mesh.serve(middle)
    payment.fail("GetPayment", UNAVAILABLE)
    outer = payment_pb2_grpc.PaymentServiceStub(local_mesh.channel("middle"))
    call = outer.GetPayment(REQUEST)
    assert await local_mesh.clock.run(call.code()) is UNAVAILABLE
    assert Middle.served == 1
    assert len(payment.calls()) == 3


async def test_a_nested_call_that_reached_nobody_stops_no_retries(local_mesh):
    """Another instance of the caller may well reach somebody."""
    middle = meshrpc.Service("middle")
    nested = payment_pb2_grpc.PaymentServiceStub(middle.channel("payment"))
    served = []

    class Middle(payment_pb2_grpc.PaymentServiceServicer):
        async def GetPayment(self, request, context):
            served.append(request)
            try:
                return await nested.GetPayment(request)
            except grpc.aio.AioRpcError as error:
                await context.abort(UNAVAILABLE, error.details())

    payment_pb2_grpc.add_PaymentServiceServicer_to_server(Middle(), middle)
    await local_mesh.serve(middle)
    outer = payment_pb2_grpc.PaymentServiceStub(local_mesh.channel("middle"))
    call = outer.GetPayment(REQUEST)
    assert await local_mesh.clock.run(call.code()) is UNAVAILABLE
    assert len(served) == 3


async def refused_of_later_calls(local_mesh, get, calls=200):
    """Make calls at 100 a second, twice as many, and return how many of the later half stayed here."""
    for _ in range(calls):
        await local_mesh.clock.run(get(REQUEST).code())
        await local_mesh.clock.advance(0.01)
    refused = 0
    for _ in range(calls):
        call = get(REQUEST)
        await local_mesh.clock.run(call.code())
        refused += "throttled" in await call.details()
        await local_mesh.clock.advance(0.01)
    return refused


async def test_callers_hold_back_from_a_service_that_says_it_is_overloaded(
    local_mesh, payment, get
):
    """Refusals for overload count as calls that were not accepted, and against no instance."""
    payment.fail("GetPayment", EXHAUSTED, "overloaded: waited 25 ms", ((NOT_EXECUTED, "1"),))
    await local_mesh.clock.advance(60)
    assert 120 <= await refused_of_later_calls(local_mesh, get) <= 180
    endpoints = next(iter(local_mesh.client.destinations)).endpoints
    assert all(each.health.admission.value == "admitted" for each in endpoints)


async def test_callers_hold_back_from_a_server_that_has_no_room_for_their_calls(
    local_mesh, payment, get
):
    """Grpc cancels them then, without any word."""
    payment.fail("GetPayment", grpc.StatusCode.CANCELLED)
    await local_mesh.clock.advance(60)
    assert 120 <= await refused_of_later_calls(local_mesh, get) <= 180


async def test_a_refusal_for_a_rate_holds_no_other_call_back(local_mesh, payment, get):
    """It is of one key, and the service may have room for all the others."""
    payment.fail("GetPayment", EXHAUSTED, "rate limit 'a' is used up", ((NOT_EXECUTED, "1"),))
    await local_mesh.clock.advance(60)
    assert await refused_of_later_calls(local_mesh, get, calls=60) == 0

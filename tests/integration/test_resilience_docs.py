"""docs/resilience.md as its reader finds it: chains of three services, and what it quotes."""

import asyncio
import logging
import re
from pathlib import Path

import grpc
import pytest

import meshrpc
from meshrpc.testing import refuse
from meshrpc.wire import NOT_EXECUTED, RETRY_PUSHBACK
from services.payment.v1 import payment_pb2, payment_pb2_grpc
from tests.echo import ready

PAGE = (Path(__file__).parents[2] / "docs/resilience.md").read_text()
PAYMENT = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]
REQUEST = payment_pb2.GetPaymentRequest(payment_id="p-1")
ANSWER = payment_pb2.Payment(id="p-1")
STREAM = "/payment.v1.PaymentService/Watch"
OK = grpc.StatusCode.OK
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED


def quoted(said):
    """Return whether the page has this text in its table of what one sees, but for numbers."""
    table = PAGE.partition("## What one sees of it")[2]
    pattern = re.sub(r"\d+(\\\.\d+)?", r"\\d+(\\.\\d+)?", re.escape(said))
    return re.search(f"`{pattern}`", table) is not None


def stub(channel):
    return payment_pb2_grpc.PaymentServiceStub(channel)


@pytest.fixture
async def payment(local_mesh):
    script = await local_mesh.script("payment", PAYMENT, instances=3)
    script.answer("GetPayment", ANSWER)
    return script


@pytest.fixture
async def channel(local_mesh, payment):
    channel = local_mesh.channel("payment")
    await ready(channel, 3)
    return channel


# --- Chains of three services -------------------------------------------------------------


class Served:
    """The calls of a handler: what time each had left, and whether one has ended."""

    def __init__(self):
        self.remaining = []
        self.ended = asyncio.Event()

    def __len__(self):
        return len(self.remaining)

    def begin(self):
        self.remaining.append(meshrpc.current_call().time_remaining())


def _async(channel, served):
    nested = stub(channel)

    async def get(request, context):
        served.begin()
        try:
            return await nested.GetPayment(request)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details())
        finally:
            served.ended.set()

    return get


def _plain(channel, served):
    """A plain `def` handler, which calls on by way of the event loop."""
    get, loop = _async(channel, served), asyncio.get_running_loop()

    class Failed(Exception):
        pass

    class Context:
        async def abort(self, code, details):
            raise Failed(code, details)

    def plain(request, context):
        try:
            return asyncio.run_coroutine_threadsafe(get(request, Context()), loop).result()
        except Failed as error:
            context.abort(*error.args)

    return plain


def _stream(channel, served):
    nested = channel.unary_stream(STREAM)

    async def watch(request, context):
        served.begin()
        try:
            async for message in nested(request):
                yield message
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details())

    return watch


def calling(name, callee, shape):
    """Make a service whose handler, of this shape, calls another; and its calls."""
    service, served = meshrpc.Service(name), Served()
    behavior = shape(service.channel(callee), served)
    if shape is _stream:
        handlers = {"Watch": grpc.unary_stream_rpc_method_handler(behavior)}
    else:
        handlers = {
            "GetPayment": grpc.unary_unary_rpc_method_handler(
                behavior,
                payment_pb2.GetPaymentRequest.FromString,
                payment_pb2.Payment.SerializeToString,
            )
        }
    generic = grpc.method_handlers_generic_handler("payment.v1.PaymentService", handlers)
    service.add_generic_rpc_handlers((generic,))
    return service, served


def failing_stream():
    """Make a service whose stream always fails; and its calls."""
    service, served = meshrpc.Service("leaf"), Served()

    async def watch(request, context):
        served.begin()
        await context.abort(UNAVAILABLE, "out of order")
        yield b""

    handlers = {"Watch": grpc.unary_stream_rpc_method_handler(watch)}
    generic = grpc.method_handlers_generic_handler("payment.v1.PaymentService", handlers)
    service.add_generic_rpc_handlers((generic,))
    return service, served


@pytest.mark.parametrize("shape", [_async, _plain])
async def test_a_chain_of_three_services_tries_only_the_last_one_again(local_mesh, payment, shape):
    """Everybody above it is asked once, in an async handler and in a plain one."""
    payment.fail("GetPayment", UNAVAILABLE, "out of order")
    order, orders = calling("order", "payment", shape)
    shop, shops = calling("shop", "order", shape)
    await local_mesh.serve(order)
    await local_mesh.serve(shop)
    call = stub(local_mesh.channel("shop")).GetPayment(REQUEST)
    assert await local_mesh.clock.run(call.code()) is UNAVAILABLE
    assert await call.details() == "out of order"
    assert (RETRY_PUSHBACK, "-1") in tuple(await call.trailing_metadata())
    assert (len(shops), len(orders), len(payment.calls())) == (1, 1, 3)


async def test_a_chain_of_streams_tries_only_the_last_one_again(local_mesh):
    """As long as none has brought a message, a stream is a call like any other."""
    local_mesh.policy("""
        schema: meshrpc.policy/v1
        service: "*"
        retry: {non_idempotent: [payment.v1.PaymentService/Watch]}
    """)
    leaf, leaves = failing_stream()
    order, orders = calling("order", "leaf", _stream)
    shop, shops = calling("shop", "order", _stream)
    for service in (leaf, order, shop):
        await local_mesh.serve(service)
    call = local_mesh.channel("shop").unary_stream(STREAM)(b"")
    assert await local_mesh.clock.run(call.code()) is UNAVAILABLE
    assert (len(shops), len(orders), len(leaves)) == (1, 1, 3)


async def test_a_nested_call_that_the_circuit_breaker_refused_stops_retries(local_mesh, payment):
    """There is too much to do further down already."""
    local_mesh.policy("""
        schema: meshrpc.policy/v1
        service: payment
        circuit_breaker: {max_requests: 1}
    """)
    payment.answer("GetPayment", lambda request: local_mesh.clock.sleep(3600))
    order, orders = calling("order", "payment", _async)
    await local_mesh.serve(order)
    get = stub(local_mesh.channel("order")).GetPayment
    held = get(REQUEST)
    await payment.received(1)
    call = get(REQUEST)
    assert await local_mesh.clock.run(call.code()) is UNAVAILABLE
    assert "circuit breaker" in await call.details()
    assert len(orders) == 2
    held.cancel()


async def test_nobody_in_a_chain_has_more_time_than_whoever_began_it(local_mesh, payment):
    """Neither an async handler nor a plain one; at its end, all of them have stopped."""
    payment.answer("GetPayment", lambda request: local_mesh.clock.sleep(3600))
    order, orders = calling("order", "payment", _plain)
    shop, shops = calling("shop", "order", _async)
    await local_mesh.serve(order)
    await local_mesh.serve(shop)
    clock = local_mesh.clock
    call = stub(local_mesh.channel("shop")).GetPayment(REQUEST, timeout=2)
    await payment.received(1)
    (last,) = payment.calls()
    for remaining in (*shops.remaining, *orders.remaining, last.time_remaining):
        assert 0 < remaining <= 2.05  # grpc rounds up what it sends
    began = clock.now()
    assert await clock.run(call.code()) is DEADLINE_EXCEEDED
    assert clock.now() - began == pytest.approx(2, abs=0.05)
    await clock.advance(0.1)
    async with asyncio.timeout(10):
        await shops.ended.wait()
        await orders.ended.wait()


# --- What it quotes -----------------------------------------------------------------------


async def test_a_refusal_says_what_the_page_says(local_mesh, payment, channel):
    """By the throttle, then by the circuit breaker; both say that nobody has executed it."""
    get = stub(channel).GetPayment
    payment.fail("GetPayment", UNAVAILABLE)
    for _ in range(60):
        call = get(REQUEST)
        await local_mesh.clock.run(call.code())
        if "throttled" in await call.details():
            break
    assert quoted(await call.details())
    assert (NOT_EXECUTED, "1") in tuple(await call.trailing_metadata())

    await local_mesh.clock.advance(2)
    payment.answer("GetPayment", lambda request: local_mesh.clock.sleep(3600))
    local_mesh.policy(
        "{schema: meshrpc.policy/v1, service: payment, circuit_breaker: {max_requests: 12}}"
    )
    calls = [get(REQUEST) for _ in range(12)]
    refused = get(REQUEST)
    assert await refused.code() is UNAVAILABLE
    assert quoted(await refused.details())
    assert (NOT_EXECUTED, "1") in tuple(await refused.trailing_metadata())
    for call in calls:
        call.cancel()


async def test_what_was_not_sent_in_time_says_what_the_page_says(local_mesh, payment, channel):
    """Its deadline had passed; or nobody was ready."""
    late = stub(channel).GetPayment(REQUEST, timeout=0)
    assert await late.code() is DEADLINE_EXCEEDED
    assert quoted(await late.details())

    for instance in payment:
        instance.fault(refuse())
    async with asyncio.timeout(10):
        while channel.get_state() is grpc.ChannelConnectivity.READY:
            await channel.bound().changed()
    call = stub(channel).GetPayment(REQUEST, timeout=5, wait_for_ready=True)
    assert await local_mesh.clock.run(call.code()) is DEADLINE_EXCEEDED
    assert quoted(await call.details())
    call = stub(channel).GetPayment(REQUEST)
    assert await local_mesh.clock.run(call.code()) is UNAVAILABLE
    assert (await call.details()).startswith("failed to connect to all addresses")


async def test_a_call_to_nobody_says_what_the_page_says(local_mesh):
    """No instance is registered."""
    call = stub(local_mesh.channel("payment")).GetPayment(REQUEST)
    assert await local_mesh.clock.run(call.code()) is UNAVAILABLE
    assert quoted(await call.details())


async def test_the_log_says_what_the_page_says(local_mesh, payment, channel, caplog):
    """One line for an ejection, as a warning, and one for the return."""
    caplog.set_level(logging.INFO, "meshrpc.client")
    local_mesh.policy("{schema: meshrpc.policy/v1, service: payment, balancer: round_robin}")
    get = stub(channel).GetPayment
    payment[2].fail("GetPayment", UNAVAILABLE)
    for _ in range(20):
        assert await local_mesh.clock.run(get(REQUEST).code()) is OK
    payment[2].answer("GetPayment", ANSWER)
    await local_mesh.clock.advance(5)
    await local_mesh.clock.run(get(REQUEST).code())
    ejected, back = caplog.records
    assert (ejected.levelname, back.levelname) == ("WARNING", "INFO")
    assert quoted(ejected.getMessage())
    assert quoted(back.getMessage())


# --- Its numbers, and what follows a policy -----------------------------------------------


@pytest.mark.parametrize(("rate", "refuses"), [(12, False), (20, True)])
async def test_a_caller_with_few_calls_is_not_throttled(
    local_mesh, payment, channel, rate, refuses
):
    """Fewer than 13 a second say too little, however badly they go."""
    payment.fail("GetPayment", UNAVAILABLE)
    get, details = stub(channel).GetPayment, []
    for _ in range(6 * rate):
        call = get(REQUEST)
        await local_mesh.clock.advance(1 / rate)
        await local_mesh.clock.run(call.code())
        details.append(await call.details())
    assert any("throttled" in each for each in details) is refuses


@pytest.mark.parametrize(("rate", "attempts"), [(20, 1.15), (100, 1.11)])
async def test_retries_add_to_a_failing_service_what_the_page_says(
    local_mesh, payment, channel, rate, attempts
):
    """Once those are spent that were saved, and with no throttle to take calls away."""
    local_mesh.policy("{schema: meshrpc.policy/v1, service: payment, throttle: {max_rejected: 0%}}")
    payment.fail("GetPayment", UNAVAILABLE)
    get, clock = stub(channel).GetPayment, local_mesh.clock
    for _ in range(10):
        await clock.run(get(REQUEST).code())
    seen, calls = len(payment.calls()), []
    for _ in range(4 * rate):
        calls.append(get(REQUEST))
        await clock.advance(1 / rate)
    for call in calls:
        assert await clock.run(call.code()) is UNAVAILABLE
    assert (len(payment.calls()) - seen) / len(calls) == pytest.approx(attempts, abs=0.03)


async def test_the_throttle_follows_a_policy_that_comes_later(local_mesh, payment, channel):
    """It is turned off for a channel in use, while everything fails."""
    payment.fail("GetPayment", UNAVAILABLE)
    get = stub(channel).GetPayment

    async def refusals():
        details = []
        for _ in range(60):
            call = get(REQUEST)
            await local_mesh.clock.run(call.code())
            details.append(await call.details())
        return sum("throttled" in each for each in details)

    assert await refusals() > 10
    local_mesh.policy("{schema: meshrpc.policy/v1, service: payment, throttle: {max_rejected: 0%}}")
    assert await refusals() == 0


async def test_the_circuit_breaker_follows_a_policy_that_comes_later(local_mesh, payment, channel):
    """A lower limit lets go on what is under way; a higher one lets in more."""
    document = "{schema: meshrpc.policy/v1, service: payment, circuit_breaker: {max_requests: %d}}"
    payment.answer("GetPayment", lambda request: local_mesh.clock.sleep(3600))
    get = stub(channel).GetPayment
    calls = [get(REQUEST) for _ in range(3)]
    local_mesh.policy(document % 2)
    assert "circuit breaker" in await get(REQUEST).details()
    local_mesh.policy(document % 4)
    calls.append(get(REQUEST))
    await payment.received(4)
    assert not any(call.done() for call in calls)
    for call in calls:
        call.cancel()


async def test_hedging_follows_a_policy_that_comes_later(local_mesh, payment, channel):
    """It begins once twenty calls were answered, and ends with the policy."""
    document = "{schema: meshrpc.policy/v1, service: payment, balancer: round_robin, timeout: 9s%s}"
    get, clock = stub(channel).GetPayment, local_mesh.clock
    local_mesh.policy(document % ", hedge: {max_extra: 100%}")
    assert [await clock.run(get(REQUEST).code()) for _ in range(20)] == [OK] * 20
    payment[1].answer("GetPayment", lambda request: clock.sleep(3600))
    began = clock.now()
    assert [await clock.run(get(REQUEST).code()) for _ in range(3)] == [OK] * 3
    assert clock.now() - began < 1
    local_mesh.policy(document % "")
    codes = [await clock.run(get(REQUEST).code()) for _ in range(3)]
    assert codes.count(DEADLINE_EXCEEDED) == 1

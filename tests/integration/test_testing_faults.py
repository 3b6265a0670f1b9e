"""Faults in front of instances: what calls through the mesh's channels come to."""

import asyncio
import socket

import grpc
import pytest

import meshrpc
from meshrpc.testing import blackhole, delay, drop, flap, refuse
from meshrpc.testing.faults import timeline
from meshrpc.testing.proxy import Proxy
from services.payment.v1 import payment_pb2, payment_pb2_grpc

PAYMENT = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
OK = grpc.StatusCode.OK
NO_RETRIES = "{schema: meshrpc.policy/v1, service: payment, retry: {attempts: 1}}"


@pytest.fixture
def stub(local_mesh):
    local_mesh.policy(NO_RETRIES)
    return payment_pb2_grpc.PaymentServiceStub(local_mesh.channel("payment"))


async def start(mesh, stub, instances=1):
    """Start instances that answer, with the test's channel connected to all of them."""
    payment = await mesh.script("payment", PAYMENT, instances=instances)
    payment.answer("Charge", payment_pb2.Payment(id="paid"))
    await charge(stub)
    for instance in payment:
        await instance.connected()
    return payment


def charge(stub, timeout=30):
    return stub.Charge(payment_pb2.ChargeRequest(), timeout=timeout)


async def reaches(address):
    """Whether somebody accepts a connection there."""
    try:
        _, writer = await asyncio.open_connection(*address.split(":"))
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def test_refused_is_refused_until_healed(local_mesh, stub):
    """The port is closed and connections reset; healed, the same port answers again."""
    payment = await start(local_mesh, stub)
    address = payment[1].address
    payment[1].fault(refuse())
    call = charge(stub)
    assert await call.code() is UNAVAILABLE
    assert not await reaches(address)
    assert "Connection refused" in await charge(stub).details()
    payment[1].heal()
    assert payment[1].address == address
    assert await reaches(address)
    await payment[1].connected()
    assert (await charge(stub)).id == "paid"


async def test_refusing_breaks_calls_under_way(local_mesh, stub):
    """A call that was being handled ends with UNAVAILABLE."""
    payment = await start(local_mesh, stub)
    payment.answer("Charge", lambda request: asyncio.Event().wait())
    call = charge(stub)
    await payment.received(2)
    payment[1].fault(refuse())
    assert await call.code() is UNAVAILABLE


async def test_dropped_connections_break_when_they_are_used(local_mesh, stub):
    """The call is reset, and did not arrive; connections are still accepted."""
    payment = await start(local_mesh, stub)
    payment[1].fault(drop())
    call = charge(stub)
    assert await call.code() is UNAVAILABLE
    assert "refused" not in await call.details()
    assert await reaches(payment[1].address)
    assert len(payment.calls()) == 1
    payment[1].heal()
    await payment[1].connected()
    assert await charge(stub).code() is OK


async def test_in_a_blackhole_a_call_waits_for_its_deadline(local_mesh, stub):
    """Nothing comes through until then, and nothing breaks; healed, what was sent arrives."""
    payment = await start(local_mesh, stub)
    payment[1].fault(blackhole())
    lost, saved = charge(stub, timeout=5), charge(stub, timeout=20)
    await local_mesh.clock.advance(5)
    assert await lost.code() is DEADLINE_EXCEEDED
    assert len(payment.calls()) == 1
    assert not saved.done()
    payment[1].heal()
    assert (await saved).id == "paid"


async def test_in_a_blackhole_answers_are_lost_too(local_mesh, stub):
    """A call that had arrived is not answered."""
    payment = await start(local_mesh, stub)
    answer = asyncio.Event()

    async def later(request):
        await answer.wait()
        return payment_pb2.Payment()

    payment.answer("Charge", later)
    call = charge(stub, timeout=5)
    await payment.received(2)
    payment[1].fault(blackhole())
    answer.set()
    await local_mesh.clock.advance(5.1)
    assert await call.code() is DEADLINE_EXCEEDED


async def test_delay_holds_each_direction_for_so_long_on_the_clock(local_mesh, stub):
    """Half a second there and half a second back; then the answer is there."""
    payment = await start(local_mesh, stub)
    payment[1].fault(delay(0.5))
    call = charge(stub)
    await local_mesh.clock.advance(0.49)
    assert len(payment.calls()) == 1
    await local_mesh.clock.advance(0.02)
    assert len(payment.calls()) == 2
    await local_mesh.clock.advance(0.48)
    assert not call.done()
    await local_mesh.clock.advance(0.02)
    assert (await call).id == "paid"


async def test_delayed_longer_than_the_deadline_a_call_is_late(local_mesh, stub):
    """`run` goes no further than the deadline."""
    payment = await start(local_mesh, stub)
    payment[1].fault(delay(3))
    started = local_mesh.clock.now()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await local_mesh.clock.run(charge(stub, timeout=4))
    assert caught.value.code() is DEADLINE_EXCEEDED
    assert local_mesh.clock.now() - started == pytest.approx(4)


async def test_the_clock_knows_what_is_on_its_way_and_what_a_fault_holds(local_mesh, stub):
    """A call that its instance has not got yet is waited for, unless a fault keeps it away."""
    payment = await start(local_mesh, stub)
    traffic = local_mesh.clock.traffic
    await local_mesh.clock.settle()
    assert not traffic.is_under_way()
    payment.answer("Charge", lambda request: local_mesh.clock.sleep(3600))
    call = charge(stub)
    assert traffic.is_busy()
    await payment.received(2)
    assert traffic.is_under_way()
    assert not traffic.is_busy()
    payment[1].fault(blackhole())
    held = charge(stub)
    assert not traffic.is_busy()
    payment[1].heal()
    assert traffic.is_busy()
    await payment.received(3)
    call.cancel()
    held.cancel()


async def test_what_a_delay_held_arrives_when_it_is_healed(local_mesh, stub):
    """At once, and before anything that is sent later."""
    payment = await start(local_mesh, stub)
    payment[1].fault(delay(60))
    held = charge(stub, timeout=100)
    await local_mesh.clock.advance(1)
    payment[1].heal()
    assert await held.code() is OK
    assert await charge(stub).code() is OK


async def test_one_bad_instance_costs_no_call_when_calls_are_retried(local_mesh, stub):
    """With the default policy, GetPayment goes elsewhere; each fault is one instance's own."""
    payment = await start(local_mesh, stub, instances=3)
    payment.answer("GetPayment", payment_pb2.Payment(id="found"))
    local_mesh.policy("{schema: meshrpc.policy/v1, service: payment}")
    payment[1].fault(refuse())
    payment[2].fault(drop())
    for _ in range(10):
        call = stub.GetPayment(payment_pb2.GetPaymentRequest(), timeout=10)
        assert (await local_mesh.clock.run(call)).id == "found"
        assert call.peer().id == "payment-3"


async def test_flapping_comes_and_goes_on_the_clock(local_mesh, stub):
    """Every five seconds the port closes, and opens again."""
    payment = await start(local_mesh, stub)
    payment[1].fault(flap(refuse(), every=5))
    seen = []
    for _ in range(6):
        seen.append(await reaches(payment[1].address))
        await local_mesh.clock.advance(5)
    assert seen == [False, True] * 3
    payment[1].heal()
    await local_mesh.clock.advance(5)
    assert await reaches(payment[1].address)


async def test_a_script_of_faults_is_followed_step_by_step(local_mesh, stub):
    """Each holds for its time, and after the last there is none."""
    payment = await start(local_mesh, stub)
    payment[1].fault([(refuse(), 5.0), (None, 2.0), (refuse(), 1.0)])
    seen = []
    for _ in range(9):
        seen.append(await reaches(payment[1].address))
        await local_mesh.clock.advance(1)
    assert seen == [False] * 5 + [True] * 2 + [False] + [True]


async def test_a_new_fault_replaces_the_one_before(local_mesh, stub):
    """Also a script that was not over."""
    payment = await start(local_mesh, stub)
    payment[1].fault(flap(refuse(), every=1))
    payment[1].fault(blackhole())
    await local_mesh.clock.advance(0.5)
    assert await reaches(payment[1].address)
    await local_mesh.clock.advance(0.6)
    assert "Blackhole" in repr(payment[1])


class Payments(payment_pb2_grpc.PaymentServiceServicer):
    async def Charge(self, request, context):
        return payment_pb2.Payment(id="real")


async def test_a_service_of_the_users_own_has_faults_too(local_mesh, stub):
    """It is behind a proxy like any other instance."""
    service = meshrpc.Service("payment")
    payment_pb2_grpc.add_PaymentServiceServicer_to_server(Payments(), service)
    served = await local_mesh.serve(service)
    assert (await charge(stub)).id == "real"
    served.fault(refuse())
    assert await charge(stub).code() is UNAVAILABLE
    served.heal()
    await served.connected()
    assert (await charge(stub)).id == "real"


async def test_a_stop_that_nobody_hears_of_ends_all_the_same(local_mesh, stub):
    """Behind a blackhole the connections stay open; leaving does not wait for them for ever."""
    payment = await start(local_mesh, stub)
    payment[1].fault(blackhole())
    async with asyncio.timeout(15):
        await payment[1].stop()
    assert not payment[1].is_running


async def test_a_connection_reset_as_soon_as_it_is_accepted_leaves_no_socket(virtual_clock):
    """Before anything could be done for it: its caller sees it end at once all the same."""
    proxy = Proxy(virtual_clock, lambda: None)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as caller:
        proxy._accept()
        await proxy.close()
        assert caller.recv(1) == b""


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (refuse, r"not <function refuse .*write refuse\(...\)"),
        ([refuse()], r"a step of a script is \(fault or None, seconds\), not Refuse"),
        ([(flap(refuse(), every=1), 5)], "not Flap"),
        ("refuse", "a step of a script"),
        (5, "a fault is refuse"),
        (None, "heal"),
    ],
)
async def test_what_is_no_fault_is_refused_at_once(local_mesh, stub, script, message):
    """With the faults that there are."""
    payment = await local_mesh.script("payment", PAYMENT)
    with pytest.raises(TypeError, match=message):
        payment[1].fault(script)


def test_durations_are_more_than_nothing():
    """A flap or a step of no time would turn for ever."""
    with pytest.raises(ValueError, match="a delay is more than 0 seconds, not 0"):
        delay(0)
    with pytest.raises(ValueError, match="every is more than 0 seconds"):
        flap(refuse(), every=-1)
    with pytest.raises(ValueError, match="a duration is more than 0"):
        timeline([(refuse(), 0)])

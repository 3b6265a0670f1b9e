"""Instances that fail more than they should, as their callers see them: on a virtual clock."""

import asyncio
import logging

import grpc
import pytest

import meshrpc
from meshrpc.resilience.health import Admission
from meshrpc.testing import Failure, refuse
from services.payment.v1 import payment_pb2, payment_pb2_grpc
from tests.echo import ready

PAYMENT = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]
REQUEST = payment_pb2.GetPaymentRequest(payment_id="p-1")
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

ROUND_ROBIN = """
    schema: meshrpc.policy/v1
    service: payment
    balancer: round_robin
    slow_start: {window: 1ms}
"""


class Payment:
    """Four scripted instances of payment, and how a test calls them."""

    def __init__(self, mesh, script):
        self.mesh = mesh
        self.script = script
        self.channel = mesh.channel("payment")
        self._get = payment_pb2_grpc.PaymentServiceStub(self.channel).GetPayment

    async def call(self, count=1, **options):
        """Make calls one after another; return their status codes."""
        codes = []
        for _ in range(count):
            call = self._get(REQUEST, **options)
            codes.append(await self.mesh.clock.run(call.code()))
        return codes

    async def where(self, count, **options):
        """Make calls, and return how many each instance got."""
        before = [len(instance.calls()) for instance in self.script]
        await self.call(count, **options)
        return [
            len(instance.calls()) - seen for instance, seen in zip(self.script, before, strict=True)
        ]

    def health(self, number):
        destination = next(iter(self.mesh.client.destinations))
        return next(each.health for each in destination.endpoints if each.id == f"payment-{number}")


@pytest.fixture
async def payment(local_mesh):
    script = await local_mesh.script("payment", PAYMENT, instances=4)
    script.answer("GetPayment", payment_pb2.Payment(id="p-1"))
    local_mesh.policy(ROUND_ROBIN)
    payment = Payment(local_mesh, script)
    await ready(payment.channel, 4)
    return payment


async def test_an_instance_that_fails_five_times_in_a_row_gets_no_more_calls(payment, caplog):
    """Its callers see nothing of it, and the log tells once."""
    caplog.set_level(logging.INFO, "meshrpc.client")
    payment.script[2].fail("GetPayment", UNAVAILABLE)
    assert await payment.call(40) == [grpc.StatusCode.OK] * 40
    assert len(payment.script[2].calls()) == 5
    assert [record.getMessage().partition(" for ")[0] for record in caplog.records] == [
        "instance payment-2 of payment is ejected"
    ]
    assert "5 failures in a row" in caplog.text


async def test_an_ejected_instance_comes_back_by_one_call(payment, caplog):
    """After five seconds at most one call goes there; it is answered, and others follow."""
    caplog.set_level(logging.INFO, "meshrpc.client")
    payment.script[2].fail("GetPayment", UNAVAILABLE)
    await payment.call(40)
    payment.script[2].answer("GetPayment", payment_pb2.Payment(id="p-1"))
    await payment.mesh.clock.advance(3.9)
    assert (await payment.where(8))[1] == 0
    await payment.mesh.clock.advance(1.2)
    assert payment.health(2).admission is Admission.PROBATION
    assert (await payment.where(1)) == [0, 1, 0, 0]
    assert payment.health(2).admission is Admission.ADMITTED
    assert "instance payment-2 of payment is back from its ejection" in caplog.text
    await payment.mesh.clock.advance(1)
    assert (await payment.where(8))[1] == 2


async def test_a_probe_that_fails_is_not_seen_by_its_caller_and_ejects_for_longer(payment):
    """The call that was the probe is tried elsewhere; the next one comes after ten seconds."""
    payment.script[2].fail("GetPayment", UNAVAILABLE)
    await payment.call(40)
    await payment.mesh.clock.advance(5.1)
    before = len(payment.script[2].calls())
    assert await payment.call(20) == [grpc.StatusCode.OK] * 20
    assert len(payment.script[2].calls()) == before + 1
    await payment.mesh.clock.advance(8.9)
    assert (await payment.where(8))[1] == 0
    await payment.mesh.clock.advance(1.2)
    assert (await payment.where(8))[1] == 1


async def test_only_one_probe_is_under_way_at_a_time(payment):
    """Others go elsewhere until it is answered."""
    payment.script[2].fail("GetPayment", UNAVAILABLE)
    await payment.call(40)
    await payment.mesh.clock.advance(5.1)
    clock = payment.mesh.clock

    async def slowly(request):
        await clock.sleep(1)
        return payment_pb2.Payment(id="p-1")

    payment.script[2].answer("GetPayment", slowly)
    before = len(payment.script[2].calls())
    calls = [payment._get(REQUEST) for _ in range(20)]
    await payment.script[2].received(before + 1)
    assert [await clock.run(call.code()) for call in calls] == [grpc.StatusCode.OK] * 20
    assert len(payment.script[2].calls()) == before + 1


async def test_a_late_answer_from_before_an_ejection_is_not_taken_for_that_of_the_probe(payment):
    """The call hung while the instance was ejected and its time served; then it fails."""
    clock = payment.mesh.clock
    go_on, answer = asyncio.Event(), asyncio.Event()

    async def hang(request):
        await go_on.wait()
        return Failure(grpc.StatusCode.INTERNAL, "late")

    async def probed(request):
        await answer.wait()
        return payment_pb2.Payment(id="p-1")

    refusal = Failure(UNAVAILABLE, "no")
    payment.script[2].answer("GetPayment", hang, *[refusal] * 5, probed)
    late = [payment._get(REQUEST) for _ in range(4)]  # one of them goes there
    await payment.script[2].received(1)
    await payment.call(40)
    assert payment.health(2).admission is Admission.EJECTED
    await clock.advance(5.1)
    probe = payment._get(REQUEST)
    await payment.script[2].received(7)
    go_on.set()
    assert grpc.StatusCode.INTERNAL in [await clock.run(call.code()) for call in late]
    assert payment.health(2).admission is Admission.PROBING
    answer.set()
    assert await clock.run(probe.code()) is grpc.StatusCode.OK
    assert payment.health(2).admission is Admission.ADMITTED


async def test_a_probe_that_its_user_cancels_is_followed_by_another(payment):
    """It says nothing, and must not leave the instance waiting for ever."""
    payment.script[2].fail("GetPayment", UNAVAILABLE)
    await payment.call(40)
    await payment.mesh.clock.advance(5.1)
    clock = payment.mesh.clock

    async def slowly(request):
        await clock.sleep(60)
        return payment_pb2.Payment(id="p-1")

    payment.script[2].answer("GetPayment", slowly)
    probe = payment._get(REQUEST)
    assert payment.health(2).admission is Admission.PROBING
    await clock.settle()
    probe.cancel()
    await clock.settle()
    assert payment.health(2).admission is Admission.PROBATION
    payment.script[2].answer("GetPayment", payment_pb2.Payment(id="p-1"))
    assert (await payment.where(1)) == [0, 1, 0, 0]
    assert payment.health(2).admission is Admission.ADMITTED


async def test_a_call_that_must_not_be_repeated_is_a_probe_only_for_want_of_another(payment):
    """For a second the instance waits for one that may."""
    payment.script[2].fail("GetPayment", UNAVAILABLE)
    await payment.call(40)
    payment.script[2].answer("GetPayment", payment_pb2.Payment(id="p-1"))
    await payment.mesh.clock.advance(5.0)
    assert payment.health(2).admission is Admission.PROBATION
    with meshrpc.call_options(retry=False):
        assert (await payment.where(4))[1] == 0
        await payment.mesh.clock.advance(1.1)
        assert (await payment.where(1))[1] == 1
    assert payment.health(2).admission is Admission.ADMITTED


async def test_one_of_two_that_fail_at_the_same_time_is_kept(payment):
    """Ten per cent of four is nobody, but one may always go, and no more than that."""
    for number in (2, 3):
        payment.script[number].fail("GetPayment", UNAVAILABLE)
    await payment.call(60)
    ejected = [payment.health(number).admission is Admission.EJECTED for number in (1, 2, 3, 4)]
    assert sum(ejected) == 1
    assert not ejected[0]
    assert not ejected[3]


async def test_when_all_fail_nobody_is_an_outlier(payment):
    """Whoever works first is asked in its turn; one that was ejected comes back with its probe."""
    payment.script.fail("GetPayment", UNAVAILABLE)
    for _ in range(120):
        await payment.call()
        await payment.mesh.clock.advance(0.1)
    assert {payment.health(number).admission for number in (1, 2, 3, 4)} == {Admission.ADMITTED}


async def test_the_callers_own_mistakes_eject_nobody(payment):
    """However many there are."""
    payment.script.fail("GetPayment", grpc.StatusCode.INVALID_ARGUMENT)
    assert await payment.call(40) == [grpc.StatusCode.INVALID_ARGUMENT] * 40
    assert {payment.health(number).admission for number in (1, 2, 3, 4)} == {Admission.ADMITTED}


async def test_the_only_instance_of_a_subset_is_never_missing_from_it(payment):
    """Ejected or not, calls that must go there go there."""
    canary = await payment.script.add(version="canary")
    payment.mesh.policy(ROUND_ROBIN + "    subsets: {canary: {version: canary}}\n")
    await canary.connected()
    canary.fail("GetPayment", UNAVAILABLE)
    with meshrpc.call_options(subset="canary"):
        assert await payment.call(12) == [UNAVAILABLE] * 12
        canary.answer("GetPayment", payment_pb2.Payment(id="p-1"))
        assert await payment.call(3) == [grpc.StatusCode.OK] * 3


async def test_an_instance_that_left_while_ejected_takes_its_ejection_along(payment):
    """Another one may be ejected then, and leaving the mesh ends the timer."""
    payment.script[2].fail("GetPayment", UNAVAILABLE)
    await payment.call(40)
    await payment.mesh.clock.run(payment.script[2].stop())
    payment.script[3].fail("GetPayment", UNAVAILABLE)
    await payment.call(40)
    assert payment.health(3).admission is Admission.EJECTED


async def test_an_instance_whose_connection_broke_under_calls_comes_back_by_one_call(payment):
    """It had failed; whether it works now, one call finds out."""
    clock, broken = payment.mesh.clock, payment.script[2]

    async def never(request):
        await clock.sleep(3600)

    broken.answer("GetPayment", never)
    calls = [payment._get(REQUEST) for _ in range(8)]
    await broken.received(2)
    broken.fault(refuse())
    assert [await clock.run(call.code()) for call in calls] == [grpc.StatusCode.OK] * 8
    broken.answer("GetPayment", payment_pb2.Payment(id="p-1"))
    broken.heal()
    async with asyncio.timeout(10):
        while payment.health(2).admission is not Admission.PROBATION:
            await payment.channel.bound().changed()
    assert (await payment.where(1)) == [0, 1, 0, 0]
    assert payment.health(2).admission is Admission.ADMITTED


async def test_an_instance_that_is_back_gets_a_tenth_of_its_share_at_first(local_mesh):
    """And all of it after thirty seconds."""
    script = await local_mesh.script("payment", PAYMENT, instances=2)
    script.answer("GetPayment", payment_pb2.Payment(id="p-1"))
    local_mesh.policy(ROUND_ROBIN.replace("slow_start: {window: 1ms}", ""))
    payment = Payment(local_mesh, script)
    await payment.call(2)
    added = await script.add()
    await added.connected()
    early = (await payment.where(300))[2]
    assert 1 <= early <= 30  # 10 of its 100, by chance
    await local_mesh.clock.advance(15)
    assert 30 <= (await payment.where(300))[2] <= 80  # 55
    await local_mesh.clock.advance(15.1)
    assert (await payment.where(300))[2] == 100

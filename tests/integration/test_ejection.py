"""Instances that fail more than they should, as their callers see them: on a virtual clock."""

import asyncio
import logging

import grpc
import pytest

import meshrpc
from meshrpc.client import probes
from meshrpc.policy.model import Outlier
from meshrpc.resilience.health import Admission
from meshrpc.testing import Failure, refuse
from services.payment.v1 import payment_pb2, payment_pb2_grpc
from tests import echo
from tests.echo import MIRROR, PLAIN, EchoServer, failing, policy, ready

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
    assert "instance payment-2 of payment is back" in caplog.text
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
    assert (await payment.where(8))[1] == 0  # a caller that cancels what hangs is not drawn there
    await clock.advance(1)
    assert (await payment.where(1)) == [0, 1, 0, 0]
    assert payment.health(2).admission is Admission.ADMITTED


async def test_a_probe_that_could_not_be_sent_is_followed_by_another(payment):
    """Grpcio refuses the call; the instance must not wait for its end."""
    payment.script[2].fail("GetPayment", UNAVAILABLE)
    await payment.call(40)
    payment.script[2].answer("GetPayment", payment_pb2.Payment(id="p-1"))
    await payment.mesh.clock.advance(5.1)
    with pytest.raises(KeyError):
        payment._get(REQUEST, compression="none of grpc's")
    assert payment.health(2).admission is Admission.PROBATION
    await payment.mesh.clock.advance(1)
    assert (await payment.where(1)) == [0, 1, 0, 0]
    assert payment.health(2).admission is Admission.ADMITTED


async def test_a_policy_that_ejects_for_less_time_ends_what_lasts_longer(payment):
    """Also what began before it came."""
    payment.mesh.policy(ROUND_ROBIN + "    outlier: {base_ejection: 5m}\n")
    payment.script[2].fail("GetPayment", UNAVAILABLE)
    await payment.call(40)
    await payment.mesh.clock.advance(6)
    assert payment.health(2).admission is Admission.EJECTED
    payment.mesh.policy(ROUND_ROBIN + "    outlier: {base_ejection: 5s, max_ejection: 5s}\n")
    await payment.mesh.clock.advance(5.1)
    assert payment.health(2).admission is Admission.PROBATION


async def test_a_stream_that_was_a_probe_need_not_end_for_its_instance_to_be_back(
    mesh, registry, monkeypatch
):
    """Its first message is an answer; a service of long streams would never have another."""
    monkeypatch.setattr(probes, "PATIENCE", 0.0)
    outlier = Outlier(consecutive_failures=1, base_ejection=0.05)
    policy(mesh, balancer=echo.ROUND_ROBIN, outlier=outlier)
    async with EchoServer("good") as good, EchoServer("bad", failing()) as bad:
        await registry.register(good.instance)
        await registry.register(bad.instance)
        channel = mesh.channel("echo")
        await ready(channel, 2)
        mirror, destination = channel.stream_stream(MIRROR), channel.bound()
        health = next(each.health for each in destination.endpoints if each.id == "bad")
        for _ in range(2):
            await channel.unary_unary(PLAIN)(b"").code()
        bad.script = None
        async with asyncio.timeout(5):
            while health.admission is not Admission.PROBATION:
                await destination.changed()
        stream = mirror()
        await stream.write(b"1")
        assert stream.peer().id == "bad"
        assert health.admission is Admission.PROBING
        assert await stream.read() == b"1"
        assert health.admission is Admission.ADMITTED
        stream.cancel()


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


@pytest.mark.parametrize("more", ["", "hash_key: field.payment_id"])
async def test_an_instance_that_is_back_gets_a_tenth_of_its_share_at_first(local_mesh, more):
    """And all of it after thirty seconds; a key that its balancer does not go by makes no difference."""
    script = await local_mesh.script("payment", PAYMENT, instances=2)
    script.answer("GetPayment", payment_pb2.Payment(id="p-1"))
    local_mesh.policy(ROUND_ROBIN.replace("slow_start: {window: 1ms}", more))
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


async def test_a_shorter_slow_start_is_shorter_at_once(local_mesh):
    """Also for who is in a longer one: a window by mistake of hours is mended by another policy."""
    script = await local_mesh.script("payment", PAYMENT, instances=2)
    script.answer("GetPayment", payment_pb2.Payment(id="p-1"))
    local_mesh.policy(ROUND_ROBIN.replace("1ms", "10h"))
    payment = Payment(local_mesh, script)
    await payment.call(2)
    added = await script.add()
    await added.connected()
    await local_mesh.clock.advance(60)
    local_mesh.policy(ROUND_ROBIN.replace("1ms", "30s"))
    await local_mesh.clock.advance(30.1)
    assert (await payment.where(30))[2] == 10


async def test_the_last_one_of_before_is_not_left_with_all_the_calls(local_mesh):
    """In a rolling restart all others are new, and it could not bear their load."""
    script = await local_mesh.script("payment", PAYMENT)
    script.answer("GetPayment", payment_pb2.Payment(id="p-1"))
    local_mesh.policy(ROUND_ROBIN.replace("slow_start: {window: 1ms}", ""))
    payment = Payment(local_mesh, script)
    await payment.call(2)
    for _ in range(3):
        added = await script.add()
        await added.connected()
    assert 75 <= (await payment.where(300))[0] <= 130  # 100: a third more than its share


async def test_a_probe_that_fails_while_nobody_more_may_be_ejected_draws_no_calls(payment):
    """The first of two bad ones is ejected; the other gets its share, and not every call."""
    payment.script[2].fail("GetPayment", UNAVAILABLE)
    await payment.call(40)
    payment.script[3].fail("GetPayment", UNAVAILABLE)
    destination, now = payment.channel.bound(), payment.mesh.clock.now()
    while not payment.health(3).consecutive:
        await payment.call()
    assert destination.outliers.on_reconnected(payment.health(3), now)
    destination._rebuild()
    assert payment.health(3).admission is Admission.PROBATION
    assert (await payment.where(30))[2] <= 12  # 10: its share of those that are left

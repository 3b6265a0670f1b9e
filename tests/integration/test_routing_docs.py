"""docs/routing.md, docs/balancing.md and the README's canary, as their reader applies them."""

import asyncio
import math
import re
from collections import Counter
from pathlib import Path

import grpc
import pytest
import yaml

import meshrpc
from meshrpc.control.client import ControlClient
from meshrpc.control.server import ControlServer
from meshrpc.policy.model import BalancerKind
from meshrpc.testing import LocalMesh
from services.payment.v1 import payment_pb2, payment_pb2_grpc
from tests.echo import EchoServer, ready

ROOT = Path(__file__).parents[2]
ROUTING = (ROOT / "docs/routing.md").read_text()
BALANCING = (ROOT / "docs/balancing.md").read_text()
PAYMENT = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]
REQUEST = payment_pb2.GetPaymentRequest(payment_id="p-1")
ANSWER = payment_pb2.Payment(id="p-1")
BETA = (("x-group", "beta"),)


def documents(page):
    """Every policy document of a page, in order."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


TESTERS, STICKY, MIRROR, FAULT = documents(ROUTING)
KEYS, ZONES = documents(BALANCING)
CANARY = documents((ROOT / "README.md").read_text())[-1]


def split(v1, v2):
    return [{"subset": "v1", "weight": v1}, {"subset": "v2", "weight": v2}]


def stub(channel):
    return payment_pb2_grpc.PaymentServiceStub(channel)


@pytest.fixture
async def payment(local_mesh):
    """Two instances of v1 and one of v2."""
    script = await local_mesh.script("payment", PAYMENT, instances=2, version="v1")
    await script.add(version="v2")
    script.answer("GetPayment", ANSWER)
    return script


@pytest.fixture
async def get(local_mesh, payment):
    """Make a call, with a connection to each of them."""
    channel = local_mesh.channel("payment")
    await ready(channel, 3)
    return stub(channel).GetPayment


@pytest.fixture
def ask(get):
    """Make calls; return how many each version answered."""

    async def ask(number, metadata=()):
        came = Counter()
        for _ in range(number):
            call = get(REQUEST, metadata=metadata)
            await call
            came[call.peer().version] += 1
        return came

    return ask


@pytest.mark.parametrize(
    "document",
    [*documents(ROUTING), *documents(BALANCING), CANARY],
    ids=lambda each: str(len(each)),
)
async def test_every_document_is_carried_out_whole(local_mesh, document):
    """Each is taken, without a warning."""
    assert local_mesh.policy(document) == ()


@pytest.mark.parametrize("document", [TESTERS, CANARY], ids=["page", "readme"])
async def test_beta_users_get_v2_and_one_in_ten_of_the_others(local_mesh, ask, document):
    """Within five standard deviations."""
    local_mesh.policy(document)
    assert await ask(20, BETA) == {"v2": 20}
    came = await ask(300)
    assert abs(came["v2"] - 30) <= 5 * math.sqrt(300 * 0.1 * 0.9)


async def test_a_step_from_a_tenth_to_a_fifth_moves_only_the_users_it_must(local_mesh, ask):
    """Whoever was with v2 stays there."""
    (route,) = STICKY["routes"]
    assert route["split"] == split(80, 20)
    seen = []
    for weights in (90, 10), (80, 20):
        local_mesh.policy(STICKY | {"routes": [route | {"split": split(*weights)}]})
        came = {user: await ask(1, (("x-user", str(user)),)) for user in range(150)}
        seen.append({user for user, versions in came.items() if versions["v2"]})
    assert seen[0] < seen[1]
    assert 3 <= len(seen[0]) <= 33


async def test_what_a_call_says_of_its_subset_wins_over_the_split_alone(local_mesh, ask):
    """The rest of its route holds: here, a fault."""
    local_mesh.policy(TESTERS)
    with meshrpc.call_options(subset="v1"):
        assert await ask(10, BETA) == {"v1": 10}
        abort = {"abort": {"percent": "100%", "code": "ABORTED"}}
        local_mesh.policy(TESTERS | {"routes": [TESTERS["routes"][-1] | {"fault": abort}]})
        with pytest.raises(grpc.aio.AioRpcError, match="fault of route 'everybody'"):
            await ask(1)


async def test_the_share_of_a_version_that_is_gone_goes_to_one_that_has_a_weight(
    local_mesh, ask, payment
):
    """At weight 0 it gets nothing, and the call says which subset is empty."""
    route = TESTERS["routes"][-1]
    local_mesh.policy(TESTERS)
    await local_mesh.clock.run(payment[3].stop())
    assert await ask(50) == {"v1": 50}
    nothing_for_v1 = route | {"split": split(0, 100)}
    local_mesh.policy(TESTERS | {"routes": [nothing_for_v1]})
    with pytest.raises(
        grpc.aio.AioRpcError, match=r"no active instance in subset 'v2' \(version=v2\)"
    ):
        await ask(1)
    local_mesh.policy(TESTERS | {"routes": [nothing_for_v1 | {"fallback": "any"}]})
    assert await ask(10) == {"v1": 10}


async def test_every_twentieth_call_is_copied_and_answered_by_v1(local_mesh, ask, payment):
    """Within five standard deviations; a copy has 15 seconds where its call has no deadline."""
    local_mesh.policy(MIRROR)
    assert await ask(400) == {"v1": 400}
    async with asyncio.timeout(5):
        await payment.received(401)
    copies = payment[3].calls()
    assert abs(len(copies) - 20) <= 5 * math.sqrt(400 * 0.05 * 0.95)
    assert copies[0].time_remaining == pytest.approx(15, abs=0.1)


async def test_a_fault_does_what_the_page_says():
    """A tenth of the calls are late by 400 ms, one in a hundred fails with the text it quotes."""
    async with LocalMesh(name="order") as mesh:
        payment = await mesh.script("payment", PAYMENT)
        payment.answer("Charge", ANSWER)
        await ready(mesh.channel("payment"), 1)
        mesh.policy(FAULT)
        charge, late, errors = stub(mesh.channel("payment")).Charge, 0, Counter()
        for _ in range(400):
            call, began = charge(payment_pb2.ChargeRequest()), mesh.clock.now()
            code = await mesh.clock.run(call.code())
            late += mesh.clock.now() - began == pytest.approx(0.4)
            if code is not grpc.StatusCode.OK:
                errors[code, await call.details()] += 1
        assert abs(late - 40) <= 5 * math.sqrt(400 * 0.1 * 0.9)
        ((code, details),) = errors
        assert code is grpc.StatusCode.UNAVAILABLE
        assert f"`{details}`" in ROUTING
        assert 1 <= errors[code, details] <= 14
        assert len(payment.calls()) == 400 - errors[code, details]


async def test_whoever_has_waited_for_the_channel_follows_the_policy_from_the_first_call():
    """Policy and instances come together from the control service."""
    aborting = 'routes: [{name: all, fault: {abort: {percent: 100%, code: "ABORTED"}}}]'
    document = f"schema: meshrpc.policy/v1\nservice: payment\n{aborting}"
    async with (
        ControlServer("127.0.0.1:0", "127.0.0.1:0") as control,
        ControlClient([control.address], namespace="default") as client,
        EchoServer("a") as server,
        meshrpc.Mesh("shop", control=control.address) as mesh,
        mesh.register("payment", f"127.0.0.1:{server.port}"),
    ):
        await client.apply_policies([document])
        channel = mesh.channel("payment")
        async with asyncio.timeout(5):
            await channel.channel_ready()
        assert await stub(channel).GetPayment(REQUEST).code() is grpc.StatusCode.ABORTED


async def test_each_balancer_of_the_table_carries_calls(local_mesh, ask):
    """And the table has them all."""
    names = re.findall(r"^\| `(\w+)` \|", BALANCING, re.MULTILINE)
    assert set(names) == {kind.value for kind in BalancerKind}
    for name in names:
        local_mesh.policy({"schema": "meshrpc.policy/v1", "service": "payment", "balancer": name})
        assert (await ask(4)).total() == 4


async def test_a_key_has_one_instance_and_no_more_calls_there_than_its_bound(
    local_mesh, payment, get
):
    """1.25 times a third of the calls under way, this one too, rounded up."""
    local_mesh.policy(KEYS)
    metadata = (("x-user", "ann"),)
    for _ in range(10):
        await get(REQUEST, metadata=metadata)
    assert len({each.instance for each in payment.calls()}) == 1

    release = asyncio.Event()

    async def hang(_):
        await release.wait()
        return ANSWER

    payment.answer("GetPayment", hang)
    calls = [get(REQUEST, metadata=metadata) for _ in range(12)]
    held = Counter(call.peer().id for call in calls)
    release.set()
    await asyncio.gather(*calls)
    assert max(held.values()) == math.ceil(1.25 * 12 / 3)


@pytest.mark.parametrize(("zone", "stays"), [("a", 1.0), ("b", 0.5)])
async def test_calls_stay_in_their_zone_as_far_as_its_part_goes(local_mesh, zone, stays):
    """Nine instances in two zones, and as many callers in each: b has a quarter, and needs half."""
    payment = await local_mesh.script("payment", PAYMENT, instances=9, zone="a")
    for _ in range(3):
        await payment.add(zone="b")
    payment.answer("GetPayment", ANSWER)
    local_mesh.policy(ZONES)
    shop = meshrpc.Service("shop", zone=zone)
    channel = shop.channel("payment")
    await local_mesh.serve(shop)
    other = meshrpc.Service("shop", zone="b" if zone == "a" else "a")
    await local_mesh.serve(other)
    await ready(channel, 12)
    local = 0
    for _ in range(200):
        call = stub(channel).GetPayment(REQUEST)
        await call
        local += call.peer().zone == zone
    assert abs(local - 200 * stays) <= 5 * math.sqrt(200 * stays * (1 - stays))

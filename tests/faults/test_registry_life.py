"""What callers notice when instances come, go, die, freeze, or get another's address.

On the embedded registry and on a real Consul, both at the same time. Three processes make 100 calls/s
together, half of which may not be repeated.
"""

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import grpc.aio
import pytest

from meshrpc.registry.consul_watch import QUERIES_PER_SECOND
from meshrpc.registry.instance import State
from meshrpc.registry.registry import LEASE
from tests.faults.lives import WITNESSES, Town, listed, recovered, until
from tests.faults.methods import GET

# Not alone: calls have patience, and what witnesses missed while they stood still is left out.
pytestmark = pytest.mark.process

SHORT_LEASE = 3.0
"""Seconds: a fifth of the usual, and renewed five times as often."""
LONG_LEASE = 60.0
"""Seconds: nobody renews within a test, so what is done to a record stays done."""
EXPIRED_WITHIN = 2.0
"""Seconds after its end in which a lease has been noticed to be over."""
GONE_WITHIN = {
    "embedded": 1.0,  # a push takes milliseconds, a machine with other business longer
    # The longest pause between two blocking queries, and as much again until a registration is in
    # the catalog and the answer has come.
    "consul": 1 / QUERIES_PER_SECOND + 0.5,
}
"""Seconds from when a registry was asked to take an instance away until the last call to it."""
LOOKED_FOR = 0.5
"""Seconds for which calls are looked for afterwards."""
NOBODY_IS_SPARED = """
schema: meshrpc.policy/v1
service: refused
balancer: round_robin
outlier: {consecutive_failures: 1000, success_rate_below: 0%, base_ejection: 100ms, max_ejection: 100ms}
slow_start: {window: 1ms}
retry_budget: {ratio: 100%, min_per_second: 100}
"""
"""Else callers leave an instance alone that refuses calls, and so hide what it does."""
VANISHED = "vanished from the registry"


@pytest.fixture(scope="module")
def towns(holding):
    """A town beside each kind of registry."""
    rigs = holding(SHORT_LEASE)
    with contextlib.ExitStack() as exits, ThreadPoolExecutor() as threads:
        yield list(threads.map(lambda rig: Town(rig, exits), rigs))


@pytest.fixture
async def mended(towns):
    """The towns, their registries running."""
    for town in towns:
        if not town.rig.is_running:
            await asyncio.to_thread(town.rig.bring_back)
    return towns


def forms(names, *, short, long):
    """Run a test in a short form, of these values for its `names`, and in a long one."""
    marks = (pytest.mark.soak, pytest.mark.timeout(240))
    cases = [pytest.param(*short, id="short"), pytest.param(*long, id="long", marks=marks)]
    return pytest.mark.parametrize(names, cases)


async def in_all(towns, scenario, *arguments):
    """Let a scenario happen in all of the towns at the same time."""
    async with asyncio.TaskGroup() as group:
        for town in towns:
            group.create_task(scenario(town, *arguments))


def check_left_alone(seen, id_, asked, until):
    """It got calls before the registry was asked, and none from soon afterwards on."""
    assert seen.tried(id_, asked - 1.0, asked), seen
    gone = asked + GONE_WITHIN[seen.town.rig.kind]
    assert until - gone > LOOKED_FOR / 2, "it was not looked for long enough"
    assert seen.callers(gone, until) == WITNESSES, seen
    # Whose loop stood still makes the calls that were due before it reads what it was told.
    late = [began - asked for began in seen.tried(id_, gone + seen.late, until)]
    assert not late, (seen, late)


def check_nobody_held(seen):
    """No caller ever doubted the registry."""
    assert seen.held == set(), seen
    assert [said for said in seen.warnings if VANISHED in said] == [], seen


async def test_whom_an_operator_takes_away_is_called_no_more(mended):
    """Neither after `drain`, nor after `deregister`, within moments; and again after `undrain`."""
    await in_all(mended, _taken_away)


async def _taken_away(town):
    service = "repaired"
    one, other = await town.tenants(service, 2, LONG_LEASE)
    async with town.called(service, 2) as seen:
        await town.all_tried(one.id, 2, 0.0)
        drained = (await town.order(f"registry drain {one.id} --yes"))["drain"]
        await _look_for_calls(town, drained)
        undrained = (await town.order(f"registry undrain {one.id} --yes"))["undrain"]
        await town.all_tried(one.id, 3, undrained)
        asked = await town.order(f"registry deregister {one.id} --yes")
        removed = asked.get("drain", asked["deregister"])  # marked first, where nobody acknowledges
        await _look_for_calls(town, removed)
        ended = time.monotonic()
        await town.all_see({other.id: State.ACTIVE})
    check_left_alone(seen, one.id, drained, undrained)
    check_left_alone(seen, one.id, removed, ended)
    assert one.incarnation() == 1, "it has registered again meanwhile"
    assert seen.failed() == [], seen
    check_nobody_held(seen)


async def _look_for_calls(town, asked):
    """Go on until calls that should not be would have been seen."""
    until = asked + GONE_WITHIN[town.rig.kind] + LOOKED_FOR
    await asyncio.sleep(max(0.0, until - time.monotonic()))


@forms("rounds", short=[1], long=[3])
async def test_a_rolling_restart_is_not_mistaken_for_a_failing_registry(mended, rounds):
    """Two instances, restarted one after the other with new ids at new ports: no call fails, nobody
    is held, and who leaves is called no more within moments."""
    await in_all(mended, _rolled, rounds)


async def _rolled(town, rounds):
    service = "rolled"
    tenants = await town.tenants(service, 2)
    left = []
    async with town.registry() as registry, town.called(service, 2) as seen:
        await recovered(registry, service)
        for old in tenants:
            await town.all_tried(old.id, 2, 0.0)
        for _ in range(rounds):
            left += tenants
            tenants = [await _restarted(town, old) for old in tenants]
        await asyncio.sleep(LOOKED_FOR)
        ended = time.monotonic()
        await town.all_see({each.id: State.ACTIVE for each in tenants})
    assert seen.failed() == [], seen
    check_nobody_held(seen)
    for old in left:
        check_left_alone(seen, old.id, old.asked("drain"), ended)
        assert "Traceback" not in old.errors()


async def _restarted(town, old):
    """Have one leave, start another, and return that when all callers call it."""
    await old.leave()
    new = await town.arrive(town.tenant(old.service))
    await town.all_tried(new.id, 2, 0.0)
    return new


@forms("lease, seconds", short=[SHORT_LEASE, 4.5], long=[None, 20.0])
async def test_who_dies_or_freezes_costs_no_idempotent_call(mended, lease, seconds):
    """Of four instances one is killed, and one frozen until its lease has run out. Both records are
    gone then, and nobody is held for that. Thawed, the frozen one comes back as a new incarnation,
    and is called again."""
    await in_all(mended, _failing, lease, seconds)


async def _failing(town, lease, seconds):
    service = "failing"
    killed, frozen, *others = await town.tenants(service, 4, lease)
    async with town.registry() as registry, town.called(service, 4) as seen:
        await recovered(registry, service)
        for each in (killed, frozen):
            await town.all_tried(each.id, 2, 0.0)
        began = time.monotonic()
        frozen.freeze()
        try:
            await killed.kill()
            within = (lease or LEASE) + EXPIRED_WITHIN
            await until(partial(_lists, registry, service, *others), "both have expired", within)
            await town.all_see({each.id: State.ACTIVE for each in others})
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
        finally:
            frozen.thaw()
        await until(partial(_lists, registry, service, frozen, *others), "it is back")
        again = (await listed(registry, service))[frozen.id]
        await town.all_tried(frozen.id, 1, time.monotonic())
    assert again.incarnation == frozen.incarnation() == 2
    assert seen.failed(GET) == [], seen
    check_nobody_held(seen)


async def _lists(registry, service, *tenants):
    return set(await listed(registry, service)) == {each.id for each in tenants}


@forms(
    "service, policy, refusals", short=["first", None, 1], long=["refused", NOBODY_IS_SPARED, 15]
)
async def test_another_service_at_a_dead_instances_address_serves_none_of_its_calls(
    mended, service, policy, refusals
):
    """An instance is killed, one of another service listens there at once, and the record lives on:
    in the registry, and, when that is away, on the disk from which a caller then starts. What is
    refused there goes elsewhere, whether it may be repeated or not."""
    await in_all(mended, _reused, service, policy, refusals)


async def _reused(town, service, policy, refusals):
    if policy is not None:
        document = town.rig.folder / "policy.yaml"
        document.write_text(policy)
        await town.order(f"policy apply -f {document}")
    one, _ = await town.tenants(service, 2, LONG_LEASE)
    stranger = town.tenant("stranger", LONG_LEASE)
    await asyncio.to_thread(stranger.load, one.address)
    async with town.registry() as registry, town.called(service, 2) as seen:
        await town.all_tried(one.id, 2, 0.0)
        await one.kill()
        await asyncio.to_thread(stranger.start)
        listens = stranger.asked("register")
        await town.all_tried(one.id, refusals, listens)
        assert one.id in await listed(registry, service)
    assert stranger.address == one.address
    assert seen.failed(GET) == [], seen
    assert seen.failed(since=listens) == [], seen

    newcomer = await asyncio.to_thread(town.witness)
    await asyncio.to_thread(town.rig.take_down)
    try:
        async with town.called(service, 2, [newcomer]) as remembering:
            await town.all_tried(one.id, refusals, 0.0, [newcomer])
    finally:
        await asyncio.to_thread(town.rig.bring_back)
    assert any("as they were" in said for said in remembering.warnings), remembering
    assert remembering.failed() == [], remembering

    await _call(stranger)
    assert {each.arm for each in stranger.executions()} == {"directly"}


async def _call(tenant):
    """Call an instance as somebody does who means no instance in particular."""
    async with grpc.aio.insecure_channel(tenant.address) as channel:
        await channel.unary_unary(GET)(b"directly 0", timeout=5.0, wait_for_ready=True)

"""Zones: calls stay in their caller's as far as its instances can carry them."""

import asyncio
import math
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

import meshrpc
from meshrpc.policy.model import (
    Balancer,
    BalancerKind,
    Comparison,
    HashKey,
    KeySource,
    Locality,
    Match,
    MetadataMatch,
    Route,
    Target,
)
from meshrpc.registry.instance import Instance, State
from tests.echo import IDEMPOTENT, PLAIN, ROUND_ROBIN, EchoServer, policy, ready

BY_ZONE = {"balancer": ROUND_ROBIN, "locality": Locality(zone=True)}


@pytest.fixture
async def mesh(registry):
    """The caller stands in zone `a`."""
    async with meshrpc.Mesh("shell", registry=registry, control="none", zone="a") as mesh:
        yield mesh


@pytest.fixture
async def servers(registry):
    """Two instances in each of the zones `a`, `b` and `c`."""
    async with AsyncExitStack() as stack:
        servers = {}
        for name in ("a1", "a2", "b1", "b2", "c1", "c2"):
            server = await stack.enter_async_context(EchoServer(name))
            await registry.register(record(server))
            servers[name] = server
        yield servers


def record(server, **fields):
    return replace(server.instance, zone=server.name[0], **fields)


async def callers(registry, zones):
    """Register instances of the service that calls, one in each of these zones."""
    for number, zone in enumerate(zones):
        await registry.register(
            Instance(id=f"s{number}", service="shell", address="127.0.0.1:1", zone=zone)
        )


async def counts(channel, number, **arguments):
    """Make calls one after another; return how many each zone answered."""
    say = channel.unary_unary(IDEMPOTENT)
    return Counter([(await say(b"", **arguments)).decode()[1] for _ in range(number)])


async def until(holds):
    """Wait until something holds that nobody tells of."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.001)


async def test_calls_stay_at_home_when_every_zone_has_as_many(mesh, servers):
    """Nothing is known of the callers: as many are taken to be in one zone as in another."""
    channel = mesh.channel("echo")
    policy(mesh, **BY_ZONE)
    await ready(channel, 6)
    say = channel.unary_unary(PLAIN)
    came = Counter([await say(b"") for _ in range(60)])
    assert came == {b"@a1": 30, b"@a2": 30}


async def test_what_a_zone_cannot_carry_goes_where_there_is_something_to_spare(
    mesh, servers, registry
):
    """Two thirds of the callers, a third of the instances: half of the calls leave.

    None of them goes to the zone that has as many callers as instances.
    """
    channel = mesh.channel("echo")
    await callers(registry, "aab")
    policy(mesh, **BY_ZONE)
    await ready(channel, 6)
    came = await counts(channel, 400)
    assert came.keys() == {"a", "c"}
    assert abs(came["a"] - 200) <= 5 * math.sqrt(400 / 4)


async def test_a_key_that_the_balancer_does_not_go_by_keeps_nobody_from_home(mesh, servers):
    """Splits go by it, too; a balancer that takes turns does not."""
    channel = mesh.channel("echo")
    policy(mesh, **BY_ZONE, hash_key=HashKey(KeySource.METADATA, "x-user"))
    await ready(channel, 6)
    assert await counts(channel, 30, metadata=(("x-user", "u1"),)) == {"a": 30}


async def test_callers_that_come_change_the_shares(mesh, servers, registry):
    """Those that drain do not count."""
    channel = mesh.channel("echo")
    policy(mesh, **BY_ZONE)
    await ready(channel, 6)
    assert await counts(channel, 30) == {"a": 30}
    await callers(registry, "aabc")
    assert set(await counts(channel, 120)) == {"a", "b", "c"}
    await registry.register(
        Instance(id="s0", service="shell", address="127.0.0.1:1", zone="a", state=State.DRAINING)
    )
    async with asyncio.timeout(5):
        while await counts(channel, 30) != {"a": 30}:
            pass


async def test_a_zone_that_drains_leaves_its_calls_to_the_others(mesh, servers, registry):
    """And has them again when it is back; no call fails on the way."""
    channel = mesh.channel("echo")
    policy(mesh, balancer=ROUND_ROBIN, locality=Locality(zone=True, min_instances=2))
    await ready(channel, 6)
    await registry.register(record(servers["a1"], state=State.DRAINING))
    came = await counts(channel, 300)  # a fifth of the instances, a third of the callers
    assert came.keys() == {"a", "b", "c"}
    assert abs(came["a"] - 180) <= 5 * math.sqrt(300 * 0.6 * 0.4)
    await registry.register(record(servers["a2"], state=State.DRAINING))
    assert (await counts(channel, 40)).keys() == {"b", "c"}
    for name in ("a1", "a2"):
        await registry.undrain(record(servers[name]))
    assert await counts(channel, 40) == {"a": 40}


async def test_a_zone_that_dies_leaves_its_calls_to_the_others(mesh, servers):
    """The registry still has its instances; connections tell."""
    channel = mesh.channel("echo")
    policy(mesh, **BY_ZONE)
    await ready(channel, 6)
    for name in ("a1", "a2"):
        await servers[name].server.stop(None)
    came = await counts(channel, 60)
    assert came.keys() == {"b", "c"}


async def test_locality_is_switched_on_and_off_while_calls_run(mesh, servers):
    """Over the same connections."""
    channel = mesh.channel("echo")
    await ready(channel, 6)
    before = channel.bound().endpoints
    for _ in range(2):
        policy(mesh, **BY_ZONE)
        assert await counts(channel, 30) == {"a": 30}
        policy(mesh, balancer=ROUND_ROBIN)
        assert await counts(channel, 30) == {"a": 10, "b": 10, "c": 10}
    assert channel.bound().endpoints == before


async def test_a_key_has_its_owner_wherever_that_is(mesh, servers):
    """Ring hash, and calls with a key, know no zones."""
    channel = mesh.channel("echo")
    policy(
        mesh,
        balancer=Balancer(BalancerKind.RING_HASH),
        hash_key=HashKey(KeySource.METADATA, "x-user"),
        locality=Locality(zone=True),
    )
    await ready(channel, 6)
    zones = set()
    for user in map(str, range(30)):
        (zone,) = await counts(channel, 3, metadata=(("x-user", user),))
        zones.add(zone)
    assert zones == {"a", "b", "c"}


async def test_few_instances_know_no_zones(mesh, servers):
    """What `min_instances` means."""
    channel = mesh.channel("echo")
    policy(mesh, balancer=ROUND_ROBIN, locality=Locality(zone=True, min_instances=7))
    await ready(channel, 6)
    assert await counts(channel, 30) == {"a": 10, "b": 10, "c": 10}


async def test_a_subset_has_zones_of_its_own(mesh, servers, registry):
    """Its own instances count, and where they are."""
    for name in ("a1", "b1"):
        await registry.register(record(servers[name], version="v2"))
    channel = mesh.channel("echo")
    policy(
        mesh,
        balancer=ROUND_ROBIN,
        locality=Locality(zone=True, min_instances=2),
        subsets={"v2": {"version": "v2"}},
        routes=(
            Route(
                "beta",
                Match(metadata=(MetadataMatch("x-beta", Comparison.PRESENT, "true"),)),
                split=(Target("v2", 1),),
            ),
        ),
    )
    await ready(channel, 6)
    say = channel.unary_unary(PLAIN)
    came = Counter([await say(b"", metadata=(("x-beta", "1"),)) for _ in range(20)])
    assert came == {b"@a1": 20}
    await registry.deregister(servers["a1"].instance)
    await until(lambda: len(channel.bound().endpoints) == 5)
    came = Counter([await say(b"", metadata=(("x-beta", "1"),)) for _ in range(20)])
    assert came == {b"@b1": 20}


async def test_a_process_without_a_zone_knows_none(servers, registry):
    """Nor does it follow where the others are."""
    async with meshrpc.Mesh("shell", registry=registry, control="none") as mesh:
        channel = mesh.channel("echo")
        policy(mesh, **BY_ZONE)
        await ready(channel, 6)
        assert await counts(channel, 30) == {"a": 10, "b": 10, "c": 10}

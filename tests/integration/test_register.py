"""Servers that are none of ours, kept registered by `mesh.register`."""

import asyncio

import grpc
import pytest

import meshrpc
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registry import LEASE
from tests.echo import PLAIN, EchoServer


@pytest.fixture
def registry(virtual_clock):
    return MemoryRegistry(clock=virtual_clock)


@pytest.fixture
async def mesh(registry, virtual_clock):
    async with meshrpc.Mesh("shop", control="none", registry=registry, clock=virtual_clock) as mesh:
        yield mesh


async def test_a_server_is_found_and_called_while_it_is_registered(mesh, registry):
    """As foreign: it knows no instance id, so none is sent. After the block it is gone."""
    async with EchoServer("old") as server:
        address = f"127.0.0.1:{server.port}"
        channel = mesh.channel("legacy")
        async with mesh.register("legacy", address, version="v0", labels={"a": "b"}) as instance:
            assert await registry.instances("legacy") == (instance,)
            assert (instance.service, instance.address) == ("legacy", address)
            assert (instance.version, instance.labels, instance.pid) == ("v0", {"a": "b"}, None)
            assert await channel.unary_unary(PLAIN)(b"hi") == b"hi@old"
            assert "mesh-target" not in server.seen[0]
            assert server.seen[0]["mesh-caller"] == "shop"
        assert await registry.instances("legacy") == ()
        with pytest.raises(grpc.aio.AioRpcError, match="no instances in the registry"):
            await channel.unary_unary(PLAIN)(b"hi")


async def test_its_lease_is_renewed_as_long_as_the_block_lasts(mesh, registry, virtual_clock):
    """Four leases later it is still there."""
    async with mesh.register("legacy", "127.0.0.1:1") as instance:
        await virtual_clock.advance(4 * LEASE)
        assert await registry.instances("legacy") == (instance,)


async def test_two_at_one_address_are_two(mesh, registry):
    """Each block ends its own."""
    async with mesh.register("legacy", "127.0.0.1:1") as one:
        async with mesh.register("legacy", "127.0.0.1:1") as other:
            assert {each.id for each in await registry.instances("legacy")} == {one.id, other.id}
        assert await registry.instances("legacy") == (one,)


async def test_a_block_that_fails_ends_its_registration(mesh, registry):
    """And lets the error through."""
    with pytest.raises(ZeroDivisionError):
        async with mesh.register("legacy", "127.0.0.1:1"):
            raise ZeroDivisionError
    assert await registry.instances("legacy") == ()


async def test_callers_see_it_drain_before_it_is_gone(mesh, registry):
    """So that nobody picks it for a call at the last moment."""
    states = []
    registry.watch("legacy", lambda now: states.append([each.state for each in now.instances]))
    async with mesh.register("legacy", "127.0.0.1:1"):
        pass
    assert states == [[], ["active"], ["draining"], []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("legacy", "10.0.0.5"), "address '10.0.0.5': an address is host:port"),
        (("legacy", "10.0.0.5:0"), "address '10.0.0.5:0': the port is 1 to 65535"),
        (("le gacy", "10.0.0.5:1"), "service 'le gacy': a name has letters"),
    ],
)
async def test_what_cannot_be_registered_is_refused_at_once(mesh, arguments, message):
    """With the cause."""
    with pytest.raises(meshrpc.SettingsError, match=message):
        async with mesh.register(*arguments):
            pass


async def test_a_registry_that_registers_nobody_says_so():
    """Whoever asks for it directly must not believe that it was done."""
    async with meshrpc.Mesh("shop", control="none", registry="static:a=127.0.0.1:1") as mesh:
        with pytest.raises(meshrpc.RegistryError, match="registers nobody"):
            async with mesh.register("legacy", "10.0.0.5:1"):
                pass


async def test_the_mesh_has_to_be_entered(registry):
    """There is no registry before."""
    with pytest.raises(grpc.aio.UsageError, match="not entered"):
        async with meshrpc.Mesh("shop", registry=registry).register("legacy", "10.0.0.5:1"):
            pass


async def test_nothing_of_it_stays_behind(mesh):
    """No task."""
    before = asyncio.all_tasks()
    async with mesh.register("legacy", "127.0.0.1:1"):
        pass
    assert asyncio.all_tasks() == before

"""One caller of a service of which ten thousand instances are registered with a real control service."""

from __future__ import annotations

import asyncio
import bisect
import gc
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

import meshrpc
from meshrpc.balancer.subsetting import first, rank
from meshrpc.client.destination import Destination
from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.control.server import ControlServer
from meshrpc.interests import Interests
from meshrpc.registry.instance import Instance
from meshrpc.registry.registry import Snapshot
from meshrpc.testing.proxy import Proxy
from meshrpc.v1 import registry_pb2, registry_pb2_grpc

SERVICE = "many"
COUNT = 10_000
SUBSET = 100
"""What a process connects to by default."""
LEASE = 3600.0
"""Longer than this takes: nobody renews."""
PATIENCE = 30.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True)
class World:
    """The registry, and where all instances seem to listen."""

    control: str
    listener: Proxy
    moved: asyncio.Event
    stub: Any

    @property
    def connections(self) -> int:
        return len(self.listener._connections)

    async def connections_are(self, count: int) -> None:
        """Return when there are so many."""
        async with asyncio.timeout(PATIENCE):
            while self.connections != count:
                self.moved.clear()
                await self.moved.wait()

    def instance(self, name: str) -> Instance:
        return Instance(id=name, service=SERVICE, address=self.listener.address, pid=1)

    async def register(self, *instances: Instance) -> None:
        """Register these, many at a time."""
        records = iter(instances)

        async def work() -> None:
            for each in records:
                await self.stub.Register(
                    registry_pb2.RegisterRequest(instance=each.to_wire(), lease_seconds=LEASE)
                )

        await asyncio.gather(*(work() for _ in range(min(200, len(instances)))))

    async def deregister(self, *instances: Instance) -> None:
        requests = (registry_pb2.DeregisterRequest(service=SERVICE, id=i.id) for i in instances)
        await asyncio.gather(*map(self.stub.Deregister, requests))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world():
    """Ten thousand instances; every connection to one of them goes through one proxy."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    moved = asyncio.Event()
    listener = Proxy(SYSTEM_CLOCK, moved.set)
    listener.lead_to(f"127.0.0.1:{port}")
    async with (
        ControlServer("127.0.0.1:0", "127.0.0.1:0") as control,
        grpc.aio.insecure_channel(control.address) as channel,
    ):
        world = World(control.address, listener, moved, registry_pb2_grpc.RegistryStub(channel))
        await world.register(*(world.instance(f"{SERVICE}-{n:05d}") for n in range(COUNT)))
        yield world
    await listener.close()
    await server.stop(None)


class Caller:
    """A process that calls the service, and what control has sent it."""

    def __init__(self, mesh: meshrpc.Mesh, destination: Destination) -> None:
        self.destination = destination
        self.instances: tuple[Instance, ...] = ()
        self.pushed: list[int] = []
        """Records in each push."""
        self._seed = mesh.id
        self._told = asyncio.Event()
        mesh.registry.watch(SERVICE, self._on_snapshot)  # told after the destination

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        self.instances = snapshot.instances
        self._told.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when something holds of the instances."""
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self._told.clear()
                await self._told.wait()

    async def ready(self) -> None:
        """Return when it is connected to its subset."""
        async with asyncio.timeout(PATIENCE):
            while self.destination.ready_count != SUBSET:
                await self.destination.changed()

    def has(self, instance: Instance) -> bool:
        at = bisect.bisect_left(self.instances, instance.id, key=lambda each: each.id)
        return self.instances[at : at + 1] == (instance,)

    async def knows(self, instance: Instance) -> None:
        await self.until(lambda: self.has(instance))

    async def forgets(self, instance: Instance) -> None:
        await self.until(lambda: not self.has(instance))

    def connects_to(self, instance: Instance) -> bool:
        """Return whether it would, if this were registered too."""
        return instance in first(rank((*self.instances, instance), self._seed), SUBSET)

    def one(self, world: World, *, is_member: bool) -> Instance:
        """Return one to register that this caller connects to, or does not."""
        names = (f"new-{number}" for number in range(100 * COUNT))
        return next(
            found for found in map(world.instance, names) if self.connects_to(found) is is_member
        )


@pytest_asyncio.fixture(loop_scope="module")
async def caller(world, monkeypatch):
    """A process that knows all instances and is connected to its subset of them."""
    pushed = []
    take = Interests.take

    def noted(interests, push):
        pushed.extend(len(each.instances) for each in push.instances)
        return take(interests, push)

    monkeypatch.setattr(Interests, "take", noted)
    mesh = meshrpc.Mesh("caller", control=world.control, rng=random.Random(1))
    async with mesh:
        channel = mesh.channel(SERVICE)
        caller = Caller(mesh, channel.bound())
        await caller.ready()
        caller.pushed = pushed
        yield caller


async def test_a_caller_connects_to_its_subset_and_to_nobody_else(world, caller):
    """A hundred connections, however many instances there are."""
    assert len(caller.instances) == COUNT
    assert len(caller.destination.endpoints) == SUBSET
    assert world.connections == SUBSET


async def test_a_change_of_one_is_sent_and_kept_as_that(world, caller):
    """One record travels, all others stay the same objects, and the same connections stand; who
    belongs to the subset takes one place in it, and gives it back."""
    stranger, member = (caller.one(world, is_member=each) for each in (False, True))
    before, endpoints = caller.instances, set(caller.destination.endpoints)
    del caller.pushed[:]

    await world.register(stranger)
    await caller.knows(stranger)
    assert set(caller.destination.endpoints) == endpoints
    await world.register(member)
    await caller.knows(member)
    assert len(caller.destination.endpoints) == SUBSET
    assert {e.id for e in set(caller.destination.endpoints) - endpoints} == {member.id}
    heavier = replace(member, weight=2)
    await world.register(heavier)
    await caller.knows(heavier)
    await world.deregister(stranger, member)
    await caller.forgets(heavier)
    await caller.forgets(stranger)

    assert sum(caller.pushed) == 3  # who is gone is only named
    assert len(caller.instances) == COUNT
    assert all(map(lambda one, other: one is other, before, caller.instances))
    after = set(caller.destination.endpoints)
    assert {each.id for each in after} == {each.id for each in endpoints}
    assert len(after & endpoints) == SUBSET - 1
    await world.connections_are(SUBSET)


async def test_changes_leave_nothing_behind(world, caller):
    """After hundreds neither the caller nor control holds more memory than before."""
    fresh = [world.instance(f"new-{number}") for number in range(30)]

    async def change(times: int) -> None:
        for _ in range(times):
            await world.register(*fresh)
            await caller.until(lambda: len(caller.instances) == COUNT + len(fresh))
            await world.deregister(*fresh)
            await caller.until(lambda: len(caller.instances) == COUNT)

    await change(2)
    grown = []
    for _ in range(3):  # what else goes on in this process may grow once
        before = held()
        await change(5)
        grown.append(held() - before)
    assert min(grown) < 50_000


def held() -> int:
    """Return the bytes of all containers that Python's garbage collector knows.

    Not what is due in control's lease table: that keeps a tuple of what has gone until its lease
    would have ended, and leases are long here.
    """
    gc.collect()
    return sum(map(sys.getsizeof, gc.get_objects()))

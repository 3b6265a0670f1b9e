"""The embedded registry over real gRPC: restarts, records made by hand, what should be looked at."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import dataclass, replace

import grpc
import pytest

from meshrpc.control import health_checks, records, store
from meshrpc.control.database import Database
from meshrpc.control.delivery import Delivery
from meshrpc.control.registry_service import RegistryService
from meshrpc.control.server import ControlServer
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.registry import LEASE
from meshrpc.v1 import control_pb2, control_pb2_grpc, registry_pb2, registry_pb2_grpc

PATIENCE = 10.0
ONE = Instance(id="p1", service="payment", address="127.0.0.1:5001")
BY_HAND = replace(ONE, id="p2", permanent=True)


class Client:
    """What a process asks of the registry, and the sets it is sent."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.registry = registry_pb2_grpc.RegistryStub(self.channel)
        self._stream = control_pb2_grpc.ControlStub(self.channel).Subscribe()

    async def register(self, instance: Instance, lease: float = LEASE) -> None:
        request = registry_pb2.RegisterRequest(instance=instance.to_wire(), lease_seconds=lease)
        await self.registry.Register(request, timeout=PATIENCE)

    async def renew(self, instance: Instance) -> bool:
        request = registry_pb2.RenewRequest(
            service=instance.service, id=instance.id, incarnation=instance.incarnation
        )
        try:
            await self.registry.Renew(request, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return True

    async def drain(self, instance: Instance) -> None:
        request = registry_pb2.DrainRequest(service=instance.service, id=instance.id)
        await self.registry.Drain(request, timeout=PATIENCE)

    async def undrain(self, instance: Instance) -> None:
        request = registry_pb2.UndrainRequest(service=instance.service, id=instance.id)
        await self.registry.Undrain(request, timeout=PATIENCE)

    async def deregister(self, instance: Instance) -> None:
        request = registry_pb2.DeregisterRequest(service=instance.service, id=instance.id)
        await self.registry.Deregister(request, timeout=PATIENCE)

    async def instances(self) -> list[Instance]:
        request = registry_pb2.ListInstancesRequest(service="payment")
        answer = await self.registry.ListInstances(request, timeout=PATIENCE)
        return [Instance.from_wire(one) for one in answer.instances]

    async def findings(self) -> list[tuple[str, str, str]]:
        request = registry_pb2.ListFindingsRequest(service="payment")
        answer = await self.registry.ListFindings(request, timeout=PATIENCE)
        return [(one.problem, one.id, one.detail) for one in answer.findings]

    async def watch(self) -> control_pb2.InstanceSet:
        hello = control_pb2.Hello(service="order", instance="o1")
        await self._stream.write(control_pb2.SubscribeRequest(hello=hello))
        interest = control_pb2.Interest(instances=["payment"])
        await self._stream.write(control_pb2.SubscribeRequest(interest=interest))
        return await self.next_set()

    async def next_set(self) -> control_pb2.InstanceSet:
        async with asyncio.timeout(PATIENCE):
            push = await self._stream.read()
        answer = control_pb2.Acknowledgement(nonce=push.nonce)
        await self._stream.write(control_pb2.SubscribeRequest(acknowledgement=answer))
        (told,) = push.instances
        return told


@contextlib.asynccontextmanager
async def serving(url: str = "sqlite::memory:"):
    async with ControlServer("127.0.0.1:0", "127.0.0.1:0", url) as server:
        client = Client(server.address)
        try:
            yield client
        finally:
            await client.channel.close()


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:{tmp_path / 'control.db'}"


@dataclass
class Parts:
    """The service without its ports, whose every step the test takes."""

    service: RegistryService
    leases: LeaseTable
    records: records.InstanceRecords
    database: Database

    async def kept(self) -> set[Instance]:
        """What another one would find on the disk."""
        await self.records.flush()
        return set(await records.InstanceRecords(self.database).load())


@contextlib.asynccontextmanager
async def parts(clock, leases: LeaseTable | None = None):
    database = await Database.open("sqlite::memory:", records.SCHEMA + store.SCHEMA)
    leases = leases or LeaseTable()
    delivery = Delivery(await store.PolicyStore.load(database), leases, clock=clock)
    kept = records.InstanceRecords(database)
    try:
        yield Parts(RegistryService(leases, kept, delivery, clock=clock), leases, kept, database)
    finally:
        await database.close()


def registering(instance: Instance) -> registry_pb2.RegisterRequest:
    return registry_pb2.RegisterRequest(instance=instance.to_wire())


def leaving(instance: Instance) -> registry_pb2.DeregisterRequest:
    return registry_pb2.DeregisterRequest(service=instance.service, id=instance.id)


# Restarts


async def test_a_restart_begins_with_a_window_in_which_nobody_is_missed(url, monkeypatch):
    """Watchers are told, and at its end told anew; only who has not come back is gone then."""
    two, three = replace(ONE, id="p2"), replace(ONE, id="p3")
    async with serving(url) as client:
        for instance in (ONE, two, three):
            await client.register(instance)
    monkeypatch.setattr("meshrpc.control.server.RECOVERY", 0.6)
    monkeypatch.setattr("meshrpc.registry.leases.LEASE", 0.6)
    async with serving(url) as client:
        told = await client.watch()
        assert (told.recovering, len(told.instances)) == (True, 3)
        assert await client.renew(ONE)
        await client.register(ONE, lease=60.0)  # the same again: a longer lease, and no change
        await client.deregister(three)
        told = await client.next_set()
        assert (told.recovering, list(told.departed)) == (True, ["p3"])
        told = await client.next_set()
        while len(told.instances) > 1:
            told = await client.next_set()
        assert not told.recovering
        assert [one.id for one in told.instances] == ["p1"]


async def test_a_registry_that_comes_back_empty_says_so(monkeypatch):
    """Watchers know that whom they miss may not have come back yet, and when that is over."""
    monkeypatch.setattr("meshrpc.control.server.RECOVERY", 0.3)
    async with serving() as client:
        told = await client.watch()
        assert (told.recovering, len(told.instances)) == (True, 0)
        assert not await client.renew(ONE)
        told = await client.next_set()
        assert (told.recovering, len(told.instances)) == (False, 0)


async def test_marks_and_permanent_records_outlive_a_restart(url):
    """An operator's drain, and what was found of those made by hand."""
    draining = replace(ONE, state=State.DRAINING)
    async with serving(url) as client:
        await client.register(ONE)
        await client.register(BY_HAND)
        await client.drain(ONE)
        await client.register(replace(ONE, weight=3))  # as with each change of its load
        assert await client.instances() == [replace(draining, weight=3), BY_HAND]
    async with serving(url) as client:
        assert await client.instances() == [replace(draining, weight=3), BY_HAND]
        await client.undrain(ONE)
    async with serving(url) as client:
        assert await client.instances() == [replace(ONE, weight=3), BY_HAND]
        await client.deregister(BY_HAND)
    async with serving(url) as client:
        assert await client.instances() == [replace(ONE, weight=3)]


async def test_a_record_that_cannot_be_read_is_left_out(url, tmp_path, caplog):
    """The others are there, and the next start has nothing to say."""
    async with serving(url) as client:
        for id_ in ("p1", "p2", "p3"):
            await client.register(replace(ONE, id=id_))
    with contextlib.closing(sqlite3.connect(tmp_path / "control.db")) as file:
        file.execute("UPDATE instances SET record = x'ffffff' WHERE id = 'p1'")
        file.execute("UPDATE instances SET record = 'text' WHERE id = 'p2'")
        file.commit()
    async with serving(url) as client:
        assert [one.id for one in await client.instances()] == ["p3"]
    assert len(caplog.messages) == 2
    caplog.clear()
    async with serving(url):
        assert caplog.messages == []


async def test_a_service_that_stood_still_while_it_recovered_recovers_longer(virtual_clock):
    """Nobody could come back to it meanwhile."""
    now = virtual_clock.now()
    async with parts(virtual_clock, LeaseTable(recovers_until=now + LEASE)) as it:
        it.leases.restore([ONE], now)
        for second in (1, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75):
            it.service.look(now + second)
            assert it.leases.is_recovering
            assert it.leases.all() == (ONE,)
        it.service.look(now + 76)
        assert not it.leases.is_recovering
        assert it.leases.all() == ()
        assert await it.kept() == set()


# The disk in step with the table


async def test_who_leaves_while_it_is_being_written_is_not_kept(virtual_clock):
    """Nor is what a late registration would have made of a newer one."""
    async with parts(virtual_clock) as it:
        late = asyncio.create_task(it.service.Register(registering(ONE), None))
        await asyncio.sleep(0)
        late.cancel()  # as when its process gives up on it, to leave
        await asyncio.gather(it.service.Deregister(leaving(ONE), None), it.records.flush())
        await asyncio.wait([late])
        assert await it.kept() == set(it.leases.all()) == set()

        newer = replace(ONE, incarnation=2)
        late = asyncio.create_task(it.service._register(ONE, LEASE))
        await asyncio.sleep(0)
        it.leases.register(newer, virtual_clock.now())
        it.service._remember(newer.namespace, newer.service, newer.id)
        await it.records.flush()
        await asyncio.wait([late])
        assert late.exception() is not None
        assert await it.kept() == {newer}


async def test_a_mark_set_meanwhile_is_kept_too(virtual_clock):
    """The registration that waits for the disk began without it."""
    async with parts(virtual_clock) as it:
        it.leases.register(ONE, virtual_clock.now())
        heavier = replace(ONE, weight=9)
        waiting = asyncio.create_task(it.service.Register(registering(heavier), None))
        await asyncio.sleep(0)
        await it.service.Drain(registry_pb2.DrainRequest(service="payment", id="p1"), None)
        await it.records.flush()
        await waiting
        assert await it.kept() == set(it.leases.all())
        assert it.leases.all() == (replace(heavier, state=State.DRAINING),)


async def test_the_same_again_is_not_written(virtual_clock):
    """Ten thousand that register again after an outage cost the disk nothing."""
    async with parts(virtual_clock) as it:
        it.records.keep(ONE)
        await it.records.flush()
        await it.service.Register(registering(ONE), None)
        await it.service.Register(registering(ONE), None)
        assert repr(it.records) == "<InstanceRecords unwritten=0>"


async def test_a_disk_that_is_full_keeps_nobody_out_and_is_caught_up_with(url, monkeypatch, caplog):
    """Registrations, renewals and departures go on from memory until there is room again."""
    monkeypatch.setattr(records, "RETRY_AFTER", 0.05)
    databases = []
    open_database = Database.open

    async def remember(*args, **named):
        databases.append(await open_database(*args, **named))
        return databases[-1]

    monkeypatch.setattr(Database, "open", remember)
    labels = {"note": "x" * 8000}
    async with serving(url) as client:
        await client.register(replace(ONE, id="p0"))
        (database,) = databases
        await database.run(lambda it: it.execute("PRAGMA max_page_count = 1").fetchall())
        for number in range(1, 6):
            await client.register(replace(ONE, id=f"p{number}", labels=labels))
        await client.deregister(replace(ONE, id="p0"))
        assert [one.id for one in await client.instances()] == [f"p{n}" for n in range(1, 6)]
        assert [each for each in caplog.messages if "the disk is full" in each]
        await database.run(lambda it: it.execute("PRAGMA max_page_count = 9999").fetchall())
    async with serving(url) as client:
        assert [one.id for one in await client.instances()] == [f"p{n}" for n in range(1, 6)]


# Leaving


async def test_who_leaves_a_registry_that_does_not_know_it_is_told_as_departed():
    """It came back empty, and watchers still count on the instance."""
    async with serving() as client:
        await client.watch()
        await client.deregister(ONE)
        told = await client.next_set()
        assert (list(told.instances), list(told.departed)) == ([], ["p1"])


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 300])
async def test_names_that_nobody_can_have_do_not_leave(name):
    """They would be remembered."""
    async with serving() as client:
        with pytest.raises(grpc.aio.AioRpcError, match="printable") as raised:
            await client.deregister(replace(ONE, id=name))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# What should be looked at


async def test_a_lease_near_its_end_is_a_finding(monkeypatch):
    """With the seconds that are left; a renewed one is none."""
    monkeypatch.setattr("meshrpc.control.server.RECOVERY", 0.0)
    monkeypatch.setattr("meshrpc.registry.leases.NEAR_EXPIRY", 0.999999)
    async with serving() as client:
        await client.register(ONE, lease=60.0)
        await client.register(BY_HAND)
        ((problem, id_, detail),) = await client.findings()
        assert (problem, id_) == ("lease_near_expiry", "p1")
        assert detail.startswith(("60.0 s of its lease of 60 s", "59.9 s of its lease of 60 s"))


async def test_what_is_registered_by_hand_is_checked_and_found_not_serving(url, monkeypatch):
    """Watchers are told, the finding says why, and a restart knows it still."""
    monkeypatch.setattr(health_checks, "EVERY", 0.05)
    monkeypatch.setattr(health_checks, "LOOK_EVERY", 0.05)
    nobody = replace(BY_HAND, address="127.0.0.1:1")
    async with serving(url) as client:
        await client.register(nobody)
        told = await client.watch()
        while told.instances[0].health != registry_pb2.Instance.HEALTH_NOT_SERVING:
            told = await client.next_set()
        ((problem, id_, detail),) = await client.findings()
        assert (problem, id_) == ("not_serving", "p2")
        assert detail.startswith("it fails its health check at 127.0.0.1:1: UNAVAILABLE")
    monkeypatch.setattr(health_checks, "EVERY", 60.0)
    async with serving(url) as client:
        assert await client.instances() == [replace(nobody, health=Health.NOT_SERVING)]


async def test_an_instance_that_says_it_does_not_serve_is_a_finding():
    """Nobody has to check that."""
    async with serving() as client:
        await client.register(replace(ONE, health=Health.NOT_SERVING))
        assert await client.findings() == [("not_serving", "p1", "it says so itself")]


# A fleet


async def test_a_fleet_that_renews_at_the_same_moment_waits_its_turn():
    """As after an outage: no call is refused because many came before it."""
    async with serving() as client:
        await client.register(ONE)
        assert all(await asyncio.gather(*(client.renew(ONE) for _ in range(2500))))

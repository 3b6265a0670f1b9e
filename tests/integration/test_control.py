"""The control service over real gRPC and HTTP on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading

import aiohttp
import grpc
import pytest

from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.control import instance_sets, policy_service, pushes, records, store
from meshrpc.control.client import ControlClient
from meshrpc.control.control_service import ControlService
from meshrpc.control.database import Database
from meshrpc.control.delivery import Delivery
from meshrpc.control.policy_service import MAX_DOCUMENT
from meshrpc.control.registry_service import RegistryService
from meshrpc.control.server import ControlServer
from meshrpc.errors import ControlError, SettingsError
from meshrpc.registry.instance import Instance
from meshrpc.registry.leases import LeaseTable
from meshrpc.v1 import (
    control_pb2,
    control_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)

PATIENCE = 10.0
SYNCED = control_pb2.ProcessStatus.STATE_SYNCED


class Client:
    """Raw stubs on one connection."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.control = control_pb2_grpc.ControlStub(self.channel)
        self.policies = policy_pb2_grpc.PolicyStoreStub(self.channel)
        self.registry = registry_pb2_grpc.RegistryStub(self.channel)

    async def register(self, id: str = "p1", lease: float = 15.0, **fields) -> None:  # noqa: A002
        fields = {"service": "payment", "address": "127.0.0.1:5001"} | fields
        request = registry_pb2.RegisterRequest(
            instance=registry_pb2.Instance(id=id, **fields), lease_seconds=lease
        )
        await self.registry.Register(request, timeout=PATIENCE)

    async def deregister(self, id: str, within: float = 0.0) -> bool:  # noqa: A002
        request = registry_pb2.DeregisterRequest(
            service="payment", id=id, acknowledge_within_seconds=within
        )
        return (await self.registry.Deregister(request, timeout=PATIENCE)).acknowledged

    async def instances(self, service: str = "payment", namespace: str = "") -> list[str]:
        request = registry_pb2.ListInstancesRequest(service=service, namespace=namespace)
        answer = await self.registry.ListInstances(request, timeout=PATIENCE)
        return [instance.id for instance in answer.instances]

    async def apply(self, *documents: str, **fields) -> policy_pb2.ApplyResponse:
        request = policy_pb2.ApplyRequest(documents=documents, **fields)
        return await self.policies.Apply(request, timeout=PATIENCE)

    async def status(self) -> list[control_pb2.ProcessStatus]:
        answer = await self.control.Status(control_pb2.StatusRequest(), timeout=PATIENCE)
        return list(answer.processes)


class Process:
    """A subscriber whose every answer the test decides."""

    def __init__(
        self, client: Client, instance: str, namespace: str = "", *, differences: bool = False
    ) -> None:
        self.call = client.control.Subscribe()
        self._hello = control_pb2.Hello(
            service="order",
            instance=instance,
            namespace=namespace,
            accepts_differences=differences,
        )

    async def want(self, *, policies=(), instances=(), **fields) -> None:
        if self._hello is not None:
            await self.call.write(control_pb2.SubscribeRequest(hello=self._hello))
            self._hello = None
        interest = control_pb2.Interest(policies=policies, instances=instances, **fields)
        await self.call.write(control_pb2.SubscribeRequest(interest=interest))

    async def push(self) -> control_pb2.Push:
        async with asyncio.timeout(PATIENCE):
            return await self.call.read()

    async def sets(self) -> list[control_pb2.InstanceSet]:
        """The instance sets of the next push, which are taken."""
        push = await self.push()
        await self.answer(push)
        return list(push.instances)

    async def answer(self, push: control_pb2.Push, **fields) -> None:
        acknowledgement = control_pb2.Acknowledgement(nonce=push.nonce, **fields)
        await self.call.write(control_pb2.SubscribeRequest(acknowledgement=acknowledgement))


@contextlib.asynccontextmanager
async def serving(url: str = "sqlite::memory:"):
    async with ControlServer("127.0.0.1:0", "127.0.0.1:0", url) as server:
        client = Client(server.address)
        yield server, client
        await client.channel.close()


async def refusal(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async with asyncio.timeout(PATIENCE):
            await call
    return raised.value.code(), raised.value.details()


def document(service: str = "payment", **fields: str) -> str:
    lines = [f"{name}: {value}" for name, value in fields.items()]
    return "\n".join(["schema: meshrpc.policy/v1", f"service: '{service}'", *lines])


# Pushes


async def test_one_unanswered_push_holds_back_the_next():
    """While a push is unanswered the stream is silent; then comes the newest, once."""
    async with serving() as (_, client):
        process = Process(client, "o1")
        await process.want(policies=["payment"])
        first = await process.push()
        assert [one.document for one in first.policies] == [""]
        for seconds in range(1, 4):
            await client.apply(document(timeout=f"{seconds}s"))
        (row,) = await client.status()
        assert row.state == control_pb2.ProcessStatus.STATE_PENDING
        assert row.reason == "has not answered: policy of payment"
        await process.answer(first)
        second = await process.push()
        assert '"timeout":"3s"' in second.policies[0].document
        assert (second.revision, second.policies[0].revision) == (3, 3)


async def test_namespaces_have_their_own_policies_instances_and_processes():
    """A subscriber of another namespace sees nothing of this one."""
    async with serving() as (_, client):
        await client.apply(document(timeout="1s"))
        await client.register("p1")
        process = Process(client, "o1", namespace="test")
        await process.want(policies=["payment"], instances=["payment"])
        push = await process.push()
        assert push.policies[0].document == ""
        assert not push.instances[0].instances
        assert await client.status() == []
        assert await client.instances(namespace="test") == []


async def test_a_stream_that_does_not_begin_with_a_hello_is_refused():
    """It is told what is missing."""
    async with serving() as (_, client):
        call = client.control.Subscribe()
        await call.write(control_pb2.SubscribeRequest(interest=control_pb2.Interest()))
        code, details = await refusal(call.read())
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details == "the first message is a hello with a service"


@pytest.mark.parametrize("field", ["service", "instance", "namespace", "version", "library"])
async def test_a_hello_that_cannot_be_shown_is_refused(field):
    """What a process says it is stands in logs and tables."""
    async with serving() as (_, client):
        call = client.control.Subscribe()
        hello = control_pb2.Hello(**{"service": "order", field: "a\nb"})
        await call.write(control_pb2.SubscribeRequest(hello=hello))
        code, details = await refusal(call.read())
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details == f"{field} 'a\\nb': 1 to 256 printable characters"


async def test_bytes_that_are_no_message_end_one_stream_without_a_traceback(caplog):
    """As the first message and as a later one; the sender is told, and others notice nothing."""
    async with serving() as (_, client):
        process = Process(client, "o1")
        await process.want(policies=["payment"])
        await process.answer(await process.push())
        hello = control_pb2.SubscribeRequest(hello=control_pb2.Hello(service="x"))
        for messages in ([b"\xff\xff"], [hello.SerializeToString(), b"\xff\xff"]):
            call = client.channel.stream_stream("/meshrpc.v1.Control/Subscribe")()
            for message in messages:
                await call.write(message)
            code, _ = await refusal(call.read())
            assert code is grpc.StatusCode.INVALID_ARGUMENT
        await client.apply(document(timeout="2s"))
        assert (await process.push()).revision == 1
    assert "Traceback" not in caplog.text


async def test_what_one_process_refuses_another_takes():
    """Each keeps its own state; the resource beside the refused one lands in both."""
    async with serving() as (_, client):
        picky, other = Process(client, "a"), Process(client, "b")
        for process in (picky, other):
            await process.want(policies=["payment", "order"])
            await process.answer(await process.push())
        await client.apply(document(timeout="2s"), document("order", timeout="2s"))
        refused = control_pb2.Refusal(
            kind=control_pb2.Refusal.KIND_POLICY, name="payment", reason="not here"
        )
        for process, answer in ((picky, {"refused": [refused]}), (other, {})):
            push = await process.push()
            assert [one.service for one in push.policies] == ["payment", "order"]
            await process.answer(push, **answer)
        async with asyncio.timeout(PATIENCE):
            while (rows := await client.status())[1].state != SYNCED:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert [row.state for row in rows] == [control_pb2.ProcessStatus.STATE_REFUSED, SYNCED]
        assert [row.revision for row in rows] == [0, 1]
        assert rows[0].reason == "policy of payment: not here"


async def test_of_a_large_set_only_what_changed_is_sent():
    """To a process that takes differences; to one of an earlier release the whole set, always."""
    async with serving() as (_, client):
        for number in range(5):
            await client.register(f"p{number}")
        new, old = Process(client, "a", differences=True), Process(client, "b")
        for process in (new, old):
            await process.want(instances=["payment"])
            (whole,) = await process.sets()
            assert (whole.base, len(whole.instances)) == (0, 5)
        await client.register("p3", weight=7)
        (difference,) = await new.sets()
        assert [(one.id, one.weight) for one in difference.instances] == [("p3", 7)]
        assert (difference.base, list(difference.removed)) == (whole.version, [])
        (whole,) = await old.sets()
        assert (whole.base, len(whole.instances), whole.removed) == (0, 5, [])
        await client.deregister("p1")
        (difference,) = await new.sets()
        assert (list(difference.instances), list(difference.removed)) == ([], ["p1"])
        (whole,) = await old.sets()
        assert [one.id for one in whole.instances] == ["p0", "p2", "p3", "p4"]


async def test_a_difference_that_does_not_fit_is_followed_by_the_whole_set():
    """Without waiting for another change."""
    async with serving() as (_, client):
        for number in range(5):
            await client.register(f"p{number}")
        process = Process(client, "o1", differences=True)
        await process.want(instances=["payment"])
        await process.sets()
        await client.register("p3", weight=7)
        push = await process.push()
        assert push.instances[0].base == 5
        refused = control_pb2.Refusal(
            kind=control_pb2.Refusal.KIND_INSTANCES, name="payment", reason="it does not fit"
        )
        await process.answer(push, refused=[refused])
        (whole,) = await process.sets()
        assert (whole.base, whole.version, len(whole.instances)) == (0, 6, 5)
        await client.register("p3", weight=8)
        (difference,) = await process.sets()
        assert difference.base == 6


async def test_who_holds_a_set_of_this_control_service_is_sent_what_differs():
    """Nothing, if nothing does, which it acknowledges like everything; of another epoch's set, or of
    a version that was never here, it is sent everything."""
    async with serving() as (_, client):
        for number in range(5):
            await client.register(f"p{number}")
        process = Process(client, "a", differences=True)
        await process.want(instances=["payment"])
        push = await process.push()
        epoch, version = push.epoch, push.instances[0].version
        await process.answer(push)
        for held, expected in (
            ((epoch, version), (version, [])),
            ((epoch, version + 1), (0, ["p0", "p1", "p2", "p3", "p4"])),
            (("another", version), (0, ["p0", "p1", "p2", "p3", "p4"])),
            (("", version), (0, ["p0", "p1", "p2", "p3", "p4"])),
        ):
            back = Process(client, "b", differences=True)
            await back.want(instances=["payment"], epoch=held[0], held={"payment": held[1]})
            push = await back.push()
            (sent,) = push.instances
            assert push.epoch == epoch
            assert (sent.base, [one.id for one in sent.instances]) == expected
            (row,) = [one for one in await client.status() if one.instance == "b"]
            assert row.state == control_pb2.ProcessStatus.STATE_PENDING
            await back.answer(push)
            async with asyncio.timeout(PATIENCE):
                while not all(row.state == SYNCED for row in await client.status()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            back.call.cancel()
            async with asyncio.timeout(PATIENCE):
                while len(await client.status()) > 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def test_a_process_is_asked_while_a_push_is_unanswered():
    """A question waits for no acknowledgement, and an answer to none of ours is nothing."""
    async with serving() as (_, client):
        process = Process(client, "o1")
        await process.want(policies=["payment"])
        push = await process.push()
        request = control_pb2.ViewRequest(instance="o1", service="payment")
        asking = client.control.View(request, timeout=PATIENCE)
        asked = await process.push()
        (question,) = asked.questions
        assert (asked.nonce, asked.epoch, question.service) == ("", push.epoch, "payment")
        for id_ in ("no such id", question.id):
            answer = control_pb2.Answer(id=id_, view=control_pb2.ViewResponse(is_called=True))
            await process.call.write(control_pb2.SubscribeRequest(answer=answer))
        assert (await asking).is_called
        (row,) = await client.status()
        assert row.reason == "has not answered: policy of payment"
        await process.answer(push)
        await client.apply(document(timeout="1s"))
        assert (await process.push()).policies


async def test_of_what_nobody_watches_any_more_nothing_is_kept(virtual_clock):
    """Services come and go for months, and so do those who watch them; a minute later they are
    forgotten."""
    database = await Database.open("sqlite::memory:", records.SCHEMA + store.SCHEMA)
    leases = LeaseTable()
    policies = await store.PolicyStore.load(database)
    delivery = Delivery(policies, leases, clock=virtual_clock)
    server = grpc.aio.server()
    ControlService(delivery).add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = Client(f"127.0.0.1:{port}")
    services = [f"service-{number}" for number in range(3)]
    processes = [Process(client, f"o{number}") for number in range(2)]
    for process in processes:
        await process.want(instances=services)
        await process.sets()
    assert "services=3 unwatched=0" in repr(delivery.content)
    await processes[0].want(instances=services[:1])
    await processes[1].want(instances=services[1:2])
    running = asyncio.create_task(delivery.run())
    async with asyncio.timeout(PATIENCE):
        for process, unwatched in ((None, 1), *zip(processes, (2, 3), strict=True)):
            if process is not None:
                process.call.cancel()
            while f"services=3 unwatched={unwatched}" not in repr(delivery.content):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    await virtual_clock.advance(instance_sets.KEPT - 1.0)
    assert "services=3" in repr(delivery.content)
    await virtual_clock.advance(2.0)
    assert "services=0 unwatched=0" in repr(delivery.content)
    running.cancel()
    await client.channel.close()
    await server.stop(None)
    await database.close()


@pytest.mark.parametrize("steps", range(6))
async def test_a_stream_that_ends_and_is_cancelled_at_once_leaves_no_subscriber(steps):
    """Its process has gone; it would stand as pending for ever, and every drain would wait for it."""
    database = await Database.open("sqlite::memory:", records.SCHEMA + store.SCHEMA)
    policies = await store.PolicyStore.load(database)
    delivery = Delivery(policies, LeaseTable(), clock=SYSTEM_CLOCK)
    ended = asyncio.Event()

    async def requests():
        hello = control_pb2.Hello(service="shop", instance="shop-1")
        yield control_pb2.SubscribeRequest(hello=hello)
        await ended.wait()

    serving = asyncio.create_task(ControlService(delivery).Subscribe(requests(), SilentContext()))
    await settled()
    assert len(delivery.pushes.status("default", 0, 0.0)) == 1
    ended.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await database.close()
    assert not delivery.pushes.status("default", 0, 0.0)


class SilentContext:
    """A stream that takes what is written."""

    async def send_initial_metadata(self, _):
        pass

    async def write(self, _):
        pass


async def settled():
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_subscriber_that_does_not_answer_is_given_up(monkeypatch):
    """Its stream ends with the reason, and nobody waits for it any more."""
    monkeypatch.setattr(pushes, "ANSWER_WITHIN", 0.2)
    async with serving() as (_, client):
        process = Process(client, "o1")
        await process.want(instances=["payment"])
        await process.push()
        code, details = await refusal(process.push())
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "was not answered" in details
        assert await client.status() == []


async def test_a_thousand_subscribers_get_one_change_each():
    """All are pushed to once, and all are at its revision afterwards."""
    async with serving() as (_, client):
        processes = [Process(client, f"o{n}") for n in range(1000)]
        for process in processes:
            await process.want(policies=["payment", "*"], instances=["payment"])
        for process in processes:
            await process.answer(await process.push())
        await client.apply(document(timeout="2s"))
        for process in processes:
            push = await process.push()
            assert [one.revision for one in push.policies] == [1]
            await process.answer(push)
        async with asyncio.timeout(PATIENCE):
            while any(row.state != SYNCED or row.revision != 1 for row in await client.status()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for process in processes:
            process.call.cancel()


async def test_many_registrations_are_few_pushes():
    """Two hundred instances that register at once are a handful of sets for a watcher."""
    async with serving() as (_, client):
        process = Process(client, "o1")
        await process.want(instances=["payment"])
        await process.answer(await process.push())
        await asyncio.gather(*(client.register(f"p{n}") for n in range(200)))
        count = 0
        versions = [0]
        size = 0
        while size < 200:
            push = await process.push()
            await process.answer(push)
            count += 1
            versions.append(push.instances[0].version)
            size = len(push.instances[0].instances)
        assert count < 20
        assert versions == sorted(versions)


# The registry


async def test_a_lease_that_runs_out_takes_the_instance_away(monkeypatch):
    """Nobody renews: the watcher hears of its end without being asked."""
    monkeypatch.setattr("meshrpc.control.server.RECOVERY", 0.0)
    async with serving() as (_, client):
        process = Process(client, "o1")
        await client.register("p1", lease=0.2)
        await client.register("p2", lease=60.0)
        await process.want(instances=["payment"])
        push = await process.push()
        assert [one.id for one in push.instances[0].instances] == ["p1", "p2"]
        await process.answer(push)
        push = await process.push()
        assert [one.id for one in push.instances[0].instances] == ["p2"]
        assert await client.instances() == ["p2"]


async def test_deregister_waits_for_every_watcher():
    """It answers only after the last acknowledgement, and says that all have let go."""
    async with serving() as (_, client):
        await client.register("p1")
        watchers = [Process(client, f"o{n}") for n in range(3)]
        for watcher in watchers:
            await watcher.want(instances=["payment"])
            await watcher.answer(await watcher.push())
        leaving = asyncio.create_task(client.deregister("p1", within=PATIENCE))
        for watcher in watchers:
            push = await watcher.push()
            assert not push.instances[0].instances
            assert not leaving.done()
            await watcher.answer(push)
        assert await leaving is True


async def test_deregister_does_not_wait_longer_than_it_is_told():
    """A watcher that does not answer costs the time given, and the answer says so."""
    async with serving() as (_, client):
        await client.register("p1")
        watcher = Process(client, "o1")
        await watcher.want(instances=["payment"])
        await watcher.answer(await watcher.push())
        assert await client.deregister("p1", within=0.1) is False
        watcher.call.cancel()
        assert await client.deregister("p1", within=PATIENCE) is True


async def test_a_restart_forgets_nobody(tmp_path, monkeypatch):
    """Instances, their draining and the policies are there again, each lease fresh."""
    monkeypatch.setattr("meshrpc.control.server.RECOVERY", 0.0)
    url = f"sqlite:{tmp_path / 'control.db'}"
    async with serving(url) as (_, client):
        for id_ in ("p1", "p2", "p3", "p4"):
            await client.register(id_, incarnation=2, lease=0.5 if id_ == "p4" else 15.0)
        await client.registry.Drain(registry_pb2.DrainRequest(service="payment", id="p2"))
        await client.deregister("p3")
        await client.apply(document(timeout="2s"))
        watcher = Process(client, "o1")
        await watcher.want(instances=["payment"])
        while len((push := await watcher.push()).instances[0].instances) > 2:
            await watcher.answer(push)  # until p4's lease has run out
    async with serving(url) as (_, client):
        assert await client.instances() == ["p1", "p2"]
        renewal = registry_pb2.RenewRequest(service="payment", id="p1", incarnation=2)
        await client.registry.Renew(renewal)
        request = registry_pb2.ListInstancesRequest(service="payment")
        answer = await client.registry.ListInstances(request)
        assert [one.draining for one in answer.instances] == [False, True]
        policies = await client.policies.List(policy_pb2.ListPoliciesRequest())
        assert policies.revision == 1
        assert [one.service for one in policies.policies] == ["payment"]


@contextlib.contextmanager
def held_up_disk(monkeypatch):
    """Records are not written before the event that this yields is set."""
    go_on = threading.Event()
    write = records._write

    def wait(connection, batch) -> None:
        assert go_on.wait(PATIENCE)
        write(connection, batch)

    monkeypatch.setattr(records, "_write", wait)
    try:
        yield go_on
    finally:
        go_on.set()


async def test_an_instance_is_on_disk_before_anybody_hears_of_it(monkeypatch):
    """So a control service that is killed and comes back never knows fewer than the callers."""
    monkeypatch.setattr(records, "WRITE_WITHIN", PATIENCE)
    async with serving() as (_, client):
        watcher = Process(client, "o1")
        await watcher.want(instances=["payment"])
        await watcher.answer(await watcher.push())
        with held_up_disk(monkeypatch) as go_on:
            registering = asyncio.create_task(client.register("p1"))
            reading = asyncio.create_task(watcher.push())
            done, _ = await asyncio.wait([registering, reading], timeout=0.2)
            assert not done
            assert await client.instances() == []
            go_on.set()
            await registering
        assert [one.id for one in (await reading).instances[0].instances] == ["p1"]


async def test_a_disk_that_hangs_keeps_nobody_out(monkeypatch):
    """The instance is registered after a moment all the same."""
    monkeypatch.setattr(records, "WRITE_WITHIN", 0.05)
    async with serving() as (_, client):
        with held_up_disk(monkeypatch):
            await client.register("p1")
            assert await client.instances() == ["p1"]


async def test_renewing_what_holds_no_lease_is_not_found():
    """The answer says to register again."""
    async with serving() as (_, client):
        renewal = registry_pb2.RenewRequest(service="payment", id="p9", incarnation=1)
        code, details = await refusal(client.registry.Renew(renewal))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "register again" in details
        renewal = registry_pb2.RenewRequest(service="x" * 100_000, id="あ" * 100_000)
        code, _ = await refusal(client.registry.Renew(renewal))
        assert code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"id": ""}, "id ''"),
        ({"service": ""}, "service ''"),
        ({"service": "pay\nment"}, "printable"),
        ({"address": ""}, "address ''"),
        ({"address": "127.0.0.1"}, "host:port"),
        ({"address": "127.0.0.1:0"}, "port 0"),
        ({"address": "x" * 100_000}, "address 'xxx"),
        ({"id": "あ" * 100_000}, "id 'あ"),
        ({"version": "\x1b[31m"}, "version '\\x1b[31m'"),
        ({"zone": "z" * 300}, "zone 'zzz"),
        ({"weight": 10_001}, "weight 10001: 1 to 10000"),
        ({"labels": {"note": "x" * 20_000}}, "shorten its labels"),
        ({"lease": -1.0}, "lease_seconds"),
        ({"lease": float("nan")}, "lease_seconds"),
        ({"lease": float("inf")}, "lease_seconds"),
    ],
)
async def test_bad_records_are_refused(fields, told):
    """Each with the field and its rule, and nothing is registered."""
    async with serving() as (_, client):
        code, details = await refusal(client.register(**fields))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert told in details
        answer = await client.registry.ListServices(registry_pb2.ListServicesRequest())
        assert not answer.services


async def test_a_service_that_stood_still_expires_nobody(virtual_clock, caplog):
    """Renewals could not be read while this process was stopped, so leases start anew."""
    database = await Database.open("sqlite::memory:", records.SCHEMA + store.SCHEMA)
    leases = LeaseTable()
    policies = await store.PolicyStore.load(database)
    delivery = Delivery(policies, leases, clock=virtual_clock)
    kept = records.InstanceRecords(database)
    service = RegistryService(leases, kept, delivery, clock=virtual_clock)
    instance = Instance(id="p1", service="payment", address="127.0.0.1:1")
    now = virtual_clock.now()
    leases.register(instance, now)
    service.look(now)
    service.look(now + 60.0)
    for second in range(61, 75):
        service.look(now + second)
        assert leases.snapshot("default", "payment").instances == (instance,)
    service.look(now + 75.0)
    assert leases.snapshot("default", "payment").instances == ()
    assert "stood still for 60.0 s" in caplog.text
    await database.close()


async def test_the_first_renewal_after_standing_still_is_in_time(virtual_clock):
    """Even if it is read before this process has looked at its leases."""
    database = await Database.open("sqlite::memory:", records.SCHEMA + store.SCHEMA)
    leases = LeaseTable()
    policies = await store.PolicyStore.load(database)
    delivery = Delivery(policies, leases, clock=virtual_clock)
    kept = records.InstanceRecords(database)
    service = RegistryService(leases, kept, delivery, clock=virtual_clock)
    instance = Instance(id="p1", service="payment", address="127.0.0.1:1")
    leases.register(instance, virtual_clock.now())
    await virtual_clock.advance(60.0)
    # A context that could say no is not needed: this renewal is taken.
    await service.Renew(registry_pb2.RenewRequest(service="payment", id="p1"), None)
    await database.close()


# Policies


async def test_a_bad_document_changes_nothing_and_every_problem_is_named():
    """Two documents, one of them with two mistakes: neither is stored."""
    async with serving() as (_, client):
        code, details = await refusal(
            client.apply(document("order"), document(timeout="2x", retry="{attempts: -1}"))
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        lines = details.splitlines()
        assert len(lines) == 2
        assert all(line.startswith("policy 2: ") for line in lines)
        assert "timeout" in details
        assert "retry.attempts" in details
        listed = await client.policies.List(policy_pb2.ListPoliciesRequest())
        assert (listed.revision, len(listed.policies)) == (0, 0)


async def test_more_than_twenty_problems_are_counted():
    """A document with a thousand mistakes gets an answer, each line with path, value and rule."""
    async with serving() as (_, client):
        wrong = {f"no_such_field_{n}": "1" for n in range(1000)}
        code, details = await refusal(client.apply(document(**wrong)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        lines = details.splitlines()
        assert len(lines) == 21
        assert lines[0].startswith("policy: no_such_field_0: 1: unknown field")
        assert lines[-1] == "and 980 more problems"


async def test_a_document_that_is_too_large_is_refused():
    """With its size and the rule, and so are more documents than fit into one message."""
    async with serving() as (server, client):
        many = ", ".join(f"s{n}: {{version: v{n}}}" for n in range(MAX_DOCUMENT // 20))
        large = document(subsets=f"{{{many}}}")
        code, details = await refusal(client.apply(large))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        size = len(large)
        assert details == f"policy: document: {size} bytes: a document has {MAX_DOCUMENT} at most"
        async with ControlClient([server.address], namespace="default") as commands:
            with pytest.raises(ControlError, match="at once: apply it in parts"):
                await commands.apply_policies([large] * 20)


async def test_reading_documents_holds_up_nobody(monkeypatch):
    """While documents are checked the service goes on answering."""
    go_on = threading.Event()
    load = policy_service.load_document

    def wait(text: str, *, source: str):
        assert go_on.wait(PATIENCE)
        return load(text, source=source)

    monkeypatch.setattr(policy_service, "load_document", wait)
    async with serving() as (_, client):
        applying = asyncio.create_task(client.apply(document(timeout="2s")))
        assert await client.status() == []
        go_on.set()
        assert (await applying).revision == 1


@pytest.mark.parametrize("namespace", ["a\nb", "x" * 300])
async def test_a_namespace_that_cannot_be_shown_is_refused(namespace):
    """Nothing is stored under it."""
    async with serving() as (_, client):
        code, details = await refusal(client.apply(document(), namespace=namespace))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith("namespace '")


async def test_two_documents_for_one_service_are_refused():
    """Which of them counts would be a guess."""
    async with serving() as (_, client):
        code, details = await refusal(client.apply(document(timeout="1s"), document(timeout="2s")))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details == "policy 2: service: payment: another document is for it, too"


async def test_applying_nothing_is_refused():
    """An empty apply is a mistake, not a success."""
    async with serving() as (_, client):
        code, details = await refusal(client.apply())
        assert (code, details) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "there is no document to apply",
        )


async def test_a_dry_run_says_what_would_change_and_changes_nothing():
    """The same answer as an apply, at the old revision."""
    async with serving() as (_, client):
        await client.apply(document(timeout="1s"), document("order"))
        answer = await client.apply(document(timeout="2s"), document("order"), dry_run=True)
        assert (answer.revision, list(answer.changed)) == (1, ["payment"])
        stored = await client.policies.Get(policy_pb2.GetPolicyRequest(service="payment"))
        assert '"timeout":"1s"' in stored.document


async def test_apply_get_list_and_delete():
    """One document through its life."""
    async with serving() as (_, client):
        answer = await client.apply(document(timeout="2s"))
        assert (answer.revision, list(answer.changed)) == (1, ["payment"])
        again = await client.apply(document(timeout="2s"))
        assert (again.revision, list(again.changed)) == (1, [])
        listed = await client.policies.List(policy_pb2.ListPoliciesRequest())
        assert [(one.service, one.revision) for one in listed.policies] == [("payment", 1)]
        request = policy_pb2.DeletePolicyRequest(service="payment")
        assert (await client.policies.Delete(request)).revision == 2
        for call in (
            client.policies.Delete(request),
            client.policies.Get(policy_pb2.GetPolicyRequest(service="payment")),
        ):
            code, details = await refusal(call)
            assert code is grpc.StatusCode.NOT_FOUND
            assert details == "no policy for 'payment' in namespace 'default'"
        request = policy_pb2.GetPolicyRequest(service="あ" * 100_000)
        code, details = await refusal(client.policies.Get(request))
        assert code is grpc.StatusCode.NOT_FOUND


# HTTP


async def test_http_shows_what_the_commands_show():
    """Services, instances, policies and processes, by namespace, as JSON."""
    async with serving() as (server, client), aiohttp.ClientSession() as session:

        async def get(path: str):
            async with session.get(f"http://{server.http_address}{path}") as response:
                assert response.content_type == "application/json"
                return response.status, await response.json()

        assert await get("/healthz") == (200, {"status": "ok"})
        assert await get("/readyz") == (200, {"status": "ready"})
        assert await get("/api/v1/services") == (200, [])
        await client.register("p1", version="v1", pid=7)
        await client.apply(document(timeout="2s"))
        process = Process(client, "o1")
        await process.want(policies=["payment"])
        await process.answer(await process.push())

        assert await get("/api/v1/services") == (200, ["payment"])
        _, (instance,) = await get("/api/v1/services/payment/instances")
        assert instance["id"] == "p1"
        assert list(instance) == [
            *("id", "service", "namespace", "address", "version", "zone", "weight"),
            *("labels", "pid", "health", "state", "permanent", "load"),
        ]
        shown = {
            "service": "payment",
            "namespace": "default",
            "revision": 1,
            "policy": {"schema": "meshrpc.policy/v1", "service": "payment", "timeout": "2s"},
        }
        assert await get("/api/v1/policies") == (200, [shown])
        assert await get("/api/v1/policies/payment") == (200, shown)
        async with asyncio.timeout(5):  # the answer travels by another connection
            while (row := (await get("/api/v1/status"))[1][0])["revision"] != 1:
                pass
        assert len((await get("/api/v1/status"))[1]) == 1
        assert (row["service"], row["instance"], row["revision"]) == ("order", "o1", 1)
        assert set(row) == {
            *("service", "instance", "version", "revision", "state", "reason", "age"),
        }
        for path in ("services", "policies", "status", "services/payment/instances"):
            assert await get(f"/api/v1/{path}?namespace=test") == (200, [])


async def test_http_errors_are_json():
    """Unknown paths, unknown policies and writing methods say what is wrong."""
    async with serving() as (server, _), aiohttp.ClientSession() as session:
        base = f"http://{server.http_address}"
        async with session.get(f"{base}/nothing") as response:
            assert response.status == 404
            assert await response.json() == {"error": "there is nothing at /nothing"}
        async with session.get(f"{base}/api/v1/policies/no%0Ane") as response:
            assert response.status == 404
            error = (await response.json())["error"]
            assert error == "no policy for 'no\\nne' in namespace 'default'"
        async with session.post(f"{base}/api/v1/policies") as response:
            assert response.status == 405
            said = await response.json()
            assert said == {"error": "POST is not allowed here, only GET,HEAD"}


async def test_what_is_no_http_is_answered_and_not_logged(caplog):
    """Somebody who takes this for the gRPC port is told so, and fills no log with tracebacks."""
    async with serving() as (server, _):
        host, _, port = server.http_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.0 400 Bad Request")
    assert not caplog.records


async def test_a_bug_behind_http_is_a_json_error_and_logged(monkeypatch, caplog):
    """The answer keeps its form, and the log has the traceback."""

    def fail(self, namespace):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(LeaseTable, "services", fail)
    async with (
        serving() as (server, _),
        aiohttp.ClientSession(f"http://{server.http_address}") as session,
        session.get("/api/v1/services") as response,
    ):
        assert response.status == 500
        assert "the log has it" in (await response.json())["error"]
    assert "cannot answer GET /api/v1/services" in caplog.text
    assert "ZeroDivisionError" in caplog.text


# The process


async def test_a_port_in_use_is_named():
    """Both ports, each with the option that chooses another; nothing is left open."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for listen, http, option in (
            (f"127.0.0.1:{port}", "127.0.0.1:0", "--listen"),
            ("127.0.0.1:0", f"127.0.0.1:{port}", "--http"),
        ):
            server = ControlServer(listen, http)
            told = f"port {port} on 127.0.0.1 is in use; .* choose another with {option}"
            with pytest.raises(SettingsError, match=told):
                await server.__aenter__()


async def test_two_control_services_do_not_share_a_port():
    """The kernel would let them, and each would have half of the subscribers."""
    async with serving() as (server, _):
        with pytest.raises(SettingsError, match="is in use"):
            await ControlServer(server.address, "127.0.0.1:0").__aenter__()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.0.0.5:7700", "example.com:1"])
def test_addresses_that_others_reach_need_insecure_spelled_out(address):
    """On either port."""
    with pytest.raises(SettingsError, match=r"--listen .* say --insecure"):
        ControlServer(address, "127.0.0.1:0")
    with pytest.raises(SettingsError, match=r"--http .* say --insecure"):
        ControlServer("127.0.0.1:0", address)
    ControlServer(address, address, insecure=True)


async def test_an_open_address_is_warned_of(caplog):
    """The one that others reach is named with its option; the other one is not."""
    caplog.set_level(logging.WARNING, "meshrpc")
    async with ControlServer("0.0.0.0:0", "127.0.0.1:0", insecure=True):
        (record,) = caplog.records
        assert record.getMessage().startswith("--listen 0.0.0.0:0: whoever reaches it may use it")


def test_a_malformed_address_is_named():
    """With the option it came from."""
    with pytest.raises(SettingsError, match=r"--listen '7700': an address is host:port"):
        ControlServer("7700")


async def test_an_unusable_store_is_named(tmp_path):
    """The service does not start without its store."""
    with pytest.raises(ControlError, match="cannot open the store"):
        await ControlServer("127.0.0.1:0", "127.0.0.1:0", f"sqlite:{tmp_path}").__aenter__()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_stops_on_a_signal_and_open_streams_do_not_hold_it(number):
    """Subscribers are told at once that it stops; it is gone well within the grace."""
    async with ControlServer("127.0.0.1:0", "127.0.0.1:0") as server:
        client = Client(server.address)
        processes = [Process(client, f"o{n}") for n in range(20)]
        for process in processes:
            await process.want(policies=["payment"])
            await process.push()
        running = asyncio.create_task(server.run())
        await asyncio.sleep(0)
        os.kill(os.getpid(), number)
        async with asyncio.timeout(PATIENCE):
            await running
        started = SYSTEM_CLOCK.now()
    assert SYSTEM_CLOCK.now() - started < 1.5
    for process in processes:
        code, details = await refusal(process.push())
        assert code is grpc.StatusCode.UNAVAILABLE
        assert details == "the control service is stopping"
    await client.channel.close()
    assert repr(server) == "<ControlServer closed store sqlite::memory:>"

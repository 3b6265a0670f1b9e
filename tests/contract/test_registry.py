"""What every registry promises, held against each of them.

A registry under test is a `Place`. To add one, write a fixture `NAME_place` and put NAME into
`WRITABLE`; a registry that only lists goes into `READABLE`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import threading
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from meshrpc.control.server import ControlServer
from meshrpc.errors import ReadOnlyRegistry, RegistryError, StaleIncarnation
from meshrpc.load_report import LoadReport
from meshrpc.registry.consul import ConsulRegistry
from meshrpc.registry.dns import DnsRegistry
from meshrpc.registry.dns_url import Domain
from meshrpc.registry.embedded import EmbeddedRegistry
from meshrpc.registry.file import FileRegistry
from meshrpc.registry.file_document import SCHEMA
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registry import LEASE, Registry, Snapshot
from meshrpc.registry.static import StaticRegistry
from meshrpc.subscription import Subscription
from meshrpc.v1 import control_pb2
from tests.consul import SELDOM
from tests.dns_server import DnsServer, Zone

WRITABLE = ["memory", "embedded", pytest.param("consul", marks=pytest.mark.consul)]
READABLE = [*WRITABLE, "static", "file", "dns"]

Open = Callable[[str], AbstractAsyncContextManager[Registry]]


@dataclass
class Place:
    """Where registries of one kind meet: all that it opens see the same instances."""

    open: Open
    """Open it in a namespace, with the usual lease."""
    open_brief: Open
    """Open it so that a lease runs out in `run_out`."""
    run_out: Callable[[], Awaitable[None]]
    """Let time pass, or wait for what makes it pass, until leases not renewed run out."""


@pytest.fixture
def memory_place(virtual_clock) -> Place:
    shared = MemoryRegistry(clock=virtual_clock)
    return Place(shared.in_namespace, shared.in_namespace, lambda: virtual_clock.advance(LEASE))


@pytest.fixture
def consul_place(consul_url) -> Place:
    async def run_out() -> None:
        """Consul's own time passes: the tests wait for what it does."""

    return Place(
        lambda namespace: ConsulRegistry(consul_url, namespace, check_every=SELDOM),
        lambda namespace: ConsulRegistry(consul_url, namespace, lease=1.0, check_every=SELDOM),
        run_out,
    )


class _Embedded(EmbeddedRegistry):
    """The control service's registry, with a control stream of its own."""

    def __init__(self, address: str, namespace: str, lease: float = LEASE) -> None:
        hello = control_pb2.Hello(namespace=namespace, service="test", instance="t1")
        self._stream = Subscription([address], hello, rng=random.Random(1))
        super().__init__(self._stream, namespace, lease=lease)

    async def __aenter__(self):
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error) -> None:
        await self._stream.__aexit__(*error)


@pytest.fixture
def control_address(monkeypatch):
    """A control service in a thread, so that its tasks are not among the test's."""
    monkeypatch.setattr("meshrpc.control.server.RECOVERY", 0.0)  # leases run out at once
    started: concurrent.futures.Future[str] = concurrent.futures.Future()
    ends: concurrent.futures.Future = concurrent.futures.Future()

    async def serve() -> None:
        async with ControlServer("127.0.0.1:0", "127.0.0.1:0") as server:
            end = asyncio.Event()
            ends.set_result((asyncio.get_running_loop(), end))
            started.set_result(server.address)
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    yield started.result(10)
    loop, end = ends.result()
    loop.call_soon_threadsafe(end.set)
    thread.join()


@pytest.fixture
def embedded_place(control_address) -> Place:
    async def run_out() -> None:
        """Control's own time passes: the tests wait for what it does."""

    return Place(
        lambda namespace: _Embedded(control_address, namespace),
        lambda namespace: _Embedded(control_address, namespace, lease=1.0),
        run_out,
    )


@pytest.fixture(params=WRITABLE)
def place(request) -> Place:
    return request.getfixturevalue(f"{request.param}_place")


@pytest.fixture
def service() -> str:
    """A name that no other test uses: some registries are shared by all of them."""
    return f"payment-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def instance(service) -> Instance:
    """An instance with something in every field."""
    return Instance(
        id="payment-1",
        service=service,
        address="127.0.0.1:5001",
        version="v1",
        zone="a",
        weight=3,
        labels={"tier": "gold", "example.com/team_x": "blue, or green"},
        pid=4711,
        incarnation=2,
        health=Health.SERVING,
        load=LoadReport(0.42, 118.0, eps=0.5, queue_time=0.0013, cpu=0.7),
    )


class Watched:
    """What a watch was told."""

    def __init__(self, registry: Registry, service: str) -> None:
        self.snapshots: list[Snapshot] = []
        self._told = asyncio.Event()
        self.watch = registry.watch(service, self._on_snapshot)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)
        self._told.set()

    async def until_ids(self, *ids: str) -> None:
        """Wait until these are all there is, whatever they say."""
        async with asyncio.timeout(30):
            while not self.snapshots or ids != tuple(
                each.id for each in self.snapshots[-1].instances
            ):
                self._told.clear()
                await self._told.wait()

    async def until(self, *instances: Instance) -> None:
        """Wait until these are all there is."""
        async with asyncio.timeout(30):
            while not self.snapshots or self.snapshots[-1].instances != instances:
                self._told.clear()
                await self._told.wait()


async def test_a_watch_first_tells_what_there_is_also_when_that_is_nothing(place, service):
    """The first snapshot of a service that nobody serves is an empty one."""
    async with place.open("default") as registry:
        watched = Watched(registry, service)
        await watched.until()
        assert watched.snapshots == [Snapshot(service, ())]


async def test_a_registered_instance_is_listed_with_all_it_said(place, instance):
    """Every field of the record survives the way through the registry, to all who ask."""
    async with place.open("default") as one, place.open("default") as other:
        await one.register(instance)
        await Watched(other, instance.service).until(instance)
        assert await other.instances(instance.service) == (instance,)
        assert instance.service in await other.services()


async def test_instances_are_ordered_by_id(place, instance):
    """The order of registration does not matter."""
    first, second = replace(instance, id="a"), replace(instance, id="b", address="[::1]:5002")
    async with place.open("default") as registry:
        await registry.register(second)
        await registry.register(first)
        await Watched(registry, instance.service).until(first, second)
        assert await registry.instances(instance.service) == (first, second)


async def test_services_are_sorted_and_have_instances(place, instance):
    """A service whose last instance left is not listed any more."""
    later, sooner = (replace(instance, service=f"{instance.service}-{end}") for end in "za")
    async with place.open("default") as registry:
        for each in (later, sooner):
            await registry.register(each)
            await Watched(registry, each.service).until(each)
        ours = [name for name in await registry.services() if name.startswith(instance.service)]
        assert ours == [sooner.service, later.service]
        await registry.deregister(later)
        await Watched(registry, later.service).until()
        assert later.service not in await registry.services()


async def test_registering_again_replaces_the_record(place, instance):
    """What an instance says of itself last is what watchers see."""
    heavier = replace(instance, weight=9, labels={})
    async with place.open("default") as registry:
        watched = Watched(registry, instance.service)
        await registry.register(instance)
        await watched.until(instance)
        await registry.register(heavier)
        await watched.until(heavier)


async def test_a_changed_load_is_a_change_of_the_record(place, instance):
    """Watchers see it, the lease goes on, and one that reports no load any more has none."""
    busier = replace(instance, load=LoadReport(0.9, 40.0))
    silent = replace(instance, load=None)
    async with place.open("default") as registry:
        watched = Watched(registry, instance.service)
        for each in (instance, busier, silent):
            assert each is instance or await registry.renew(each)
            await registry.register(each)
            await watched.until(each)
        await registry.register(busier)
        await watched.until(busier)
        await registry.drain(instance)
        await watched.until(replace(busier, state=State.DRAINING))


async def test_the_same_id_in_another_service_is_another_instance(place, instance):
    """Ids are unique within a service only."""
    other = replace(instance, service=f"{instance.service}-other")
    async with place.open("default") as registry:
        await registry.register(instance)
        await registry.register(other)
        await Watched(registry, instance.service).until(instance)
        await Watched(registry, other.service).until(other)


async def test_namespaces_never_see_each_other(place, instance):
    """The same service and id in two namespaces are two instances, each visible in one."""
    elsewhere = replace(instance, namespace="staging", address="127.0.0.1:5002")
    async with place.open("default") as here, place.open("staging") as there:
        await here.register(instance)
        await there.register(elsewhere)
        await Watched(here, instance.service).until(instance)
        await Watched(there, instance.service).until(elsewhere)
        await there.deregister(elsewhere)
        await Watched(there, instance.service).until()
        assert await here.instances(instance.service) == (instance,)
        assert instance.service not in await there.services()


async def test_a_draining_instance_stays_listed_and_marked(place, instance):
    """Draining tells callers to let go; the lease is kept until the instance deregisters."""
    draining = replace(instance, state=State.DRAINING)
    async with place.open("default") as registry:
        watched = Watched(registry, instance.service)
        await registry.register(instance)
        await watched.until(instance)
        await registry.drain(instance)
        await watched.until(draining)
        assert await registry.renew(instance)
        assert await registry.instances(instance.service) == (draining,)


async def test_a_mark_is_taken_back(place, instance):
    """Whoever drained an instance may think better of it; twice is no error."""
    async with place.open("default") as registry:
        watched = Watched(registry, instance.service)
        await registry.register(instance)
        await registry.drain(instance)
        await watched.until(replace(instance, state=State.DRAINING))
        await registry.undrain(instance)
        await watched.until(instance)
        await registry.undrain(instance)
        assert await registry.renew(instance)
        assert await registry.instances(instance.service) == (instance,)


async def test_a_mark_outlives_what_the_instance_says_until_it_comes_back_anew(place, instance):
    """An operator's drain holds while a changed load is told; the next incarnation is fresh."""
    heavier = replace(instance, weight=9)
    anew = replace(instance, incarnation=instance.incarnation + 1)
    async with place.open("default") as registry:
        watched = Watched(registry, instance.service)
        await registry.register(instance)
        await registry.drain(instance)
        await registry.register(heavier)
        await watched.until(replace(heavier, state=State.DRAINING))
        await registry.register(anew)
        await watched.until(anew)


async def test_a_record_made_by_hand_needs_no_renewal(place, instance):
    """It stays while leases of others run out, until somebody deregisters it."""
    by_hand = replace(instance, id="by-hand", permanent=True)
    async with place.open_brief("default") as registry:
        watched = Watched(registry, instance.service)
        await registry.register(instance)
        await registry.register(by_hand)
        await watched.until_ids("by-hand", instance.id)
        await place.run_out()
        await watched.until_ids("by-hand")
        (listed,) = await registry.instances(instance.service)
        assert (listed.id, listed.address, listed.permanent) == ("by-hand", by_hand.address, True)
        await registry.deregister(by_hand)
        await watched.until()


async def test_who_left_by_its_own_word_is_told_where_the_registry_can(place, instance):
    """Its absence is certain, unlike that of one whose lease ran out, until it is back."""
    other = replace(instance, id="payment-2")
    async with place.open_brief("default") as registry:
        if not registry.acknowledges:
            pytest.skip("its watchers see the mark that an instance sets before it goes")
        watched = Watched(registry, instance.service)
        await registry.register(instance)
        await registry.register(other)
        await registry.deregister(instance)
        await watched.until_ids(other.id)
        assert watched.snapshots[-1].departed == {instance.id}
        await place.run_out()
        await watched.until()
        assert watched.snapshots[-1].departed == {instance.id}
        await registry.register(instance)
        await watched.until(instance)
        assert watched.snapshots[-1].departed == frozenset()


async def test_nothing_is_found_wrong_with_what_has_just_registered(place, instance):
    """Nor with a service that nobody serves."""
    async with place.open("default") as registry:
        await registry.register(instance)
        await Watched(registry, instance.service).until(instance)
        assert await registry.findings(instance.service) == ()
        assert await registry.findings(f"{instance.service}-other") == ()


async def test_a_deregistered_instance_is_gone(place, instance):
    """Watchers let go of it, before `deregister` returns where the registry says so."""
    async with place.open("default") as registry:
        watched = Watched(registry, instance.service)
        await registry.register(instance)
        await watched.until(instance)
        await registry.deregister(instance)
        if registry.acknowledges:
            assert watched.snapshots[-1].instances == ()
        await watched.until()
        assert not await registry.renew(instance)
        assert await registry.instances(instance.service) == ()


async def test_leaving_is_no_error_for_an_instance_nobody_knows(place, instance):
    """Drain and deregister may come twice, or after the lease ran out, and create nothing."""
    async with place.open("default") as registry:
        await registry.drain(instance)
        await registry.deregister(instance)
        watched = Watched(registry, instance.service)
        await watched.until()


async def test_an_older_incarnation_never_replaces_a_newer_one(place, instance):
    """A process that was thought dead cannot push out its successor."""
    async with place.open("default") as registry:
        await registry.register(instance)
        watched = Watched(registry, instance.service)
        await watched.until(instance)
        with pytest.raises(StaleIncarnation, match=instance.id):
            await registry.register(replace(instance, incarnation=1))
        newer = replace(instance, incarnation=3)
        await registry.register(newer)
        await watched.until(newer)


async def test_only_the_incarnation_that_holds_the_lease_renews_it(place, instance):
    """An older incarnation, a newer one and an unknown instance are told to register."""
    async with place.open("default") as registry:
        assert not await registry.renew(instance)
        await registry.register(instance)
        assert await registry.renew(instance)
        assert not await registry.renew(replace(instance, incarnation=1))
        assert not await registry.renew(replace(instance, incarnation=3))
        await registry.register(replace(instance, incarnation=3))
        assert not await registry.renew(instance)


async def test_a_lease_that_is_not_renewed_runs_out_for_good(place, instance):
    """Watchers see it go, no renewal brings it back, and a next incarnation may come."""
    async with place.open_brief("default") as registry:
        watched = Watched(registry, instance.service)
        await registry.register(instance)
        await watched.until(instance)
        await place.run_out()
        await watched.until()
        assert not await registry.renew(instance)
        assert await registry.instances(instance.service) == ()
        again = replace(instance, incarnation=3)
        await registry.register(again)
        await watched.until(again)


async def test_a_closed_watch_is_not_called_again(place, instance):
    """Closing ends one watch and leaves the others of the same service alone."""
    async with place.open("default") as registry:
        closed, kept = (Watched(registry, instance.service) for _ in range(2))
        await closed.until()
        await kept.until()
        closed.watch.close()
        closed.watch.close()
        await registry.register(instance)
        await kept.until(instance)
        assert closed.snapshots == [Snapshot(instance.service, ())]


async def test_a_later_watch_is_told_what_an_earlier_one_knows(place, instance):
    """A second watch of a service starts with all that there is."""
    async with place.open("default") as registry:
        await registry.register(instance)
        await Watched(registry, instance.service).until(instance)
        second = Watched(registry, instance.service)
        await second.until(instance)
        assert len(second.snapshots) == 1


async def test_a_registry_can_be_opened_again(place, instance):
    """After its block, a registry opens and watches as before."""
    registry = place.open("default")
    for incarnation in (2, 3):
        now = replace(instance, incarnation=incarnation)
        async with registry:
            await registry.register(now)
            await Watched(registry, instance.service).until(now)


async def test_closing_a_registry_leaves_no_task_behind(place, instance):
    """Watches still open when the block ends end with it."""
    before = asyncio.all_tasks()
    async with place.open("default") as registry:
        await registry.register(instance)
        await Watched(registry, instance.service).until(instance)
    # grpc ends its own task of a closed call a turn of the loop later.
    if left := asyncio.all_tasks() - before:
        await asyncio.wait(left, timeout=5)
    assert asyncio.all_tasks() <= before


# Registries that only list.


@contextlib.asynccontextmanager
async def _listed(kind: str, service: str, addresses: list[str], folder: Path):
    """Open a registry of a kind that somebody else fills."""
    async with contextlib.AsyncExitStack() as exits:
        match kind:
            case "static":
                registry = StaticRegistry({service: addresses})
            case "file":
                file = folder / "services.yaml"
                text = f"schema: {SCHEMA}\nservices: {{{service}: [{', '.join(addresses)}]}}\n"
                file.write_text(text)
                registry = FileRegistry(f"file://{file}")
            case _:
                zone = Zone()
                ports = [address.rpartition(":")[2] for address in addresses]
                zone.put(f"{service}.test", "SRV", *(f"1 1 {port} a.test." for port in ports))
                zone.put("a.test", "A", "127.0.0.1")
                server = await exits.enter_async_context(DnsServer(zone))
                url = "dns://{}:{}/test".format(*server.address)
                registry = DnsRegistry(Domain.parse(url))
        yield await exits.enter_async_context(registry)


@pytest.fixture(params=READABLE)
async def listing(request, service, tmp_path):
    """An open registry with one service of two instances, at ports 5001 and 5002."""
    addresses = ["127.0.0.1:5002", "127.0.0.1:5001"]
    if request.param in ("static", "file", "dns"):
        async with _listed(request.param, service, addresses, tmp_path) as registry:
            yield registry
        return
    async with request.getfixturevalue(f"{request.param}_place").open("default") as registry:
        for address in addresses:
            await registry.register(Instance(id=address, service=service, address=address))
        yield registry


async def test_every_registry_lists_and_watches(listing, service):
    """Services, instances and the first snapshot of a watch agree, ordered by id."""
    told: asyncio.Queue[Snapshot] = asyncio.Queue()
    watch = listing.watch(service, told.put_nowait)
    async with asyncio.timeout(30):
        while len((snapshot := await told.get()).instances) < 2:
            pass
    assert [each.address for each in snapshot.instances] == ["127.0.0.1:5001", "127.0.0.1:5002"]
    assert [each.load for each in snapshot.instances] == [None, None]  # nobody told any
    assert await listing.instances(service) == snapshot.instances
    if isinstance(listing, DnsRegistry):
        with pytest.raises(RegistryError, match="cannot list"):
            await listing.services()
    else:
        assert service in await listing.services()
    assert await listing.instances("nobody") == ()
    assert await listing.findings("nobody") == ()
    watch.close()


async def test_a_static_registry_registers_nobody(instance):
    """Each change is refused in words that say why."""
    async with StaticRegistry({"payment": ["127.0.0.1:5001"]}) as registry:
        for change in (
            *(registry.register, registry.renew, registry.deregister),
            *(registry.drain, registry.undrain),
        ):
            with pytest.raises(ReadOnlyRegistry, match="fixed list"):
                await change(instance)

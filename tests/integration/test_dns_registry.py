"""DNS as the registry: Kubernetes' names, and Consul's own DNS port."""

import asyncio
import json
import random
import urllib.request
import uuid

import dns.message
import pytest

from meshrpc.errors import ReadOnlyRegistry, RegistryError
from meshrpc.mesh import Mesh
from meshrpc.registry.dns import DnsRegistry
from meshrpc.registry.dns_client import DnsClient
from meshrpc.registry.dns_url import Domain
from meshrpc.registry.dns_watch import LATE
from meshrpc.registry.finding import Problem
from meshrpc.registry.instance import Instance
from tests.dns_server import DnsServer, Zone
from tests.echo import PLAIN, EchoServer

KUBERNETES = "dns:///{namespace}.svc.cluster.local?port=50051"
NAME = "payment.shop.svc.cluster.local"


class Direct(DnsClient):
    """Asks a zone without any network, so that a virtual clock is the only time there is."""

    def __init__(self, zone, clock):
        super().__init__(("10.0.0.10", 53), clock=clock)
        self.zone = zone

    async def _send(self, server, query):
        return dns.message.from_wire(self.zone.reply(query).to_wire(max_size=65535))


@pytest.fixture
def zone():
    return Zone()


@pytest.fixture
def cluster(zone, virtual_clock):
    """Open a cluster's registry in the namespace `shop`."""

    def make(url=KUBERNETES):
        client = Direct(zone, virtual_clock)
        rng = random.Random(1)
        return DnsRegistry(Domain.parse(url), "shop", clock=virtual_clock, client=client, rng=rng)

    return make


def watched(registry, service="payment"):
    """Watch, and keep the addresses of every snapshot."""
    seen = []
    watch = registry.watch(service, lambda told: seen.append([i.address for i in told.instances]))
    return watch, seen


@pytest.mark.parametrize("ttl", [5, 30])
async def test_a_pod_that_is_replaced_is_found_within_a_second_of_its_lifetime(
    cluster, zone, virtual_clock, ttl
):
    """Whenever in the life of an answer the other address comes."""
    zone.put(NAME, "A", "10.1.0.1", "10.1.0.2", ttl=ttl)
    async with cluster() as registry:
        _, seen = watched(registry)
        await virtual_clock.settle()
        for step in range(8):
            other = f"10.1.0.{20 + step}"
            zone.put(NAME, "A", "10.1.0.1", other, ttl=ttl)
            changed_at = virtual_clock.now()
            while f"{other}:50051" not in seen[-1] and virtual_clock.now() - changed_at <= ttl + 1:
                await virtual_clock.advance(0.25)
            assert seen[-1] == ["10.1.0.1:50051", f"{other}:50051"]
            await virtual_clock.advance(ttl * step / 8)


async def test_names_are_asked_at_the_pace_of_their_lifetime(cluster, zone, virtual_clock):
    """Neither sooner nor much later, and as one however many watch."""
    zone.put(NAME, "A", "10.1.0.1", ttl=5)
    async with cluster() as registry:
        _, seen = watched(registry)
        _, also = watched(registry)
        await virtual_clock.advance(60)
        asked = zone.asked.count(f"{NAME}. A")
        assert 60 / (5 + LATE) <= asked <= 60 / 5 + 1
        assert seen == also == [["10.1.0.1:50051"]]


async def test_a_service_scaled_to_zero_is_empty_and_found_again(cluster, zone, virtual_clock):
    """NXDOMAIN is an answer; the zone's own time for it, five seconds at most, is the wait."""
    zone.negative_ttl = 30
    async with cluster() as registry:
        watch, seen = watched(registry)
        await virtual_clock.settle()
        assert seen == [[]]
        zone.put(NAME, "A", "10.1.0.1", ttl=5)
        await virtual_clock.advance(6)
        zone.drop(NAME)
        await virtual_clock.advance(6)
        zone.put(NAME, "A", "10.1.0.2", ttl=5)
        await virtual_clock.advance(6)
        assert seen == [[], ["10.1.0.1:50051"], [], ["10.1.0.2:50051"]]
        assert watch.why_silent() is None


@pytest.mark.parametrize("code", ["SERVFAIL", "REFUSED"])
async def test_a_server_that_cannot_say_changes_nothing(cluster, zone, virtual_clock, code):
    """The watch says why, and the list comes back when the server does."""
    zone.put(NAME, "A", "10.1.0.1", ttl=5)
    async with cluster() as registry:
        watch, seen = watched(registry)
        await virtual_clock.settle()
        zone.codes[f"{NAME}."] = code
        await virtual_clock.advance(120)
        assert code in watch.why_silent()
        with pytest.raises(RegistryError, match=code):
            await registry.instances("payment")
        zone.codes.clear()
        zone.put(NAME, "A", "10.1.0.1", "10.1.0.2", ttl=5)
        await virtual_clock.advance(5)
        assert watch.why_silent() is None
        assert seen == [["10.1.0.1:50051"], ["10.1.0.1:50051", "10.1.0.2:50051"]]


async def test_a_named_port_comes_from_srv_records(cluster, zone, virtual_clock):
    """With the weights they say; a target that cannot be resolved is a finding."""
    zone.put("a.example", "A", "10.1.0.1")
    zone.put(f"_grpc._tcp.{NAME}", "SRV", "0 33 50051 a.example.", "0 0 50052 b.example.")
    async with cluster("dns:///{namespace}.svc.cluster.local?srv=_grpc._tcp") as registry:
        (instance,) = await registry.instances("payment")
        assert instance == Instance(
            id="10.1.0.1:50051",
            service="payment",
            address="10.1.0.1:50051",
            namespace="shop",
            weight=33,
        )
        (finding,) = await registry.findings("payment")
        assert (finding.problem, finding.service) == (Problem.BAD_RECORD, "payment")
        assert "b.example" in finding.detail
        told = []
        registry.watch("payment", told.append)
        await virtual_clock.settle()
        assert told[0].skipped == (finding.detail,)


async def test_closing_the_last_watch_ends_the_asking(cluster, zone, virtual_clock):
    """And leaving the registry ends the others."""
    zone.put(NAME, "A", "10.1.0.1", ttl=5)
    tasks = asyncio.all_tasks()
    async with cluster() as registry:
        (one, _), (other, _) = watched(registry), watched(registry)
        await virtual_clock.settle()
        one.close()
        one.close()
        assert len(registry._following) == 1
        other.close()
        await virtual_clock.settle()
        assert asyncio.all_tasks() == tasks
        watched(registry, "order")
        await virtual_clock.settle()
    assert asyncio.all_tasks() == tasks


async def test_it_lists_no_services_and_changes_none(cluster):
    """Each refusal says why."""
    instance = Instance(id="x", service="payment", address="10.0.0.9:443")
    async with cluster() as registry:
        with pytest.raises(RegistryError, match="DNS cannot list services"):
            await registry.services()
        for change in ("register", "renew", "drain", "undrain", "deregister"):
            with pytest.raises(ReadOnlyRegistry, match="registers nobody"):
                await getattr(registry, change)(instance)


async def test_a_server_that_dies_and_comes_back_is_a_pause(zone):
    """Over real sockets: what was known stays, the reason is said, and the next answer is taken."""
    zone.put("payment.corp", "SRV", "1 1 50051 a.example.", ttl=0)
    zone.put("a.example", "A", "10.1.0.1", ttl=0)
    async with DnsServer(zone) as server:
        url = "dns://{}:{}/corp".format(*server.address)
        async with DnsRegistry(Domain.parse(url)) as registry:
            told = asyncio.Queue()
            watch = registry.watch("payment", told.put_nowait)
            async with asyncio.timeout(10):
                first = await told.get()
                server.manner = "garbage"
                while watch.why_silent() is None:
                    await server.heard.acquire()
                assert "not a DNS message" in watch.why_silent()
                server.manner = "well"
                zone.put("payment.corp", "SRV", "1 1 50052 a.example.", ttl=0)
                second = await told.get()
            assert [each.address for each in first.instances] == ["10.1.0.1:50051"]
            assert [each.address for each in second.instances] == ["10.1.0.1:50052"]
            assert watch.why_silent() is None


async def test_a_call_goes_to_what_dns_lists_in_the_callers_namespace(zone, tmp_path):
    """By the mesh's own settings, and with the port of an SRV record."""
    zone.put("one.test", "A", "127.0.0.1")
    async with EchoServer("one") as one, DnsServer(zone) as server:
        zone.put("_grpc._tcp.echo.blue.test", "SRV", f"0 0 {one.port} one.test.")
        url = "dns://{}:{}/{{namespace}}.test?srv=_grpc._tcp".format(*server.address)
        async with (
            Mesh(
                "shell", registry=url, namespace="blue", control="none", state_dir=tmp_path
            ) as mesh,
            mesh.channel("echo") as channel,
        ):
            assert await channel.unary_unary(PLAIN)(b"hi", timeout=10) == b"hi@one"


# Consul's own DNS.


@pytest.fixture
def consul_dns(consul_server):
    """The URL of a real Consul's DNS, and what registers a service there by hand."""

    def put(path, body=None):
        request = urllib.request.Request(
            f"http://{consul_server.address}/v1/agent/service/{path}",
            method="PUT",
            data=json.dumps(body).encode() if body else b"",
        )
        urllib.request.urlopen(request, timeout=5).close()  # noqa: S310

    return f"dns://{consul_server.dns_address}", put


@pytest.mark.consul
async def test_every_instance_in_consul_is_found_by_its_dns(consul_dns):
    """More than its UDP answers list; ports and weights included; one that leaves is gone soon."""
    url, put = consul_dns
    service = f"dns-{uuid.uuid4().hex[:8]}"
    ids = [f"{service}-{number}" for number in range(1, 31)]
    for number, id_ in enumerate(ids, 1):
        body = {
            "Name": service,
            "ID": id_,
            "Address": f"10.2.0.{number}",
            "Port": 5000 + number,
            "Weights": {"Passing": number, "Warning": 1},
        }
        await asyncio.to_thread(put, "register", body)
    expected = {f"10.2.0.{number}:{5000 + number}": number for number in range(1, 31)}
    async with DnsRegistry(Domain.parse(url)) as registry:
        told = asyncio.Queue()
        registry.watch(service, told.put_nowait)

        async def until(weights):
            async with asyncio.timeout(10):
                while True:
                    snapshot = await told.get()
                    if {each.address: each.weight for each in snapshot.instances} == weights:
                        return snapshot

        snapshot = await until(expected)
        assert [each.id for each in snapshot.instances] == sorted(expected)
        await asyncio.to_thread(put, f"deregister/{ids[0]}")
        del expected["10.2.0.1:5001"]
        await until(expected)
        assert await registry.instances("nobody-knows-it") == ()
    for id_ in ids[1:]:
        await asyncio.to_thread(put, f"deregister/{id_}")

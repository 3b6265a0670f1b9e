"""What Consul's own checks do to instances: health, maintenance, warnings, lost agents."""

from __future__ import annotations

import socket
import uuid
from dataclasses import replace

import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from meshrpc.registry.consul import ConsulRegistry
from meshrpc.registry.finding import Problem
from meshrpc.registry.instance import Health, Instance, State
from tests.consul import SELDOM, Told

pytestmark = pytest.mark.consul


@pytest.fixture
def service() -> str:
    return f"payment-{uuid.uuid4().hex[:8]}"


async def serve(servicer: health.aio.HealthServicer | None) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    if servicer is not None:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def test_the_agent_looks_whether_instances_answer(consul_server, service):
    """Those that do not are listed all the same, as not serving, lease or none; a server without a
    health service serves; and whom nobody looked at yet is unknown, if nobody vouches for it."""
    says = health.aio.HealthServicer()
    (well, healthy), (bare, without) = await serve(says), await serve(None)
    gone, dead = await serve(None)
    await gone.stop(0)
    frozen = socket.create_server(("127.0.0.1", 0))  # the kernel accepts, and nobody answers

    addresses = {
        "hand-bare": without,
        "hand-dead": dead,
        "hand-well": healthy,
        "leased-bare": without,
        "leased-dead": dead,
        "leased-frozen": f"127.0.0.1:{frozen.getsockname()[1]}",
        "leased-well": healthy,
    }

    def fleet(*states):
        return [
            Instance(
                id=id_,
                service=service,
                address=address,
                permanent=id_.startswith("hand"),
                health=state,
            )
            for (id_, address), state in zip(addresses.items(), states, strict=True)
        ]

    up, down = Health.SERVING, Health.NOT_SERVING
    async with ConsulRegistry(consul_server.url, check_every=1.0) as registry:
        told = Told()
        registry.watch(service, told)
        for each in fleet(*[up] * 7):
            await registry.register(each)
        await told.until(*fleet(up, down, up, up, down, down, up))
        vouched = {
            each.health
            for snapshot in told.snapshots
            for each in snapshot.instances
            if each.id == "leased-well"
        }
        assert vouched == {up}
        await says.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await bare.stop(0)
        # What a server without health service leaves behind is known by its lease.
        await told.until(*fleet(down, down, down, up, down, down, down))
        findings = await registry.findings(service)
        assert {each.id for each in findings} == set(addresses) - {"leased-bare"}
        assert {each.problem for each in findings} == {Problem.NOT_SERVING}
        assert await registry.renew(fleet(*[up] * 7)[0])
        for each in fleet(*[up] * 7):
            await registry.deregister(each)
        assert not await registry.renew(fleet(*[up] * 7)[0])
        await told.until()
    await well.stop(0)
    frozen.close()


async def test_whom_nobody_looked_at_yet_is_unknown_if_nobody_vouches_for_it(
    consul_server, service
):
    """A lease is its process's word; a record made by hand has none."""
    ours = Instance(id="1", service=service, address="127.0.0.1:1")
    by_hand = replace(ours, id="2", permanent=True)
    async with ConsulRegistry(consul_server.url, check_every=SELDOM) as registry:
        told = Told()
        registry.watch(service, told)
        await registry.register(ours)
        await registry.register(by_hand)
        await told.until(replace(ours, health=Health.SERVING), by_hand)
        await registry.deregister(by_hand)


async def test_maintenance_mode_is_draining_and_undrain_ends_it(consul_server, service):
    """Whether our own record is in it or another's, which is drained that way."""
    ours = Instance(id="1", service=service, address="127.0.0.1:1", health=Health.SERVING)
    theirs = replace(ours, id="theirs", address="10.0.0.5:80")
    record = {"Name": service, "ID": "theirs", "Address": "10.0.0.5", "Port": 80, "Tags": ["a"]}
    consul_server.put("/v1/agent/service/register", record)
    async with ConsulRegistry(consul_server.url, check_every=SELDOM) as registry:
        told = Told()
        registry.watch(service, told)
        await registry.register(ours)
        await told.until(ours, theirs)
        consul_server.put(f"/v1/agent/service/maintenance/default:{service}:1?enable=true")
        await told.until(replace(ours, state=State.DRAINING), theirs)
        assert await registry.renew(ours)
        assert await registry.findings(service) == ()
        await registry.undrain(ours)
        await told.until(ours, theirs)
        await registry.drain(theirs)
        await told.until(ours, replace(theirs, state=State.DRAINING))
        (entry,) = (e for e in consul_server.get(f"/v1/health/service/{service}?tag=a"))
        assert not entry["Service"]["Meta"]  # what others wrote is left alone
        await registry.undrain(theirs)
        await told.until(ours, theirs)
        await registry.deregister(theirs)
        await told.until(ours)


async def test_what_other_agents_nodes_say_counts(consul_server, service):
    """A warning weighs what Consul says; a node in maintenance drains; one that is lost is out."""

    def entered(node: str, *checks: tuple[str, str]) -> None:
        consul_server.put(
            "/v1/catalog/register",
            {
                "Node": f"{service}-{node}",
                "Address": "10.0.0.5",
                "Service": {
                    "ID": node,
                    "Service": service,
                    "Port": 80,
                    "Weights": {"Passing": 20, "Warning": 4},
                },
                "Checks": [
                    {
                        "Node": f"{service}-{node}",
                        "CheckID": id_,
                        "Name": id_,
                        "Status": status,
                        "ServiceID": "" if id_.startswith(("serf", "_node")) else node,
                    }
                    for id_, status in checks
                ],
            },
        )

    def seen(node: str, weight: int = 20, state: State = State.ACTIVE) -> Instance:
        return Instance(
            id=node,
            service=service,
            address="10.0.0.5:80",
            weight=weight,
            state=state,
            health=Health.SERVING,
        )

    entered("busy", ("disk", "warning"))
    entered("failing", ("disk", "critical"))
    entered("fine", ("disk", "passing"))
    entered("lost", ("serfHealth", "critical"))
    entered("serviced", ("_node_maintenance", "critical"), ("disk", "passing"))
    async with ConsulRegistry(consul_server.url) as registry:
        listed = (seen("busy", 4), seen("fine"), seen("serviced", state=State.DRAINING))
        assert await registry.instances(service) == listed
        assert [(each.id, each.problem) for each in await registry.findings(service)] == [
            ("failing", Problem.NOT_SERVING),
            ("lost", Problem.STALE),
        ]
    for node in ("busy", "failing", "fine", "lost", "serviced"):
        consul_server.put("/v1/catalog/deregister", {"Node": f"{service}-{node}"})

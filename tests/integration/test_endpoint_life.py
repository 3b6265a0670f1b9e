"""The life of connections: made, kept, lost, made again and closed, against real grpc servers."""

import asyncio
import gc
import socket
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

import meshrpc
from meshrpc.client.channel import Channel
from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import Endpoint
from meshrpc.client.logical_call import LogicalCall
from meshrpc.policy.model import Balancer, BalancerKind
from meshrpc.registry.instance import Health, State
from meshrpc.registry.registry import Snapshot
from tests.echo import PLAIN, ROUND_ROBIN, EchoServer, Handlers, policy, ready

READY = grpc.ChannelConnectivity.READY
GRPCIO = tuple(int(part) for part in grpc.__version__.split(".")[:2])
_FILES = Path("/proc/self/fd")
needs_proc = pytest.mark.skipif(not _FILES.exists(), reason="open files are counted in /proc")


class Server(EchoServer):
    """An echo server that notes the connection of every call; with options of its own."""

    def __init__(self, name, script=None, options=()):
        super().__init__(name, script)
        self.options = options
        self.connections = Counter()

    async def __aenter__(self):
        options = [("grpc.so_reuseport", 0), *self.options]
        self.server = grpc.aio.server(options=options)
        self.server.add_generic_rpc_handlers((Handlers(self),))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()
        return self

    async def enter(self, context):
        self.connections[context.peer()] += 1
        await super().enter(context)


def endpoint_of(channel, name):
    """Return the live endpoint of an instance."""
    return next(e for e in channel.bound().endpoints if e.instance.id == name)


async def until(true, seconds=10):
    """Wait until something that nobody announces is so."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.005)


def seen_states(endpoint):
    """Return the list that the endpoint's states go to from now on."""
    states, keeper = [], endpoint._keeper

    class Noting:
        outliers = keeper.outliers
        on_admission = keeper.on_admission

        def on_state(self, endpoint, before):
            states.append(endpoint.state)
            keeper.on_state(endpoint, before)

    endpoint._keeper = Noting()
    return states


async def leaves_ready(endpoint):
    """Return when a watcher has seen that the connection is gone, or is back again."""
    await until(lambda: endpoint.state is not READY)


# Connecting.


async def test_a_channel_connects_with_its_first_call_and_not_before(mesh, registry):
    """Nothing is watched, dialled or kept for a channel that is only made."""
    async with Server("one") as one:
        await registry.register(one.instance)
        tasks = asyncio.all_tasks()
        channel = mesh.channel("echo")
        stub = channel.unary_unary(PLAIN)
        assert channel.get_state() is grpc.ChannelConnectivity.IDLE
        assert asyncio.all_tasks() == tasks
        assert not mesh._session._destinations
        await stub(b"")
        assert channel.get_state() is READY


@pytest.mark.parametrize("by", ["channel_ready", "get_state"])
async def test_a_warm_channel_is_connected_to_every_instance(mesh, registry, by):
    """So no later call waits for a connection: each goes over one that was there before it."""
    async with Server("a") as a, Server("b") as b, Server("c") as c:
        for server in (a, b, c):
            await registry.register(server.instance)
        channel = mesh.channel("echo")
        if by == "channel_ready":
            await channel.channel_ready()
        else:
            channel.get_state(try_to_connect=True)
        await ready(channel, 3)
        policy(mesh, balancer=ROUND_ROBIN)
        for _ in range(9):
            call = channel.unary_unary(PLAIN)(b"")
            assert call._next is None, "it went out when it was made, without any waiting"
            await call
        assert [list(s.connections.values()) for s in (a, b, c)] == [[3], [3], [3]]


async def test_only_ready_endpoints_are_picked(mesh, registry):
    """An instance that takes connections and never answers them costs no call any time."""
    with socket.create_server(("127.0.0.1", 0)) as blackhole:
        host, port = blackhole.getsockname()
        async with Server("good") as good:
            hole = replace(good.instance, id="hole", address=f"{host}:{port}")
            await registry.register(hole)
            await registry.register(good.instance)
            channel = mesh.channel("echo")
            channel.get_state(try_to_connect=True)
            policy(mesh, balancer=ROUND_ROBIN)
            await ready(channel, 1)
            async with asyncio.timeout(5):
                for _ in range(50):
                    assert await channel.unary_unary(PLAIN)(b"") == b"@good"
            assert endpoint_of(channel, "hole").state is not READY


# Losing a connection, and making it again.


@pytest.mark.parametrize("side", ["client_idle_timeout", "max_connection_idle"])
async def test_an_idle_connection_is_made_again_without_a_call(mesh, registry, side):
    """Whichever side finds that it was idle for too long, and then a call goes out at once."""
    client, server = [], []
    if side == "client_idle_timeout":
        client = [("grpc.client_idle_timeout_ms", 1000)]
    else:
        server = [("grpc.max_connection_idle_ms", 200)]
    async with Server("one", options=server) as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo", options=client)
        await channel.unary_unary(PLAIN)(b"")
        endpoint = endpoint_of(channel, "one")
        states = seen_states(endpoint)
        await until(lambda: states[-1:] == [READY])
        assert grpc.ChannelConnectivity.IDLE in states
        assert await channel.unary_unary(PLAIN)(b"hi") == b"hi@one"
        assert endpoint_of(channel, "one") is endpoint
        assert len(one.connections) == 2


AGING = [("grpc.max_connection_age_ms", 150), ("grpc.max_connection_age_grace_ms", 10_000)]


@pytest.mark.parametrize("count", [1, 2])
async def test_connections_that_grow_old_cost_no_call(mesh, registry, count):
    """Servers close every connection after 150 ms, under load, twenty times over: no call fails.

    None of the methods is idempotent, and there is no second attempt for want of another server:
    a call that meets the GOAWAY is not lost in the first place.
    """
    servers = [Server(f"s{number}", options=AGING) for number in range(count)]
    async with Server("unused"):
        for server in servers:
            await server.__aenter__()
            await registry.register(server.instance)
        channel = mesh.channel("echo")
        failed, made = [], 0
        enough = asyncio.Event()

        async def stream():
            call = channel.stream_stream("/test.Echo/Mirror")()
            for number in range(5):
                await call.write(b"%d" % number)
                assert await call.read() == b"%d" % number
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK

        async def load(number):
            nonlocal made
            while not enough.is_set():
                try:
                    if number % 2:
                        await channel.unary_unary(PLAIN)(b"", timeout=10)
                    else:
                        await stream()
                except grpc.aio.AioRpcError as error:
                    failed.append(error)
                made += 1
                if sum(len(server.connections) for server in servers) >= 20 * count:
                    enough.set()

        async with asyncio.timeout(30):
            await asyncio.gather(*(load(number) for number in range(8)))
        assert failed == []
        assert made > 200
        assert all(endpoint.pending == 0 for endpoint in channel.bound().endpoints)
        for server in servers:
            await server.__aexit__(None, None, None)


async def test_a_server_restarted_on_its_port_is_the_same_endpoint_connected_anew(mesh, registry):
    """The record did not change, so what was learned stays; the connection is a new one."""
    one = Server("one")
    async with one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        await channel.unary_unary(PLAIN)(b"")
        endpoint = endpoint_of(channel, "one")
    await leaves_ready(endpoint)
    async with one:
        assert await channel.unary_unary(PLAIN)(b"hi", wait_for_ready=True, timeout=10) == b"hi@one"
        await registry.register(replace(one.instance, incarnation=1))
        assert await channel.unary_unary(PLAIN)(b"hi") == b"hi@one"
        assert endpoint_of(channel, "one") is endpoint
        assert len(one.connections) == 2


async def test_a_call_that_found_a_connection_broken_hears_when_it_is_back(
    mesh, registry, monkeypatch
):
    """Also when it broke and came back before its watcher could look: to that it never left."""
    looked = asyncio.Event()
    wait_for_state_change = grpc.aio.Channel.wait_for_state_change

    async def breaks_unseen(self, last):
        if last is READY:
            await looked.wait()
            looked.clear()
        else:
            await wait_for_state_change(self, last)

    async with Server("one") as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        monkeypatch.setattr(type(grpc_channel(channel)), "wait_for_state_change", breaks_unseen)
        await channel.unary_unary(PLAIN)(b"")
        with monkeypatch.context() as broken:
            broken.setattr(Endpoint, "is_ready", lambda self: False)
            call = channel.unary_unary(PLAIN)(b"hi", timeout=5)
            for _ in range(5):
                await asyncio.sleep(0)
            assert call.peer() is None
        looked.set()
        assert await call == b"hi@one"


def grpc_channel(channel):
    """Return grpc's own channel of some endpoint of `channel`."""
    channel.get_state(try_to_connect=True)
    return channel.bound().endpoints[0]._channel


async def test_an_endpoint_outlives_a_failing_watch_of_its_connection(
    mesh, registry, monkeypatch, caplog
):
    """It is logged, looked at again, and the endpoint is picked once its server is back."""
    monkeypatch.setattr("meshrpc.client.endpoint._LOOK_EVERY", 0.01)
    one = Server("one")
    async with one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")

        async def fail(self, last):
            raise RuntimeError("gRPC channel connectivity state watch failed unexpectedly.")

        monkeypatch.setattr(type(grpc_channel(channel)), "wait_for_state_change", fail)
        await channel.unary_unary(PLAIN)(b"")
        endpoint = endpoint_of(channel, "one")
    await leaves_ready(endpoint)
    async with one:
        assert await channel.unary_unary(PLAIN)(b"hi", wait_for_ready=True, timeout=10) == b"hi@one"
    errors = [r for r in caplog.records if r.name == "meshrpc.client"]
    assert {r.getMessage() for r in errors} == {"watching the connection to one failed"}
    assert len(errors) > 1


# Keeping it over updates.


async def test_every_update_that_keeps_the_instance_keeps_its_connection(mesh, registry):
    """Labels, weight, version, zone, health, incarnation, draining and back, policy: one peer."""
    async with Server("one") as one, Server("two") as two:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        await channel.unary_unary(PLAIN)(b"")
        endpoint, destination = endpoint_of(channel, "one"), channel.bound()
        held = channel.stream_stream("/test.Echo/Mirror")()
        await held.write(b"before")
        assert await held.read() == b"before"

        updates = [
            {"labels": {"tier": "gold"}},
            {"weight": 7},
            {"version": "v2"},
            {"zone": "b"},
            {"health": Health.SERVING},
            {"incarnation": 3},
            {"namespace": "default"},
            {"state": State.DRAINING},
            {"state": State.ACTIVE},
        ]
        instance = one.instance
        for update in updates:
            instance = replace(instance, **update)
            destination.discovery.take_in(Snapshot("echo", (instance, two.instance)))
            assert endpoint_of(channel, "one") is endpoint
            assert endpoint.instance == instance
        for kind in (BalancerKind.RANDOM, BalancerKind.ROUND_ROBIN, BalancerKind.PEAK_EWMA):
            policy(mesh, balancer=Balancer(kind), timeout=3.0)
        assert endpoint.load.value(mesh.clock.now()) > 0
        assert endpoint.pending == 1
        await held.write(b"after")
        assert await held.read() == b"after"
        held.cancel()
        destination.discovery.take_in(Snapshot("echo", (instance,)))
        await ready(channel, 1)
        assert await channel.unary_unary(PLAIN)(b"hi") == b"hi@one"
        assert len(one.connections) == 1


async def test_draining_and_back_is_the_same_connection(mesh, registry):
    """By the registry's own words, with another instance answering meanwhile."""
    async with Server("one") as one, Server("two") as two:
        await registry.register(one.instance)
        await registry.register(two.instance)
        channel = mesh.channel("echo")
        policy(mesh, balancer=ROUND_ROBIN)
        await channel.channel_ready()
        await ready(channel, 2)
        for _ in range(5):
            await registry.drain(one.instance)
            assert {await channel.unary_unary(PLAIN)(b"") for _ in range(4)} == {b"@two"}
            await registry.undrain(one.instance)
            both = {await channel.unary_unary(PLAIN)(b"") for _ in range(4)}
            assert both == {b"@one", b"@two"}
        assert len(one.connections) == len(two.connections) == 1


async def test_a_record_that_another_kind_of_server_takes_over_is_a_new_endpoint(mesh, registry):
    """Ours are pinged often and told whom we mean; others would take either amiss."""
    async with Server("one") as one:
        await registry.register(replace(one.instance, pid=None))
        channel = mesh.channel("echo")
        await channel.unary_unary(PLAIN)(b"")
        foreign = endpoint_of(channel, "one")
        assert "mesh-target" not in one.seen[-1]
        await registry.register(replace(one.instance, incarnation=1))
        await ready(channel, 1)
        assert endpoint_of(channel, "one") is not foreign
        await channel.unary_unary(PLAIN)(b"")
        assert one.seen[-1]["mesh-target"] == "one"
        assert len(one.connections) == 2


async def test_several_updates_in_one_step_leave_the_last_one(mesh, registry):
    """Nothing waits in between, and nobody who went stays."""
    async with Server("one") as one, Server("two") as two:
        channel = mesh.channel("echo")
        channel.get_state(try_to_connect=True)
        destination = channel.bound()
        for instances in ([one], [two], [], [one, two], [two]):
            destination.discovery.take_in(Snapshot("echo", tuple(s.instance for s in instances)))
        assert await channel.unary_unary(PLAIN)(b"hi") == b"hi@two"
        assert len(destination.endpoints) == 1
        await asyncio.gather(*destination._endpoints._retiring)
        assert not destination._endpoints._retiring


async def test_an_update_made_inside_a_call_back_is_taken(mesh, registry):
    """A call's done callback deregisters the instance that answered it."""
    async with Server("one") as one, Server("two") as two:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        changes = []

        def swap(call):
            for change in (registry.register(two.instance), registry.deregister(one.instance)):
                with pytest.raises(StopIteration):
                    change.send(None)
            changes.append(call)

        call = channel.unary_unary(PLAIN)(b"")
        call.add_done_callback(swap)
        assert await call == b"@one"
        await until(lambda: changes)
        assert await channel.unary_unary(PLAIN)(b"") == b"@two"


# Letting go.


async def test_an_instance_that_comes_back_while_it_is_let_go_is_dialled_anew(mesh, registry):
    """The old connection keeps its call to the end, and closes; the new one takes what comes."""
    release = asyncio.Event()

    async def hold(server, context):
        if len(server.seen) == 1:
            await release.wait()

    async with Server("one", hold) as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        held = channel.unary_unary(PLAIN)(b"held")
        await one.calls(1)
        before = endpoint_of(channel, "one")
        await registry.deregister(one.instance)
        await registry.register(replace(one.instance, incarnation=1))
        assert await channel.unary_unary(PLAIN)(b"hi") == b"hi@one"
        assert endpoint_of(channel, "one") is not before
        assert before.pending == 1
        retiring = tuple(channel.bound()._endpoints._retiring)
        release.set()
        assert await held == b"held@one"
        async with asyncio.timeout(5):
            await asyncio.gather(*retiring)
        assert before.pending == 0
        assert not channel.bound()._endpoints._retiring


async def test_leaving_the_mesh_does_not_wait_for_what_is_being_let_go(registry):
    """Thirty seconds are for calls of a mesh that stays; here they end, and nothing is left."""

    async def hold(server, context):
        await asyncio.Event().wait()

    async with Server("one", hold) as one, Server("two", hold) as two:
        tasks = client_tasks()
        async with (
            asyncio.timeout(10),
            meshrpc.Mesh("s", registry=registry, control="none") as mesh,
        ):
            channel = mesh.channel("echo")
            calls = []
            for server in (one, two):
                await registry.register(server.instance)
                calls.append(channel.unary_unary(PLAIN)(b""))
                await server.calls(1)
                await registry.deregister(server.instance)
            assert len(channel.bound()._endpoints._retiring) == 2
        codes = [await call.code() for call in calls]
        assert codes == [grpc.StatusCode.UNAVAILABLE] * 2
        await until(lambda: client_tasks() <= tasks)


def client_tasks():
    """Return all tasks but those of grpc's servers, which end in their own time."""
    return {task for task in asyncio.all_tasks() if "_cygrpc" not in repr(task)}


async def test_a_bad_record_costs_none_of_the_others(mesh, registry, monkeypatch, caplog):
    """Whatever goes wrong when an endpoint is made, the rest of the snapshot is taken."""
    dial = "meshrpc.client.endpoint.grpc.aio.insecure_channel"
    real = grpc.aio.insecure_channel

    def refuse(target, **options):
        if target.endswith(":1"):
            raise RuntimeError("no more channels")
        return real(target, **options)

    monkeypatch.setattr(dial, refuse)
    async with Server("one") as one:
        await registry.register(replace(one.instance, id="bad", address="127.0.0.1:1"))
        await registry.register(one.instance)
        assert await mesh.channel("echo").unary_unary(PLAIN)(b"hi") == b"hi@one"
        assert "instance bad of echo skipped: no more channels" in caplog.text


async def test_states_that_change_together_make_one_picker(mesh, registry, monkeypatch):
    """A hundred connections that change in one step of the loop are one change for calls."""
    async with Server("one") as one:
        channel = mesh.channel("echo")
        channel.get_state(try_to_connect=True)
        destination = channel.bound()
        many = tuple(replace(one.instance, id=f"i{number}") for number in range(100))
        destination.discovery.take_in(Snapshot("echo", many))
        await ready(channel, 100)
        for _ in range(5):
            await asyncio.sleep(0)  # what is on its way
        rebuilds = []
        rebuild = Destination._rebuild
        monkeypatch.setattr(
            Destination, "_rebuild", lambda self: (rebuilds.append(self), rebuild(self))
        )
        for endpoint in destination.endpoints:
            endpoint._keeper.on_state(endpoint, endpoint.state)
        assert rebuilds == []
        async with asyncio.timeout(5):
            await destination.changed()
        assert len(rebuilds) == 1


# Leaving nothing behind.


def ours():
    """Count the live objects of our own kinds."""
    return Counter(
        type(each).__name__
        for each in gc.get_objects()
        if isinstance(each, Endpoint | Destination | Channel | LogicalCall)
    )


@needs_proc
async def test_nothing_needs_the_garbage_collector(registry):
    """Endpoints, destinations, channels and calls are freed by their last reference.

    Instances come, are called in all four ways and go; the mesh is left; all with the garbage
    collector off. Tasks, open files, threads and objects are as many as before.
    """

    async def use(channel):
        for _ in range(20):
            await channel.unary_unary(PLAIN)(b"", timeout=10)
            assert len([m async for m in channel.unary_stream("/test.Echo/CountUp")(b"3")]) == 3
            assert await channel.stream_unary("/test.Echo/Join")(iter([b"a"])) == b"a"
            call = channel.stream_stream("/test.Echo/Mirror")()
            await call.write(b"1")
            assert await call.read() == b"1"
            call.cancel()
            del call
            async for _ in channel.unary_stream("/test.Echo/CountUp")(b"1000"):
                break

    async def live():
        async with Server("a") as a, Server("b") as b:
            await registry.register(a.instance)
            async with meshrpc.Mesh("shell", registry=registry, control="none") as mesh:
                channel = mesh.channel("echo")
                for _ in range(3):
                    await registry.register(b.instance)
                    await channel.channel_ready()
                    await ready(channel, 2)
                    await use(channel)
                    await registry.deregister(b.instance)
                    await use(channel)
                await channel.close()
                await registry.deregister(a.instance)

    def counted():
        return len(asyncio.all_tasks()), len(list(_FILES.iterdir())), threading.active_count()

    await live()  # what grpc and asyncio make once and keep
    gc.collect()
    objects, before = ours(), counted()
    gc.disable()
    try:
        await live()
        await until(lambda: all(now <= then for now, then in zip(counted(), before, strict=True)))
        # The calls of older grpcio are cycles, and hold the endpoints that they went to.
        await until(lambda: ours() <= objects or (GRPCIO < (1, 83) and gc.collect() < 0))
    finally:
        gc.enable()

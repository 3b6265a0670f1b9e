"""The library's end of the control stream, against a real control service on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import tracemalloc

import grpc
import pytest

from meshrpc.clock import SYSTEM_CLOCK, SystemClock
from meshrpc.control import control_service
from meshrpc.control.client import ControlClient
from meshrpc.control.server import ControlServer
from meshrpc.errors import ControlError, PolicyError, Problem, RegistryError, StaleIncarnation
from meshrpc.limits.shares import Claim
from meshrpc.registry.embedded import EmbeddedRegistry
from meshrpc.registry.instance import Instance, State
from meshrpc.subscription import Subscription
from meshrpc.v1 import control_pb2, control_pb2_grpc, policy_pb2, policy_pb2_grpc

PATIENCE = 10.0


class Heard:
    """A callback that notes what it is called with."""

    def __init__(self, refuse: str | None = None) -> None:
        self.all: list = []
        self.refuse = refuse
        self._queue: asyncio.Queue = asyncio.Queue()

    def __call__(self, value) -> None:
        self.all.append(value)
        self._queue.put_nowait(value)
        if self.refuse is not None and value is not None:
            raise PolicyError((Problem("timeout", "2s", self.refuse),), source="test")

    async def next(self):
        async with asyncio.timeout(PATIENCE):
            return await self._queue.get()


class QuickClock(SystemClock):
    """The machine's clock, for a subscription that does not dawdle: waits are cut short."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 20)


def subscription(*addresses: str, service: str = "order", instance: str = "o1") -> Subscription:
    hello = control_pb2.Hello(service=service, instance=instance, pid=1, library="0.1")
    return Subscription(addresses, hello, clock=QuickClock(), rng=random.Random(1))


def control(port: int = 0, store: str = "sqlite::memory:") -> ControlServer:
    return ControlServer(f"127.0.0.1:{port}", "127.0.0.1:0", store)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def apply(address: str, *documents: str, namespace: str = "") -> policy_pb2.ApplyResponse:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = policy_pb2_grpc.PolicyStoreStub(channel)
        request = policy_pb2.ApplyRequest(namespace=namespace, documents=documents)
        return await stub.Apply(request, timeout=PATIENCE)


async def delete(address: str, service: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = policy_pb2_grpc.PolicyStoreStub(channel)
        request = policy_pb2.DeletePolicyRequest(service=service)
        await stub.Delete(request, timeout=PATIENCE)


async def status_of(address: str) -> control_pb2.ProcessStatus:
    """The one process that is connected."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        (row,) = (await stub.Status(control_pb2.StatusRequest(), timeout=PATIENCE)).processes
        return row


async def until(condition) -> None:
    """Wait for what has no event to wait for."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def settled(address: str, state: int) -> control_pb2.ProcessStatus:
    """The one connected process, once it is in `state`."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(ValueError):  # nobody is connected yet
                if (row := await status_of(address)).state == state:
                    return row
            await asyncio.sleep(0.01)


def document(service: str = "payment", **fields: str) -> str:
    lines = [f"{name}: {value}" for name, value in fields.items()]
    return "\n".join(["schema: meshrpc.policy/v1", f"service: '{service}'", *lines])


def instance(id: str = "p1", **fields) -> Instance:  # noqa: A002
    return Instance(id=id, service="payment", address="127.0.0.1:5001", **fields)


SYNCED = control_pb2.ProcessStatus.STATE_SYNCED
REFUSED = control_pb2.ProcessStatus.STATE_REFUSED


async def test_a_policy_arrives_first_absent_then_with_each_change():
    """None for no document, the policy once applied, None again once deleted."""
    async with control() as server, subscription(server.address) as subscribed:
        heard = Heard()
        subscribed.watch_policy("payment", heard)
        assert await heard.next() is None
        await apply(server.address, document(timeout="2s"))
        assert (await heard.next()).timeout == 2.0
        assert subscribed.revision == 1
        await delete(server.address, "payment")
        assert await heard.next() is None


async def test_instances_arrive_as_they_register_drain_and_leave():
    """The first set is empty; then each change is told with all instances."""
    async with control() as server, subscription(server.address) as subscribed:
        registry = EmbeddedRegistry(subscribed, "default")
        heard = Heard()
        registry.watch("payment", heard)
        assert (await heard.next()).instances == ()
        await registry.register(instance(zone="a", labels={"disk": "ssd"}))
        assert (await heard.next()).instances == (instance(zone="a", labels={"disk": "ssd"}),)
        await registry.drain(instance())
        assert [one.state for one in (await heard.next()).instances] == [State.DRAINING]
        await registry.deregister(instance())
        assert (await heard.next()).instances == ()


async def test_what_changed_arrives_and_the_rest_stays_the_same_objects(caplog):
    """Of twenty instances one changes, one leaves and one comes; also over a restart of control
    nobody hears anything of the others."""
    async with contextlib.AsyncExitStack() as stack:
        async with control() as server:
            address = server.address
            subscribed = await stack.enter_async_context(subscription(address))
            registry = EmbeddedRegistry(subscribed, "default")
            heard, sets = Heard(), sets_taken_by(subscribed)
            for number in range(10, 30):
                await registry.register(instance(f"p{number}"))
            registry.watch("payment", heard)
            first = (await heard.next()).instances
            await registry.register(instance("p15", weight=7))
            second = (await heard.next()).instances
            assert [new.id for new, old in zip(second, first, strict=True) if new is not old] == [
                "p15"
            ]
            await registry.deregister(instance("p12"))
            await registry.register(instance("p30"))
            await until(lambda: heard.all[-1].instances[-1].id == "p30")
            third = heard.all[-1].instances
            assert [one.id for one in third] == [f"p{n}" for n in range(10, 31) if n != 12]
            assert [one.id for one in third if one not in second] == ["p30"]
            assert {id(one) for one in third[:-1]} <= {id(one) for one in second}
            assert [bool(base) for base in sets] == [False, *[True] * (len(sets) - 1)]
            known = len(heard.all)
        async with control(port_of(address)) as server:
            await until(lambda: len(heard.all) > known)  # an empty store knows nobody
            for number in range(10, 30):
                await registry.register(instance(f"p{number}"))
            await until(lambda: len(heard.all[-1].instances) == 20)
            assert {one.id for one in heard.all[-1].instances} == {f"p{n}" for n in range(10, 30)}
    # Grpcio itself may still log something of a loop that an earlier test has closed.
    ours = [each for each in caplog.records if each.name.startswith("meshrpc")]
    assert not any(each.exc_info for each in ours)


def sets_taken_by(subscribed: Subscription) -> list[int]:
    """The bases of the instance sets that arrive from now on."""
    bases: list[int] = []
    take = subscribed._interests.take

    def noting(push: control_pb2.Push) -> control_pb2.Acknowledgement | None:
        bases.extend(one.base for one in push.instances)
        return take(push)

    subscribed._interests.take = noting
    return bases


class _Scripted(control_pb2_grpc.ControlServicer):
    """A control service that sends what a test tells it to, and notes the answers."""

    def __init__(self, *sets: control_pb2.InstanceSet) -> None:
        self._sets = sets
        self.hello: control_pb2.Hello | None = None
        self.interests: list[control_pb2.Interest] = []
        self.answers: list[control_pb2.Acknowledgement] = []

    async def Subscribe(self, request_iterator, context) -> None:
        await context.send_initial_metadata(())
        requests = aiter(request_iterator)
        self.hello = (await anext(requests)).hello
        self.interests.append((await anext(requests)).interest)
        for nonce, instance_set in enumerate(self._sets):
            await context.write(control_pb2.Push(nonce=str(nonce), instances=[instance_set]))
            self.answers.append((await anext(requests)).acknowledgement)
        await asyncio.Event().wait()


async def test_a_difference_that_does_not_fit_is_refused_and_what_is_known_stays(caplog):
    """Control hears which version it does not fit; the set that follows is taken."""
    wire = [instance(f"p{number}").to_wire() for number in range(3)]
    scripted = _Scripted(
        control_pb2.InstanceSet(service="payment", version=1, instances=wire),
        control_pb2.InstanceSet(service="payment", version=3, base=2, removed=["p0"]),
        control_pb2.InstanceSet(service="payment", version=4, base=1, removed=["p1"]),
        control_pb2.InstanceSet(service="payment", version=5, instances=wire[:1]),
    )
    server = grpc.aio.server()
    control_pb2_grpc.add_ControlServicer_to_server(scripted, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with subscription(f"127.0.0.1:{port}") as subscribed:
        heard = Heard()
        subscribed.watch_instances("payment", heard)
        await until(lambda: len(scripted.answers) == 4)
        ids = [[one.id for one in snapshot.instances] for snapshot in heard.all]
        assert ids == [["p0", "p1", "p2"], ["p0", "p2"], ["p0"]]
    await server.stop(None)
    assert scripted.hello.accepts_differences
    refused = [[one.reason for one in answer.refused] for answer in scripted.answers]
    assert refused == [[], ["a difference from version 2 does not fit version 1"], [], []]
    assert "Traceback" not in caplog.text


async def test_watches_of_one_name_share_a_resource_and_a_late_one_is_called_at_once():
    """The second watch hears what is known before `watch_policy` returns."""
    async with control() as server, subscription(server.address) as subscribed:
        await apply(server.address, document(timeout="2s"))
        first, second = Heard(), Heard()
        subscribed.watch_policy("payment", first)
        assert (await first.next()).timeout == 2.0
        subscribed.watch_policy("payment", second)
        assert [policy.timeout for policy in second.all] == [2.0]
        await apply(server.address, document(timeout="3s"))
        assert (await first.next()).timeout == 3.0
        assert second.all[-1].timeout == 3.0


async def test_a_callback_may_open_and_close_watches_of_its_own_resource():
    """Those opened hear the value that is being told, those closed do not."""
    async with control() as server, subscription(server.address) as subscribed:
        opened, closed, last = Heard(), Heard(), Heard()

        def first(policy) -> None:
            if not opened.all:
                watch.close()
                subscribed.watch_policy("payment", opened)

        subscribed.watch_policy("payment", first)
        watch = subscribed.watch_policy("payment", closed)
        subscribed.watch_policy("payment", last)
        assert await last.next() is None
        assert await opened.next() is None
        assert closed.all == []


async def test_a_closed_watch_is_not_called_and_a_new_one_of_its_name_is():
    """Closing and watching anew in one breath gets an answer although control saw no change."""
    async with control() as server, subscription(server.address) as subscribed:
        closed, anew = Heard(), Heard()
        watch = subscribed.watch_policy("payment", closed)
        assert await closed.next() is None
        watch.close()
        watch.close()
        subscribed.watch_policy("payment", anew)
        assert await anew.next() is None
        await apply(server.address, document(timeout="2s"))
        assert (await anew.next()).timeout == 2.0
        assert closed.all == [None]


async def test_a_watch_that_is_the_last_of_its_name_is_dropped_at_control():
    """After the only watch closes, control sends no more of it, and a later watch starts anew."""
    async with control() as server, subscription(server.address) as subscribed:
        other, closed = Heard(), Heard()
        watch = subscribed.watch_policy("payment", closed)
        subscribed.watch_policy("order", other)
        await closed.next()
        watch.close()
        await apply(server.address, document(timeout="2s"))
        await apply(server.address, document("order", timeout="2s"))
        await other.next()
        assert (await other.next()).timeout == 2.0
        late = Heard()
        subscribed.watch_policy("payment", late)
        assert (await late.next()).timeout == 2.0
        assert closed.all == [None]


async def test_a_refused_policy_is_reported_and_holds_back_nothing_else():
    """The process keeps what it had, status names the reason, the document beside it lands."""
    async with control() as server, subscription(server.address) as subscribed:
        picky, keeps, other = Heard(), Heard(), Heard()
        subscribed.watch_policy("payment", keeps)
        subscribed.watch_policy("payment", picky)
        subscribed.watch_policy("order", other)
        for heard in (picky, keeps, other):
            assert await heard.next() is None
        await apply(server.address, document(timeout="1s"))
        assert (await picky.next()).timeout == (await keeps.next()).timeout == 1.0

        picky.refuse = "not here"
        await apply(server.address, document(timeout="2s"), document("order", timeout="2s"))
        assert (await other.next()).timeout == 2.0
        row = await settled(server.address, REFUSED)
        assert row.reason == "policy of payment: test: timeout: 2s: not here"
        assert row.revision == 1
        assert [policy and policy.timeout for policy in keeps.all] == [None, 1.0, 2.0, 1.0]
        late = Heard()
        subscribed.watch_policy("payment", late)
        assert (await late.next()).timeout == 1.0

        picky.refuse = None
        await apply(server.address, document(timeout="3s"))
        assert (await settled(server.address, SYNCED)).revision == 3


async def test_a_callback_that_fails_is_a_refusal_and_not_the_end(caplog):
    """Whatever a watch raises, the stream goes on, and the log has the traceback."""

    def fail(policy) -> None:
        if policy is not None:
            raise ZeroDivisionError("a bug")

    async with control() as server, subscription(server.address) as subscribed:
        subscribed.watch_policy("payment", fail)
        await settled(server.address, SYNCED)
        await apply(server.address, document(timeout="2s"))
        row = await settled(server.address, REFUSED)
        assert row.reason == "policy of payment: ZeroDivisionError: a bug"
        assert "Traceback" in caplog.text
        heard = Heard()
        subscribed.watch_policy("order", heard)
        assert await heard.next() is None


async def test_after_a_restart_of_control_only_what_differs_is_heard(tmp_path, caplog):
    """One warning when it goes, one line when it is back, no callback for what is the same."""
    caplog.set_level(logging.INFO, logger="meshrpc.absence")
    store = f"sqlite:{tmp_path / 'control.db'}"
    policy, instances = Heard(), Heard()
    async with contextlib.AsyncExitStack() as stack:
        async with control(store=store) as server:
            address = server.address
            subscribed = await stack.enter_async_context(subscription(address))
            registry = EmbeddedRegistry(subscribed, "default")
            subscribed.watch_policy("payment", policy)
            subscribed.watch_instances("payment", instances)
            await registry.register(instance())
            await apply(address, document(timeout="2s"))
            while not policy.all or policy.all[-1] is None:
                await policy.next()
            while not instances.all or not instances.all[-1].instances:
                await instances.next()
        known = len(policy.all), len(instances.all)

        with pytest.raises(RegistryError, match=f"control service at {address}: .* start it with"):
            await registry.renew(instance())
        assert not subscribed.connected

        async with control(port_of(address), store):
            row = await settled(address, SYNCED)
            assert (row.instance, row.revision) == ("o1", 1)
            assert await registry.renew(instance())  # nobody was forgotten
            assert (len(policy.all), len(instances.all)) == known
            await apply(address, document(timeout="3s"))
            await until(lambda: policy.all[-1].timeout == 3.0)
    ours = [record for record in caplog.records if record.name == "meshrpc.absence"]
    assert [record.levelname for record in ours][:2] == ["WARNING", "INFO"]
    assert f"at {address}" in ours[0].getMessage()
    assert "start it with: meshrpc control" in ours[0].getMessage()


async def test_a_control_service_that_is_not_there_costs_one_warning_a_minute(caplog):
    """Many attempts, one line; a watch made meanwhile is answered once control is there."""
    clock = QuickClock()
    server = control()
    async with server:
        port = port_of(server.address)
    hello = control_pb2.Hello(service="order", instance="o1")
    slept = asyncio.Queue()

    class Counting(QuickClock):
        async def sleep(self, seconds: float) -> None:
            slept.put_nowait(seconds)
            await clock.sleep(seconds)

    address = f"127.0.0.1:{port}"
    async with Subscription([address], hello, clock=Counting(), rng=random.Random(1)) as away:
        heard = Heard()
        away.watch_policy("payment", heard)
        async with asyncio.timeout(PATIENCE):
            waits = [await slept.get() for _ in range(8)]
        assert not away.connected
        assert waits[0] <= 0.2
        assert 2.5 <= waits[-1] <= 5.0
        async with control(port):
            assert await heard.next() is None
            assert away.connected
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len([one for one in warnings if one.name == "meshrpc.absence"]) == 1


async def test_another_address_takes_over():
    """With two control services the stream and the unary calls move to the one that is up."""
    async with (
        control() as second,
        control() as first,
        subscription(first.address, second.address) as subscribed,
    ):
        heard = Heard()
        subscribed.watch_policy("payment", heard)
        assert await heard.next() is None
        assert subscribed.address == first.address
        await apply(second.address, document(timeout="2s"))
        await first.__aexit__(None, None, None)
        assert (await heard.next()).timeout == 2.0
        assert subscribed.address == second.address
        assert await EmbeddedRegistry(subscribed, "default").services() == ()


async def test_a_name_is_an_address_too():
    """Host names are resolved by grpc, each by itself."""
    async with control() as server:
        name = f"localhost:{port_of(server.address)}"
        async with subscription("no-such-host.invalid:1", name) as subscribed:
            heard = Heard()
            subscribed.watch_policy("payment", heard)
            assert await heard.next() is None


async def test_a_frozen_control_service_is_noticed():
    """A connection on which nothing moves any more is given up after keepalive's two seconds."""
    async with (
        control() as server,
        _Proxy(server.address) as proxy,
        subscription(proxy.address, server.address) as subscribed,
    ):
        heard = Heard()
        subscribed.watch_policy("payment", heard)
        await heard.next()
        assert subscribed.address == proxy.address
        proxy.freeze()
        started = SYSTEM_CLOCK.now()
        await until(lambda: subscribed.connected and subscribed.address == server.address)
        assert SYSTEM_CLOCK.now() - started < 5.0  # 2 s by design; the rest is a slow machine


class _Proxy:
    """Passes bytes to and fro until it is frozen; then it keeps the connections and is silent."""

    def __init__(self, target: str) -> None:
        self.lead_to(target)
        self._moving = asyncio.Event()
        self._moving.set()
        self._tasks: list[asyncio.Task] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.is_closed = False
        """Whether connections are ended as soon as they come."""

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lead_to(self, target: str) -> None:
        """Say where connections go that are made from now on."""
        self._target = ("127.0.0.1", port_of(target))

    def freeze(self) -> None:
        self._moving.clear()

    def cut(self) -> None:
        """End every connection, with what is on its way."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader, writer) -> None:
        if self.is_closed:
            writer.transport.abort()
            return
        theirs, ours = await asyncio.open_connection(*self._target)
        self._writers += [writer, ours]
        self._tasks += [
            asyncio.create_task(self._pass(reader, ours)),
            asyncio.create_task(self._pass(theirs, writer)),
        ]

    async def _pass(self, reader, writer) -> None:
        try:
            while data := await reader.read(65536):
                await self._moving.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


async def test_a_stream_that_is_no_control_service_is_tried_again(caplog):
    """A port that speaks something else is a warning, not a crash."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with subscription(f"127.0.0.1:{port}") as subscribed:
            await until(lambda: "cannot reach the control service" in caplog.text)
            assert not subscribed.connected
    finally:
        await server.stop(None)


async def test_it_can_be_opened_again():
    """The same subscription, with its watches, works in a second `async with`."""
    async with control() as server:
        subscribed = subscription(server.address)
        heard = Heard()
        async with subscribed:
            subscribed.watch_policy("payment", heard)
            assert await heard.next() is None
        await apply(server.address, document(timeout="2s"))
        async with subscribed:
            assert (await heard.next()).timeout == 2.0
        assert repr(subscribed) == (f"<Subscription {server.address} away revision=1 resources=1>")


async def test_an_older_incarnation_cannot_register_or_renew():
    """The record of the newer one stays."""
    async with control() as server, subscription(server.address) as subscribed:
        registry = EmbeddedRegistry(subscribed, "default")
        await registry.register(instance(incarnation=2))
        with pytest.raises(StaleIncarnation, match="incarnation 1"):
            await registry.register(instance(incarnation=1))
        assert not await registry.renew(instance(incarnation=1))
        assert await registry.instances("payment") == (instance(incarnation=2),)


async def test_what_the_registry_refuses_says_why():
    """Bad input is an error with the server's words, not a lost connection."""
    async with control() as server, subscription(server.address) as subscribed:
        registry = EmbeddedRegistry(subscribed, "default")
        bad = Instance(id="p1", service="payment", address="nowhere")
        with pytest.raises(RegistryError, match="address 'nowhere': an address is host:port"):
            await registry.register(bad)


# Going on where the last stream ended


async def test_after_a_broken_connection_only_what_differs_is_sent():
    """To the one process that watches; when nothing differs that is said, too, and acknowledged."""
    async with (
        control() as server,
        _Proxy(server.address) as line,
        subscription(line.address) as subscribed,
        subscription(server.address, instance="owner") as owner,
    ):
        registry = EmbeddedRegistry(owner, "default")
        for number in range(20):
            await registry.register(instance(f"p{number}"))
        heard, sets = Heard(), sets_taken_by(subscribed)
        subscribed.watch_instances("payment", heard)
        first = await heard.next()
        line.is_closed = True
        line.cut()
        await registry.drain(instance("p3"))
        await registry.deregister(instance("p5"))
        assert len(heard.all) == 1
        line.is_closed = False
        second = await heard.next()
        assert second.departed == {"p5"}
        changed = [one.id for one in first.instances if one not in second.instances]
        assert changed == ["p3", "p5"]
        line.cut()
        await until(lambda: len(sets) == 3)
        await all_synced(server.address, 2)
        assert [bool(base) for base in sets] == [False, True, True]
        assert len(heard.all) == 2


async def test_a_drain_counts_on_those_who_came_back():
    """One that holds the set from an earlier stream has acknowledged it once it has said so; what
    leaves then waits for it as for all others."""
    async with (
        control() as server,
        _Proxy(server.address) as line,
        subscription(line.address) as subscribed,
        subscription(server.address, instance="owner") as owner,
    ):
        registry = EmbeddedRegistry(owner, "default")
        for number in range(3):
            await registry.register(instance(f"p{number}"))
        heard, sets = Heard(), sets_taken_by(subscribed)
        subscribed.watch_instances("payment", heard)
        await heard.next()
        line.cut()
        await until(lambda: len(sets) == 2)
        await all_synced(server.address, 2)
        await registry.deregister(instance("p1"))
        assert [one.id for one in heard.all[-1].instances] == ["p0", "p2"]


async def test_another_control_service_is_asked_for_everything():
    """Its versions are other ones, and by chance may be the same numbers."""
    async with control() as first, control() as second:
        async with (
            subscription(first.address, instance="a") as one,
            subscription(second.address, instance="b") as other,
        ):
            for number in range(20):
                await EmbeddedRegistry(one, "default").register(instance(f"p{number}"))
                await EmbeddedRegistry(other, "default").register(instance(f"q{number}"))
        async with _Proxy(first.address) as line, subscription(line.address) as subscribed:
            heard, sets = Heard(), sets_taken_by(subscribed)
            subscribed.watch_instances("payment", heard)
            assert (await heard.next()).instances[0].id == "p0"
            line.lead_to(second.address)
            line.cut()
            assert {one.id for one in (await heard.next()).instances} == {
                f"q{number}" for number in range(20)
            }
            assert sets == [0, 0]


async def test_what_another_control_service_sent_and_was_refused_is_not_held():
    """What is known is still the first one's, under a number that the second one knows, too."""
    async with control() as first, control() as second:
        for server, name in ((first, "p1"), (second, "q1")):
            async with subscription(server.address) as owner:
                await EmbeddedRegistry(owner, "default").register(instance(name))
        async with _Proxy(first.address) as line, subscription(line.address) as subscribed:
            heard = Heard()
            subscribed.watch_instances("payment", heard)
            assert [one.id for one in (await heard.next()).instances] == ["p1"]
            heard.refuse = "not yet"
            line.lead_to(second.address)
            line.cut()
            await settled(second.address, REFUSED)
            heard.refuse = None
            del heard.all[:]
            line.cut()
            await settled(second.address, SYNCED)
            assert [[one.id for one in each.instances] for each in heard.all] == [["q1"]]


async def test_a_control_service_that_knows_no_epochs_sends_everything():
    """A release from before them: nothing is held against it, stream after stream."""
    wire = [instance(f"p{number}").to_wire() for number in range(3)]
    whole = control_pb2.InstanceSet(service="payment", version=7, instances=wire)
    less = control_pb2.InstanceSet(service="payment", version=8, base=7, removed=["p0"])
    scripted = _Scripted(whole, less)
    server = grpc.aio.server()
    control_pb2_grpc.add_ControlServicer_to_server(scripted, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with (
        _Proxy(f"127.0.0.1:{port}") as line,
        subscription(line.address) as subscribed,
    ):
        heard = Heard()
        subscribed.watch_instances("payment", heard)
        await until(lambda: len(scripted.answers) == 2)
        line.cut()
        await until(lambda: len(scripted.answers) == 4)
        assert [len(snapshot.instances) for snapshot in heard.all] == [3, 2, 3, 2]
    await server.stop(None)
    assert not any(answer.refused for answer in scripted.answers)
    assert [one.epoch for one in scripted.interests] == ["", ""]


async def test_a_watch_says_why_control_is_silent():
    """While it is away, from before the first answer on; nothing while the stream stands."""
    async with control() as server:
        address = server.address
    async with subscription(address) as subscribed:
        watch = subscribed.watch_instances("payment", lambda _: None)
        assert watch.why_silent() == f"connecting to the control service at {address}"
        await until(lambda: "cannot reach" in watch.why_silent())
        assert f"at {address}: " in watch.why_silent()
        assert "start it with: meshrpc control" in watch.why_silent()
        async with control(port_of(address)):
            await until(lambda: watch.why_silent() is None)
        await until(lambda: watch.why_silent() is not None)


# While control is slow, or away


CHANGES = 10_000


class _Deaf(control_pb2_grpc.ControlServicer):
    """A control service that lets a stream begin, and reads nothing of it until it is told to."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.interests: list[control_pb2.Interest] = []
        self.reports: list[control_pb2.QuotaReport] = []

    async def Subscribe(self, request_iterator, context) -> None:
        await context.send_initial_metadata(())
        await self.reads.wait()
        async for request in request_iterator:
            match request.WhichOneof("message"):
                case "interest":
                    self.interests.append(request.interest)
                case "quota":
                    self.reports.append(request.quota)


class _Limits:
    """Rate limits over the fleet of which something else is wanted each time they are looked at."""

    has_fleet_limits = True

    def __init__(self) -> None:
        self.demand = 0

    def look(self) -> bool:
        self.demand += 1
        return True

    def claims(self) -> tuple[Claim, ...]:
        return (Claim("per-caller", b"*", self.demand, 0, is_granted=False),)

    def take_shares(self, shares) -> None:
        pass


async def test_what_a_control_service_does_not_read_does_not_pile_up():
    """Ten thousand changes take no memory that stays, and then the newest of all is told."""
    deaf, limits = _Deaf(), _Limits()
    server = grpc.aio.server()
    control_pb2_grpc.add_ControlServicer_to_server(deaf, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    hello = control_pb2.Hello(service="order", instance="o1")
    subscribed = Subscription(
        [f"127.0.0.1:{port}"], hello, clock=QuickClock(), rng=random.Random(1), limits=limits
    )
    # So long that a few of them are all that the connection takes.
    policies = sorted(f"{'policy-' * 20}{number}" for number in range(200))
    sizes = []
    async with subscribed:
        for name in policies:
            subscribed.watch_policy(name, lambda _: None)
        await until(lambda: subscribed.connected)
        tracemalloc.start()
        try:
            for number in range(1, CHANGES + 1):
                subscribed.watch_instances(f"service-{number}", lambda _: None).close()
                await asyncio.sleep(0)  # so that each would be a message of its own
                if number in (CHANGES // 10, CHANGES):
                    sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        assert len(subscribed._outgoing) <= 2
        # One kept for each change would be two hundred megabytes.
        assert sizes[1] - sizes[0] < 500_000
        subscribed.watch_instances("payment", lambda _: None)
        demand = limits.demand
        deaf.reads.set()
        await until(lambda: deaf.interests and deaf.interests[-1].instances == ["payment"])
        await until(lambda: deaf.reports and deaf.reports[-1].claims[0].demand >= demand)
        assert deaf.interests[-1].policies == policies
        assert len(deaf.interests) < CHANGES // 10
        assert "resources=201" in repr(subscribed)
    await server.stop(None)


async def test_what_is_watched_for_a_moment_while_control_is_away_leaves_nothing():
    """Ten thousand watches later it tells control what is watched then, and knows what it knew."""
    async with contextlib.AsyncExitStack() as stack:
        async with control() as server:
            address = server.address
            subscribed = await stack.enter_async_context(subscription(address))
            heard = Heard()
            watch = subscribed.watch_policy("payment", heard)
            assert await heard.next() is None
            await apply(address, document(timeout="2s"))
            assert (await heard.next()).timeout == 2.0
        await until(lambda: not subscribed.connected)
        for number in range(CHANGES):
            subscribed.watch_instances(f"service-{number}", lambda _: None).close()
            subscribed.watch_policy(f"service-{number}", lambda _: None).close()
        watch.close()
        assert "resources=1>" in repr(subscribed)
        again, late = Heard(), Heard()
        subscribed.watch_policy("payment", again)
        assert [policy.timeout for policy in again.all] == [2.0]
        subscribed.watch_policy("order", late)
        async with control(port_of(address)):
            assert await late.next() is None
            row = await settled(address, SYNCED)
            assert "resources=2>" in repr(subscribed)
            assert row.service == "order"


async def test_a_watch_made_anew_before_control_was_told_of_its_end_hears_what_is_known():
    """Control is told nothing of either, and believes rightly that this process has it."""
    async with control() as server, subscription(server.address) as subscribed:
        first, again = Heard(), Heard()
        watch = subscribed.watch_policy("payment", first)
        assert await first.next() is None
        watch.close()
        watch = subscribed.watch_policy("payment", again)
        assert again.all == [None]
        watch.close()
        await until(lambda: "resources=0>" in repr(subscribed))
        last = Heard()
        subscribed.watch_policy("payment", last)
        assert last.all == []
        assert await last.next() is None


# A store that was damaged


async def test_a_damaged_store_tells_nobody_that_a_policy_was_deleted(tmp_path):
    """Control does not start on it; a process keeps its policy until control is mended, and hears
    of no other on the way."""
    path = tmp_path / "control.db"
    async with contextlib.AsyncExitStack() as stack:
        async with control(store=f"sqlite:{path}") as server:
            address = server.address
            await apply(address, document(timeout="2s"))
            subscribed = await stack.enter_async_context(subscription(address))
            heard = Heard()
            subscribed.watch_policy("payment", heard)
            assert (await heard.next()).timeout == 2.0
        whole = path.read_bytes()
        for damaged in (b"", b"no database", whole[: len(whole) // 2]):
            path.write_bytes(damaged)
            with pytest.raises(ControlError, match=r"is damaged .* it stays as it is"):
                await control(port_of(address), f"sqlite:{path}").__aenter__()
            assert path.read_bytes() == damaged
        late = Heard()
        subscribed.watch_policy("payment", late)
        assert [policy.timeout for policy in late.all] == [2.0]
        path.write_bytes(whole)
        async with control(port_of(address), f"sqlite:{path}"):
            await settled(address, SYNCED)
            await apply(address, document(timeout="3s"))
            assert (await heard.next()).timeout == 3.0
    assert [policy.timeout for policy in heard.all] == [2.0, 3.0]


async def test_a_store_that_is_damaged_while_control_runs_is_read_from_memory(tmp_path):
    """Who comes then is told what holds; who writes is told why not; instances come and go."""
    path = tmp_path / "control.db"
    async with control(store=f"sqlite:{path}") as server:
        await apply(server.address, document(timeout="2s"))
        path.write_bytes(b"")
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await apply(server.address, document(timeout="3s"))
            assert refused.value.code() is grpc.StatusCode.INTERNAL
            assert "is damaged (it was cut off); it stays as it is" in refused.value.details()
        async with subscription(server.address) as subscribed:
            heard, seen = Heard(), Heard()
            subscribed.watch_policy("payment", heard)
            assert (await heard.next()).timeout == 2.0
            registry = EmbeddedRegistry(subscribed, "default")
            await registry.register(instance())
            subscribed.watch_instances("payment", seen)
            assert [one.id for one in (await seen.next()).instances] == ["p1"]


# What a process makes of instances


async def test_a_process_is_asked_for_what_it_makes_of_a_service():
    """Its answer comes back as it is."""
    asked = []

    def view(service: str) -> control_pb2.ViewResponse:
        asked.append(service)
        one = control_pb2.SeenInstance(instance=instance().to_wire(), state="held", pending=3)
        return control_pb2.ViewResponse(is_called=True, instances=[one], away="it is gone")

    hello = control_pb2.Hello(service="order", instance="o1")
    async with control() as server:
        viewing = Subscription([server.address], hello, view=view, rng=random.Random(1))
        async with viewing, ControlClient([server.address], namespace="default") as client:
            viewing.watch_instances("payment", lambda _: None)
            await settled(server.address, SYNCED)
            seen = await client.view("o1", "payment")
            assert asked == ["payment"]
            assert seen == view("payment")


async def test_a_view_that_is_too_large_is_cut_and_says_so():
    """What does not fit into a message would end the stream."""
    large = instance(labels={"note": "x" * 10_000}).to_wire()
    seen = control_pb2.SeenInstance(instance=large, state="active")
    view = control_pb2.ViewResponse(is_called=True, instances=[seen] * 1000)
    hello = control_pb2.Hello(service="order", instance="o1")
    async with control() as server:
        viewing = Subscription([server.address], hello, view=lambda _: view, rng=random.Random(1))
        async with viewing, ControlClient([server.address], namespace="default") as client:
            await settled(server.address, SYNCED)
            answer = await client.view("o1", "payment")
            shown = len(answer.instances)
            assert 250 < shown < 350
            assert list(answer.skipped) == [
                f"{1000 - shown} more instances do not fit into one answer"
            ]
            assert viewing.connected


async def test_a_process_without_a_view_calls_nobody():
    """The customer that only subscribes answers, too."""
    async with control() as server, subscription(server.address):
        await settled(server.address, SYNCED)
        async with ControlClient([server.address], namespace="default") as client:
            assert not (await client.view("o1", "payment")).is_called


async def test_whoever_cannot_be_asked_is_an_error_that_says_so(monkeypatch, caplog):
    """One that is not connected, one of another namespace, one that fails, one that has gone."""
    monkeypatch.setattr(control_service, "VIEW_WITHIN", 0.2)

    def fail(service: str) -> control_pb2.ViewResponse:
        raise ZeroDivisionError("a bug")

    hello = control_pb2.Hello(service="order", instance="o1", library="0.1")
    async with control() as server, ControlClient([server.address], namespace="default") as client:
        with pytest.raises(ControlError, match=r"^no process 'o1' is connected in namespace 'def"):
            await client.view("o1", "payment")
        failing = Subscription([server.address], hello, view=fail, rng=random.Random(1))
        async with failing:
            await settled(server.address, SYNCED)
            with pytest.raises(ControlError, match=r"^process 'o1' has not answered within 0 s: "):
                await client.view("o1", "payment")
            assert "what is made of payment cannot be said" in caplog.text
            assert failing.connected
            async with ControlClient([server.address], namespace="test") as foreign:
                with pytest.raises(ControlError, match=r"^no process 'o1' is connected"):
                    await foreign.view("o1", "payment")
            monkeypatch.setattr(control_service, "VIEW_WITHIN", PATIENCE)
            asking = asyncio.create_task(client.view("o1", "payment"))
            await until(lambda: caplog.text.count("cannot be said") == 2)
        with pytest.raises(ControlError, match=r"^process 'o1' has just gone"):
            await asking


async def all_synced(address: str, count: int) -> None:
    """Return when so many processes are connected, and all have all they watch."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        async with asyncio.timeout(PATIENCE):
            while True:
                rows = (await stub.Status(control_pb2.StatusRequest())).processes
                if [row.state for row in rows] == [SYNCED] * count:
                    return
                await asyncio.sleep(0.01)


async def test_leaving_ends_also_if_a_cancellation_gets_lost(monkeypatch):
    """A call of grpcio's that fails as it is cancelled raises its error in its place."""
    conversing = asyncio.Event()

    async def converse(self):
        try:
            conversing.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise TimeoutError from None

    monkeypatch.setattr(Subscription, "_converse", converse)
    monkeypatch.setattr("meshrpc.subscription.CANCEL_AGAIN", 0.01)
    async with asyncio.timeout(PATIENCE):
        async with subscription("127.0.0.1:9"):
            await conversing.wait()

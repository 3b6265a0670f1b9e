"""The Consul registry with a real Consul, and what only Consul can do to it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import socket
import time
import uuid
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from meshrpc.clock import SystemClock
from meshrpc.errors import RegistryError
from meshrpc.registry.consul import ConsulRegistry
from meshrpc.registry.finding import Problem
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.registration import Registration
from meshrpc.registry.registry import LEASE
from tests import consul
from tests.consul import SELDOM, Told


@pytest.fixture
def instance() -> Instance:
    return Instance(
        id="1",
        service=f"payment-{uuid.uuid4().hex[:8]}",
        address="127.0.0.1:5001",
        health=Health.SERVING,
    )


class Logged(logging.Handler):
    """Waits for a line of the watches' log."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words
        self._seen = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage():
            self._seen.set()

    async def __aenter__(self):
        logging.getLogger("meshrpc.registry.followed").addHandler(self)
        return self

    async def __aexit__(self, kind, *_):
        try:
            if kind is None:
                async with asyncio.timeout(30):
                    await self._seen.wait()
        finally:
            logging.getLogger("meshrpc.registry.followed").removeHandler(self)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


async def test_an_unreachable_consul_is_named_with_its_cause(instance, closed_port):
    """Who asks is told the address, the reason, and what to look at; a watch goes on trying."""
    url = f"consul://127.0.0.1:{closed_port}"
    words = f"cannot reach Consul at 127.0.0.1:{closed_port}: connection refused; is it running"
    async with ConsulRegistry(url) as registry:
        told = Told()
        registry.watch(instance.service, told)
        for ask in (registry.register, registry.renew, registry.drain, registry.deregister):
            with pytest.raises(RegistryError, match=words):
                await ask(instance)
        with pytest.raises(RegistryError, match=words):
            await registry.services()
        assert told.snapshots == []


async def test_a_registry_that_is_not_open_says_so(instance):
    """Use outside the `async with` block is an error, not a hang."""
    registry = ConsulRegistry("consul://127.0.0.1:1")
    with pytest.raises(RegistryError, match="outside its 'async with' block"):
        await registry.instances(instance.service)
    with pytest.raises(RegistryError, match="outside its 'async with' block"):
        registry.watch(instance.service, Told())


_PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\nConnection: close\r\n\r\n<html>hello</html>"
_SETTINGS = b"\0\0\6\4\0\0\0\0\0\0\5\0\0\x40\0"


@pytest.mark.parametrize("said", [_PAGE, _SETTINGS], ids=["page", "http2"])
async def test_something_else_at_the_address_is_an_error_not_an_answer(said):
    """A web server's page is no list of services, nor does a gRPC server answer HTTP/1."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with ConsulRegistry(f"consul://127.0.0.1:{port}") as registry:
            with pytest.raises(
                RegistryError, match=f"no usable answer from Consul at 127.0.0.1:{port}"
            ):
                await registry.services()


@pytest.mark.consul
async def test_watches_outlive_a_consul_that_restarts_empty(consul_binary, instance):
    """What was known is kept while it is away, and what is registered again afterwards is seen."""
    with consul.ConsulServer() as server:
        async with ConsulRegistry(server.url, check_every=SELDOM, rng=random.Random(5)) as registry:
            told = Told()
            registry.watch(instance.service, told)
            await registry.register(instance)
            await told.until(instance)
            async with Logged("cannot reach Consul"):
                server.kill()
            with pytest.raises(RegistryError, match="cannot reach Consul"):
                await registry.renew(instance)
            assert told.snapshots[-1].instances == (instance,)
            await asyncio.to_thread(server.restart)
            assert not await registry.renew(instance)
            again = replace(instance, incarnation=1)
            await registry.register(again)
            await told.until(again)


@pytest.mark.consul
async def test_a_lost_lease_wakes_watches_that_wait_for_an_old_index(consul_server, instance):
    """A Consul that started anew between two queries is noticed by the next renewal, not after
    the query's whole wait."""

    class Counted(ConsulRegistry):
        """Waits for an index that this Consul reaches in years, as if the last one had been old."""

        waiting = asyncio.Event()

        async def _query(self, service, index):
            if index is None:
                return await super()._query(service, None)
            self.waiting.set()
            return await super()._query(service, 10**12)

    async with (
        Counted(consul_server.url) as registry,
        ConsulRegistry(consul_server.url, check_every=SELDOM) as other,
    ):
        told = Told()
        registry.watch(instance.service, told)
        await told.until()
        await registry.waiting.wait()
        await other.register(instance)
        assert await registry.renew(replace(instance, id="forgotten")) is False
        async with asyncio.timeout(10):  # far less than the wait
            await told.until(instance)
        await other.deregister(instance)


@pytest.mark.consul
async def test_a_registration_finds_its_way_back(consul_binary, instance, monkeypatch):
    """The keeper registers the next incarnation with a Consul that lost everything."""
    monkeypatch.setattr("meshrpc.registry.registration.RENEW_EVERY", 0.2)
    with consul.ConsulServer() as server:
        async with ConsulRegistry(server.url, check_every=SELDOM) as registry:
            told = Told()
            registry.watch(instance.service, told)
            registration = Registration(registry, instance, rng=random.Random(5))
            await registration.start()
            await told.until(instance)
            async with Logged("cannot reach Consul"):
                server.kill()
            await asyncio.to_thread(server.restart)
            await told.until(replace(instance, incarnation=1))
            await registration.drain()
            await told.until(replace(instance, incarnation=1, state=State.DRAINING))
            await registration.stop()
            await told.until()


@pytest.mark.consul
async def test_what_others_registered_can_be_called(consul_server, instance):
    """A service without our metadata belongs to namespace default, and to no other."""
    consul_server.put(
        "/v1/agent/service/register",
        {"Name": instance.service, "ID": "theirs", "Address": "10.0.0.5", "Port": 80},
    )
    theirs = Instance(
        id="theirs", service=instance.service, address="10.0.0.5:80", health=Health.SERVING
    )
    async with (
        ConsulRegistry(consul_server.url) as registry,
        ConsulRegistry(consul_server.url, "staging") as staging,
    ):
        told = Told()
        registry.watch(instance.service, told)
        await told.until(theirs)
        assert instance.service in await registry.services()
        assert await staging.instances(instance.service) == ()
        assert "consul" not in await registry.services()
    consul_server.put("/v1/agent/service/deregister/theirs")


@pytest.mark.consul
async def test_a_bad_record_is_skipped_with_one_warning(consul_server, instance, caplog):
    """The good ones beside it are used, and the log names what is wrong with it once."""
    bad = {"Name": instance.service, "ID": "bad", "Address": "10.0.0.5"}
    consul_server.put("/v1/agent/service/register", bad)
    async with ConsulRegistry(consul_server.url, check_every=SELDOM) as registry:
        told = Told()
        registry.watch(instance.service, told)
        await registry.register(instance)
        await told.until(instance)
        await registry.register(replace(instance, weight=2))
        await told.until(replace(instance, weight=2))
        assert told.snapshots[-1].skipped == ("'bad': 0 is no port",)
        (finding,) = await registry.findings(instance.service)
        assert (finding.problem, finding.id) == (Problem.BAD_RECORD, "bad")
        assert finding.detail == "0 is no port: correct or deregister it"
    messages = [each.getMessage() for each in caplog.records if "skipped" in each.getMessage()]
    assert messages == [f"{instance.service!r} in Consul: skipped 'bad': 0 is no port"]
    consul_server.put("/v1/agent/service/deregister/bad")


@pytest.mark.consul
async def test_many_watches_leave_room_for_renewals(consul_server, instance):
    """More blocking queries than an HTTP client's usual hundred connections do not starve it."""
    waiting = asyncio.Semaphore(0)

    class Counting(ConsulRegistry):
        async def _query(self, service, index):
            if index is not None:
                waiting.release()
            return await super()._query(service, index)

    async with Counting(consul_server.url) as registry:
        for number in range(120):
            registry.watch(f"{instance.service}-{number}", Told())
        async with asyncio.timeout(30):
            for _ in range(120):
                await waiting.acquire()
        await registry.register(instance)
        assert await registry.renew(instance)
        await registry.deregister(instance)


@pytest.mark.consul
async def test_a_mark_revives_no_lease_and_registering_does(consul_server, instance):
    """Of a check that is registered again Consul keeps the status, so a renewal has to follow."""
    async with ConsulRegistry(consul_server.url, lease=1.0, check_every=SELDOM) as registry:
        told = Told()
        registry.watch(instance.service, told)
        await registry.register(instance)
        await told.until(instance)
        await told.until()
        (finding,) = await registry.findings(instance.service)
        assert (finding.problem, finding.id) == (Problem.STALE, instance.id)
        assert instance.service in await registry.services()  # so that `check` comes upon it
        await registry.drain(instance)
        await registry.undrain(instance)
        assert await registry.renew(instance) is False
        assert await registry.instances(instance.service) == ()
        await registry.register(instance)
        await told.until(instance)
        assert await registry.renew(instance)


@pytest.mark.consul
async def test_a_renewal_that_is_in_time_is_one_request(consul_server, instance):
    """Only when much of the lease has passed it is looked first whether it lives."""

    class Looking(ConsulRegistry):
        looked = 0

        async def _lives(self, instance, check):
            self.looked += 1
            return await super()._lives(instance, check)

    clock = SkippingClock()
    async with Looking(consul_server.url, check_every=SELDOM, clock=clock) as registry:
        await registry.register(instance)
        for skip, looked in ((0, 0), (7, 0), (8, 1), (5, 1), (20, 2)):
            clock.skipped += skip
            assert await registry.renew(instance)
            assert registry.looked == looked
        assert not await registry.renew(replace(instance, incarnation=1))
        assert registry.looked == 3
        clock.passes = registry._agent.pass_check
        registry._agent.pass_check = clock.skip_and_pass
        assert not await registry.renew(instance)  # it froze, and woke up after the lease's end
        assert registry.looked == 3
        await registry.deregister(instance)
        assert not await registry.renew(instance)


class SkippingClock(SystemClock):
    """The machine's time and what the test adds to it."""

    skipped = 0.0

    def now(self):
        return time.monotonic() + self.skipped

    async def skip_and_pass(self, check):
        self.skipped += LEASE
        return await self.passes(check)


@pytest.mark.consul
async def test_renewals_wake_nobody(consul_server, instance):
    """A watch asks again when something changes, and not each time a lease is extended."""
    asked = 0

    class Counted(ConsulRegistry):
        async def _query(self, service, index):
            nonlocal asked
            asked += 1
            return await super()._query(service, index)

    fleet = [replace(instance, id=str(number)) for number in range(1, 6)]
    async with Counted(consul_server.url, check_every=SELDOM) as registry:
        for each in fleet:
            await registry.register(each)
        told = Told()
        registry.watch(instance.service, told)
        await told.until(*fleet)
        await asyncio.sleep(0.5)  # what was registered may still be on its way to the catalog
        before = asked
        for _ in range(20):
            assert all([await registry.renew(each) for each in fleet])
        await registry.deregister(fleet.pop())
        await told.until(*fleet)
        assert asked - before <= 2  # the one that was answered, and the next


@pytest.mark.consul
async def test_an_instance_of_another_agent_can_only_be_changed_there(consul_server, instance):
    """Whose it is is said, instead of doing nothing."""
    node = f"node-{instance.service}"
    service = {"ID": "theirs", "Service": instance.service, "Address": "10.0.0.5", "Port": 80}
    there = {"Node": node, "Address": "10.0.0.5", "Service": service}
    consul_server.put("/v1/catalog/register", there)
    theirs = replace(instance, id="theirs")
    async with ConsulRegistry(consul_server.url) as registry:
        for change in (registry.drain, registry.undrain, registry.deregister):
            with pytest.raises(RegistryError, match=f"with the Consul agent of {node}, not with"):
                await change(theirs)
    consul_server.put("/v1/catalog/deregister", {"Node": node})


@pytest.mark.consul
@pytest.mark.soak
async def test_a_fleet_comes_back_spread_over_seconds(consul_binary, instance):
    """Fifty processes find out one by one that Consul lost them, and nobody is left out."""
    came: asyncio.Queue[tuple[str, float]] = asyncio.Queue()

    class Timed(ConsulRegistry):
        async def register(self, instance):
            await super().register(instance)
            if instance.incarnation:
                came.put_nowait((instance.id, time.monotonic()))

    with consul.ConsulServer() as server:
        async with AsyncExitStack() as stack:
            fleet = []
            for number in range(50):
                registry = await stack.enter_async_context(Timed(server.url, check_every=SELDOM))
                each = replace(instance, id=f"{number:02}")
                fleet.append(Registration(registry, each, rng=random.Random(number)))
            await asyncio.gather(*(each.start() for each in fleet))
            told = Told()
            registry.watch(instance.service, told)
            for away in (0.0, 20.0):
                server.kill()
                killed = time.monotonic()
                await asyncio.sleep(away)
                await asyncio.to_thread(server.restart)
                back = time.monotonic()
                first: dict[str, float] = {}
                async with asyncio.timeout(15):
                    while len(first) < len(fleet):
                        id_, at = await came.get()
                        if at > killed:  # some are back before this test knows that Consul is
                            first.setdefault(id_, max(0.0, at - back))
                after = sorted(first.values())
                each_second = Counter(int(each) for each in after)
                print(  # noqa: T201 - the figures are what it is for
                    f"away {away:g} s: back after {after[0]:.1f} to {after[-1]:.1f} s, "
                    f"at most {max(each_second.values())} in one second"
                )
                assert after[-1] < 10
                assert max(each_second.values()) < 40
                async with asyncio.timeout(10):
                    # One may be about to come again, so what is expected changes.
                    while told.snapshots[-1].instances != tuple(each.instance for each in fleet):  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
            await asyncio.gather(*(each.stop() for each in fleet))


# How the tests get their Consul.


def test_mirrors_are_read_from_both_forms_of_apt_sources(tmp_path):
    """Only the distribution's own archive counts, and what is switched off does not."""
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://commented.test/debian stable main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://one.test/debian stable main contrib\n"
        "deb http://tool.test/apt tool main # a tool's own\n"
        "deb-src http://source.test/debian stable main\n"
        "deb http://one.test/debian-security stable-security main\n"
    )
    (tmp_path / "sources.list.d" / "more.sources").write_text(
        "Types: deb\n# a comment\nURIs: http://two.test/debian/\nSuites: stable stable-updates\n"
        "Components: main\n\nTypes: deb\nEnabled: no\nURIs: http://off.test/debian\n"
        "Suites: stable\nComponents: main\n"
    )
    assert consul.mirrors(tmp_path) == [
        "http://one.test/debian",
        "http://two.test/debian/",
        "http://tool.test/apt",
    ]


def test_a_package_with_another_checksum_is_not_unpacked(tmp_path, monkeypatch):
    """A mirror that serves something else is named, and nothing is written."""
    archive = tmp_path / "debian" / consul.PACKAGE
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"something else")
    monkeypatch.setattr(consul, "CACHED", tmp_path / "cache" / "consul")
    monkeypatch.setattr(consul, "mirrors", lambda apt: [(tmp_path / "debian").as_uri()])
    monkeypatch.setattr(consul.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(consul.sys, "platform", "linux")
    monkeypatch.setattr(consul.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert hashlib.sha256(b"something else").hexdigest() != consul.PACKAGE_SHA256
    with pytest.raises(consul.FetchError, match="not the package whose checksum is known"):
        consul.fetch(tmp_path)
    assert not consul.CACHED.parent.exists()


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_only_ci_insists_on_a_consul(tmp_path, monkeypatch, capsys, ci, code):
    """A laptop without one is told so in a line, and goes on."""

    def fail():
        raise consul.FetchError("no Debian mirror")

    monkeypatch.setattr(consul, "find", lambda: None)
    monkeypatch.setattr(consul, "fetch", fail)
    monkeypatch.setenv("CI", ci)
    monkeypatch.delenv("CONSUL_BIN", raising=False)
    assert consul.main(["--fetch"]) == code
    message = "consul: none here, and none to be had: no Debian mirror\n"
    assert capsys.readouterr().err == message

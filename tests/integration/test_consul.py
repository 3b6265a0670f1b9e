"""The Consul registry with a real Consul, and what only Consul can do to it."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import logging
import random
import socket
import uuid
from dataclasses import replace

import pytest

from meshrpc.errors import RegistryError
from meshrpc.registry.consul import ConsulRegistry
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.registration import Registration
from meshrpc.registry.registry import Snapshot
from tests import consul


@pytest.fixture
def instance() -> Instance:
    return Instance(
        id="1",
        service=f"payment-{uuid.uuid4().hex[:8]}",
        address="127.0.0.1:5001",
        health=Health.SERVING,
    )


def put(server: consul.ConsulServer, path: str, body: object = None) -> None:
    host, _, port = server.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request("PUT", path, json.dumps(body))
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()


class Told:
    """The last snapshot of a watch, to wait on."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self._told = asyncio.Event()

    def __call__(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)
        self._told.set()

    async def until(self, *instances: Instance) -> None:
        async with asyncio.timeout(30):
            while not self.snapshots or self.snapshots[-1].instances != instances:
                self._told.clear()
                await self._told.wait()


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
        logging.getLogger("meshrpc.registry.consul_watch").addHandler(self)
        return self

    async def __aexit__(self, kind, *_):
        try:
            if kind is None:
                async with asyncio.timeout(30):
                    await self._seen.wait()
        finally:
            logging.getLogger("meshrpc.registry.consul_watch").removeHandler(self)


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


async def test_something_else_at_the_address_is_an_error_not_an_answer():
    """A web server's page is no list of services."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        page = b"<html>hello</html>"
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + page)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with ConsulRegistry(f"consul://127.0.0.1:{port}") as registry:
            with pytest.raises(RegistryError, match=f"Consul at 127.0.0.1:{port} refused"):
                await registry.services()


@pytest.mark.consul
async def test_watches_outlive_a_consul_that_restarts_empty(consul_binary, instance):
    """What was known is kept while it is away, and what is registered again afterwards is seen."""
    with consul.ConsulServer() as server:
        async with ConsulRegistry(server.url, rng=random.Random(5)) as registry:
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

    async with Counted(consul_server.url) as registry, ConsulRegistry(consul_server.url) as other:
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
        async with ConsulRegistry(server.url) as registry:
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
    put(
        consul_server,
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
    put(consul_server, "/v1/agent/service/deregister/theirs")


@pytest.mark.consul
async def test_a_bad_record_is_skipped_with_one_warning(consul_server, instance, caplog):
    """The good ones beside it are used, and the log names what is wrong with it once."""
    bad = {"Name": instance.service, "ID": "bad", "Address": "10.0.0.5"}
    put(consul_server, "/v1/agent/service/register", bad)
    async with ConsulRegistry(consul_server.url) as registry:
        told = Told()
        registry.watch(instance.service, told)
        await registry.register(instance)
        await told.until(instance)
        await registry.register(replace(instance, weight=2))
        await told.until(replace(instance, weight=2))
    messages = [each.getMessage() for each in caplog.records if "skipped" in each.getMessage()]
    assert messages == [f"{instance.service!r} in Consul: skipped 0 is no port"]
    put(consul_server, "/v1/agent/service/deregister/bad")


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

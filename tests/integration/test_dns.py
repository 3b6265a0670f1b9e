"""A name in DNS as a registry, and calls over it to a real server."""

import asyncio
import logging
import random
import shutil
import socket
import subprocess

import grpc
import pytest

from meshrpc.client.channel import Channel
from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import Dialing
from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.errors import ReadOnlyRegistry, RegistryError, SettingsError
from meshrpc.policy.model import EffectivePolicy
from meshrpc.registry.backoff import LONGEST
from meshrpc.registry.dns import RESOLVE_EVERY, WARN_EVERY, DnsRegistry, parse
from meshrpc.registry.instance import Instance
from tests.echo import PLAIN, EchoServer, Handlers

URL = "dns://payments.example:443"


class Resolver:
    """Answers as the test says, and counts."""

    def __init__(self, *answer):
        self.answer = answer
        self.asked = 0

    async def __call__(self, host, port):
        assert (host, port) == ("payments.example", 443)
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Outside:
    """What a mesh does for a channel to a target outside it."""

    def __init__(self, registry, url, **dialing):
        self.registry = registry
        self.dialing = Dialing("shell", authority=registry.authority, **dialing)
        self.channel = Channel(url, self.dialing, self)
        self.opened = None

    def destination(self, channel):
        self.opened = Destination(
            channel.target,
            channel.dialing,
            EffectivePolicy(channel.target),
            member="shell-1",
            zone=None,
            clock=SYSTEM_CLOCK,
            rng=random.Random(1),
        )
        self.opened.open(self.registry)
        return self.opened

    async def release(self, channel):
        await self.opened.close(0.0)

    async def __aenter__(self):
        await self.registry.__aenter__()
        return self.channel

    async def __aexit__(self, *error):
        await self.channel.close()
        await self.registry.__aexit__(None, None, None)


def watched(registry, url=URL):
    """Watch, and keep the addresses of every snapshot."""
    seen = []
    registry.watch(url, lambda snapshot: seen.append([i.address for i in snapshot.instances]))
    return seen


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("dns://payments.example:443", "payments.example", 443),
        ("dns:payments.example:443", "payments.example", 443),
        ("dns:///payments.example:443", "payments.example", 443),
        (" dns:///localhost:1 ", "localhost", 1),
        ("dns://[::1]:65535", "[::1]", 65535),
    ],
)
def test_a_target_is_written_as_ours_or_as_grpcs(url, host, port):
    """Two slashes, none, or three."""
    assert parse(url) == (host, port)


@pytest.mark.parametrize(
    "url",
    [
        "dns:",
        "dns://",
        "dns:///",
        "dns://host",
        "dns://host:0",
        "dns://host:65536",
        "dns://host:http",
        "dns://:443",
        "dns://::1:443",
        "dns://8.8.8.8/host:443",
        "dns://host:443/path",
        "dns:////host:443",
        "static:host:443",
    ],
)
def test_a_target_that_names_no_host_and_port_is_refused(url):
    """With the URL and an example, and before anything is asked."""
    with pytest.raises(SettingsError, match="dns:"):
        DnsRegistry(url)


async def test_every_address_is_an_instance_of_a_server_that_is_not_ours(virtual_clock):
    """Addresses are ids, each stands there once, IPv6 in brackets; no pid, so no frequent pings."""
    resolver = Resolver("10.0.0.2", "10.0.0.1", "2001:db8::1", "10.0.0.2")
    async with DnsRegistry(URL, "blue", clock=virtual_clock, resolve=resolver) as registry:
        seen = watched(registry)
        await virtual_clock.settle()
        assert seen == [["10.0.0.1:443", "10.0.0.2:443", "[2001:db8::1]:443"]]
        assert await registry.services() == (URL,)
        first, *_ = await registry.instances(URL)
        assert first == Instance(
            id="10.0.0.1:443", service=URL, address="10.0.0.1:443", namespace="blue"
        )
        assert first.pid is None


async def test_a_name_is_resolved_again_and_only_changes_are_told(virtual_clock):
    """Every thirty seconds."""
    resolver = Resolver("10.0.0.1")
    async with DnsRegistry(URL, clock=virtual_clock, resolve=resolver) as registry:
        seen = watched(registry)
        await virtual_clock.advance(RESOLVE_EVERY - 1)
        assert resolver.asked == 1
        await virtual_clock.advance(1)
        assert resolver.asked == 2
        resolver.answer = ("10.0.0.2",)
        await virtual_clock.advance(RESOLVE_EVERY)
        assert seen == [["10.0.0.1:443"], ["10.0.0.2:443"]]


@pytest.mark.parametrize(
    "answer", [(), socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")]
)
async def test_what_was_known_stays_known_while_a_name_cannot_be_resolved(
    virtual_clock, caplog, answer
):
    """No address at all is a failure too; it is asked again soon, and warned of once a minute."""
    resolver = Resolver("10.0.0.1")
    rng = random.Random(1)
    async with DnsRegistry(URL, clock=virtual_clock, rng=rng, resolve=resolver) as registry:
        seen = watched(registry)
        await virtual_clock.settle()
        resolver.answer = answer
        await virtual_clock.advance(RESOLVE_EVERY)
        asked = resolver.asked
        await virtual_clock.advance(WARN_EVERY - 1)
        assert resolver.asked - asked > (WARN_EVERY - 1) / LONGEST
        assert seen == [["10.0.0.1:443"]]
        warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "payments.example" in warnings[0].getMessage()
        assert watched(registry) == [["10.0.0.1:443"]]
        resolver.answer = ("10.0.0.2",)
        await virtual_clock.advance(LONGEST)
        assert seen == [["10.0.0.1:443"], ["10.0.0.2:443"]]


async def test_a_name_that_never_resolved_has_no_snapshot_and_says_why(virtual_clock, caplog):
    """Nothing is known, which is not the same as nobody is there."""
    resolver = Resolver()
    resolver.answer = socket.gaierror(-2, "Name or service not known")
    async with DnsRegistry(URL, clock=virtual_clock, resolve=resolver) as registry:
        seen = watched(registry)
        await virtual_clock.advance(10)
        assert seen == []
        assert "'payments.example' cannot be resolved" in caplog.text
        assert "Name or service not known" in caplog.text
        with pytest.raises(RegistryError, match="Name or service not known"):
            await registry.instances(URL)


async def test_a_registry_of_one_name_knows_no_other_service_and_registers_nobody(virtual_clock):
    """Another service has no instances, and every change is refused."""
    resolver = Resolver("10.0.0.1")
    async with DnsRegistry(URL, clock=virtual_clock, resolve=resolver) as registry:
        assert watched(registry, "other") == [[]]
        assert await registry.instances("other") == ()
        assert resolver.asked == 0
        instance = Instance(id="x", service=URL, address="10.0.0.9:443")
        for change in (registry.register, registry.renew, registry.drain, registry.deregister):
            with pytest.raises(ReadOnlyRegistry, match=r"'x' of .*registers nobody"):
                await change(instance)


async def test_a_watch_that_is_closed_asks_no_more(virtual_clock):
    """The last watch ends the task that resolves, and another one begins it again."""
    resolver = Resolver("10.0.0.1")
    tasks = asyncio.all_tasks()
    async with DnsRegistry(URL, clock=virtual_clock, resolve=resolver) as registry:
        seen = []
        one = registry.watch(URL, seen.append)
        other = registry.watch(URL, seen.append)
        await virtual_clock.settle()
        assert len(seen) == 2
        one.close()
        one.close()
        await virtual_clock.advance(RESOLVE_EVERY)
        assert resolver.asked == 2
        other.close()
        await virtual_clock.advance(RESOLVE_EVERY)
        assert resolver.asked == 2
        assert asyncio.all_tasks() == tasks
        registry.watch(URL, seen.append)
        await virtual_clock.settle()
        assert resolver.asked == 3
    assert asyncio.all_tasks() == tasks


async def test_a_watch_whose_callback_raises_harms_nobody(virtual_clock, caplog):
    """The others are told, and it is told again with the next change."""
    resolver = Resolver("10.0.0.1")
    told = []

    def fail(snapshot):
        told.append(snapshot)
        raise ValueError("no")

    async with DnsRegistry(URL, clock=virtual_clock, resolve=resolver) as registry:
        registry.watch(URL, fail)
        seen = watched(registry)
        await virtual_clock.settle()
        resolver.answer = ("10.0.0.2",)
        await virtual_clock.advance(RESOLVE_EVERY)
        assert len(told) == len(seen) == 2
        assert "a watch of dns://payments.example:443 failed" in caplog.text


async def test_a_call_goes_to_what_localhost_resolves_to():
    """By the system's own resolver."""
    async with EchoServer("one") as one:
        url = f"dns://localhost:{one.port}"
        async with Outside(DnsRegistry(url), url) as channel:
            assert await channel.unary_unary(PLAIN)(b"hi", timeout=10) == b"hi@one"
            addresses = {each.instance.address for each in channel.bound().endpoints}
            assert f"127.0.0.1:{one.port}" in addresses


async def test_a_calls_error_names_what_dns_said(monkeypatch):
    """UNAVAILABLE some seconds after nothing was ever known, and at the deadline as well."""
    monkeypatch.setattr("meshrpc.client.destination.ANSWER_WITHIN", 0.05)
    resolver = Resolver()
    resolver.answer = socket.gaierror(-2, "Name or service not known")
    async with Outside(DnsRegistry(URL, resolve=resolver), URL) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="Name or service not known") as raised:
            await channel.unary_unary(PLAIN)(b"")
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "payments.example" in raised.value.details()
        with pytest.raises(grpc.aio.AioRpcError, match="Name or service not known") as raised:
            await channel.unary_unary(PLAIN)(b"", timeout=0.05, wait_for_ready=True)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_call_waits_for_a_name_that_does_not_resolve_yet():
    """The first resolution fails, the next one answers: no call is lost."""
    async with EchoServer("one") as one:
        failures = iter([OSError("try again"), None])

        async def resolve(host, port):
            if error := next(failures, None):
                raise error
            return ["127.0.0.1"]

        url = f"dns:payments.example:{one.port}"
        async with Outside(DnsRegistry(url, resolve=resolve), url) as channel:
            assert await channel.unary_unary(PLAIN)(b"hi", timeout=10) == b"hi@one"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate for the name `payments.example`, and for no address."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = (
        f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=payments.example "
        "-addext subjectAltName=DNS:payments.example -keyout key.pem -out cert.pem"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return (folder / "key.pem").read_bytes(), (folder / "cert.pem").read_bytes()


@pytest.mark.parametrize(("named", "answers"), [("payments.example", True), ("other.test", False)])
async def test_tls_checks_the_name_and_not_the_address(certificate, named, answers):
    """A certificate for the name is taken; one for another name is not."""
    key, chain = certificate

    async def resolve(host, port):
        return ["127.0.0.1"]

    echo = EchoServer("one")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(echo),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    await server.start()
    url = f"dns://{named}:{port}"
    trust = grpc.ssl_channel_credentials(chain)
    async with Outside(DnsRegistry(url, resolve=resolve), url, credentials=trust) as channel:
        call = channel.unary_unary(PLAIN)(b"hi", timeout=10)
        if answers:
            assert await call == b"hi@one"
        else:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert echo.seen == []
    await server.stop(None)

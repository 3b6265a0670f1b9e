"""A name in DNS as a registry, and calls over it to a real server."""

import asyncio
import logging
import random
import shutil
import subprocess

import grpc
import pytest

from meshrpc.backoff import LONGEST
from meshrpc.client.channel import Channel
from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import Dialing
from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.errors import ReadOnlyRegistry, RegistryError
from meshrpc.outage import WARN_EVERY
from meshrpc.policy.model import EffectivePolicy
from meshrpc.registry.dns import DnsRegistry
from meshrpc.registry.dns_lookup import Found
from meshrpc.registry.dns_url import Target
from meshrpc.registry.dns_watch import LATE
from meshrpc.registry.instance import Instance
from tests.echo import PLAIN, EchoServer, Handlers

URL = "dns://payments.example:443"
TTL = 20.0
NO_NAME = RegistryError("payments.example. A cannot be resolved: 10.0.0.53:53: SERVFAIL")


class Resolver:
    """Looks up what the test says, and counts."""

    def __init__(self, *answer, ttl=TTL):
        self.answer = answer
        self.ttl = ttl
        self.asked = 0

    def __call__(self, question):
        assert question.host == "payments.example"
        self.port = question.port
        return self

    async def run(self):
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return Found({f"{address}:{self.port}": 1 for address in self.answer}, self.ttl)


def target(url=URL, namespace="default", **how):
    return DnsRegistry(Target.parse(url), namespace, **how)


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


async def test_every_address_is_an_instance_of_a_server_that_is_not_ours(virtual_clock):
    """Addresses are ids, each stands there once, IPv6 in brackets; no pid, so no frequent pings."""
    resolver = Resolver("10.0.0.2", "10.0.0.1", "[2001:db8::1]")
    async with target(URL, "blue", clock=virtual_clock, make_lookup=resolver) as registry:
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
    """When the answer's life is over, and a little later."""
    resolver = Resolver("10.0.0.1")
    async with target(clock=virtual_clock, make_lookup=resolver) as registry:
        seen = watched(registry)
        await virtual_clock.advance(TTL - 0.01)
        assert resolver.asked == 1
        await virtual_clock.advance(0.01 + LATE)
        assert resolver.asked == 2
        resolver.answer = ("10.0.0.2",)
        await virtual_clock.advance(TTL + LATE)
        assert seen == [["10.0.0.1:443"], ["10.0.0.2:443"]]


@pytest.mark.parametrize("answer", [NO_NAME, UnicodeError("label too long"), OSError("no memory")])
async def test_what_was_known_stays_known_while_a_name_cannot_be_resolved(
    virtual_clock, caplog, answer
):
    """Whatever went wrong; it is asked again soon, warned of once a minute, and watches say why."""
    resolver = Resolver("10.0.0.1")
    rng = random.Random(1)
    async with target(clock=virtual_clock, rng=rng, make_lookup=resolver) as registry:
        seen = watched(registry)
        silent = registry.watch(URL, lambda snapshot: None)
        await virtual_clock.settle()
        assert silent.why_silent() is None
        resolver.answer = answer
        await virtual_clock.advance(TTL + LATE)
        asked = resolver.asked
        await virtual_clock.advance(WARN_EVERY - 1)
        assert resolver.asked - asked > (WARN_EVERY - 1) / LONGEST
        assert seen == [["10.0.0.1:443"]]
        warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert URL in warnings[0].getMessage()
        assert str(answer) in silent.why_silent()
        assert watched(registry) == [["10.0.0.1:443"]]
        resolver.answer = ("10.0.0.2",)
        await virtual_clock.advance(LONGEST)
        assert silent.why_silent() is None
        assert seen == [["10.0.0.1:443"], ["10.0.0.2:443"]]


async def test_a_name_that_exists_no_more_is_an_empty_answer(virtual_clock):
    """Callers doubt it; DNS has said so."""
    resolver = Resolver("10.0.0.1")
    async with target(clock=virtual_clock, make_lookup=resolver) as registry:
        seen = watched(registry)
        await virtual_clock.settle()
        resolver.answer = ()
        await virtual_clock.advance(TTL + LATE)
        assert seen == [["10.0.0.1:443"], []]


@pytest.mark.parametrize(("answer", "words"), [(NO_NAME, "SERVFAIL"), ((), "no address")])
async def test_a_name_that_never_resolved_has_no_snapshot_and_says_why(
    virtual_clock, caplog, answer, words
):
    """Nothing is known, which is not the same as nobody is there; also if there is no such name."""
    resolver = Resolver()
    resolver.answer = answer
    async with target(clock=virtual_clock, make_lookup=resolver) as registry:
        seen = watched(registry)
        silent = registry.watch(URL, seen.append)
        await virtual_clock.advance(10)
        assert seen == []
        assert words in caplog.text
        assert words in silent.why_silent()


async def test_a_registry_of_one_name_knows_no_other_service_and_registers_nobody(virtual_clock):
    """Another service has no instances, and every change is refused."""
    resolver = Resolver("10.0.0.1")
    async with target(clock=virtual_clock, make_lookup=resolver) as registry:
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
    async with target(clock=virtual_clock, make_lookup=resolver) as registry:
        seen = []
        one = registry.watch(URL, seen.append)
        other = registry.watch(URL, seen.append)
        await virtual_clock.settle()
        assert len(seen) == 2
        one.close()
        one.close()
        await virtual_clock.advance(TTL + LATE)
        assert resolver.asked == 2
        other.close()
        await virtual_clock.advance(TTL + LATE)
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

    async with target(clock=virtual_clock, make_lookup=resolver) as registry:
        registry.watch(URL, fail)
        seen = watched(registry)
        await virtual_clock.settle()
        resolver.answer = ("10.0.0.2",)
        await virtual_clock.advance(TTL + LATE)
        assert len(told) == len(seen) == 2
        assert f"a watch of {URL!r} failed" in caplog.text


async def test_a_call_goes_to_what_localhost_resolves_to():
    """By the system's own resolver."""
    async with EchoServer("one") as one:
        url = f"dns://localhost:{one.port}"
        async with Outside(target(url), url) as channel:
            assert await channel.unary_unary(PLAIN)(b"hi", timeout=10) == b"hi@one"
            addresses = {each.instance.address for each in channel.bound().endpoints}
            assert f"127.0.0.1:{one.port}" in addresses


async def test_a_calls_error_names_what_dns_said(monkeypatch):
    """UNAVAILABLE some seconds after nothing was ever known, and at the deadline as well."""
    monkeypatch.setattr("meshrpc.client.destination.ANSWER_WITHIN", 0.05)
    resolver = Resolver()
    resolver.answer = NO_NAME
    async with Outside(target(make_lookup=resolver), URL) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="SERVFAIL") as raised:
            await channel.unary_unary(PLAIN)(b"")
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "payments.example" in raised.value.details()
        with pytest.raises(grpc.aio.AioRpcError, match="SERVFAIL") as raised:
            await channel.unary_unary(PLAIN)(b"", timeout=0.05, wait_for_ready=True)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_call_waits_for_a_name_that_does_not_resolve_yet():
    """The first resolution fails, the next one answers: no call is lost."""
    async with EchoServer("one") as one:
        failures = iter([NO_NAME])

        class Second(Resolver):
            async def run(self):
                if error := next(failures, None):
                    raise error
                return await super().run()

        url = f"dns:payments.example:{one.port}"
        async with Outside(target(url, make_lookup=Second("127.0.0.1")), url) as channel:
            assert await channel.unary_unary(PLAIN)(b"hi", timeout=10) == b"hi@one"
            assert next(failures, None) is None


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

    def resolve(question):
        resolver.port = port
        return resolver

    resolver = Resolver("127.0.0.1")
    echo = EchoServer("one")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(echo),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    await server.start()
    url = f"dns://{named}:{port}"
    trust = grpc.ssl_channel_credentials(chain)
    async with Outside(target(url, make_lookup=resolve), url, credentials=trust) as channel:
        call = channel.unary_unary(PLAIN)(b"hi", timeout=10)
        if answers:
            assert await call == b"hi@one"
        else:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert echo.seen == []
    await server.stop(None)

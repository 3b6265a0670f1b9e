"""What answers like no Consul: a fake one, whose answers are scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from meshrpc.errors import RegistryError
from meshrpc.registry.consul import ConsulRegistry
from meshrpc.registry.instance import Health, Instance
from meshrpc.registry.registry import Snapshot
from tests.consul import Told

ONE = Instance(id="1", service="payment", address="127.0.0.1:5001", health=Health.SERVING)
ENTRY = {
    "Node": {"Node": "a", "Address": "127.0.0.1"},
    "Service": {"ID": "1", "Service": "payment", "Address": "127.0.0.1", "Port": 5001},
    "Checks": [],
}


class Reply(NamedTuple):
    """What the fake says: with an index header unless it is None."""

    body: Any = (ENTRY,)
    status: int = 200
    index: str | None = "5"
    headers: str = ""
    cut: int = 0
    """Bytes of the body that are promised and never come."""


class FakeConsul:
    """Answers each request with the next reply; after the last one, not at all."""

    def __init__(self, *replies: Reply) -> None:
        self.asked: list[str] = []
        self._replies = list(replies)
        self._served = asyncio.Event()
        self._end = asyncio.Event()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"consul://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._end.set()
        self._server.close()
        await self._server.wait_closed()

    async def served(self) -> None:
        """Wait until all replies were given and the next request has come."""
        async with asyncio.timeout(20):
            await self._served.wait()

    async def _answer(self, reader, writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.split()[1].decode())
        if not self._replies:
            self._served.set()
            await self._end.wait()
        else:
            reply = self._replies.pop(0)
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            index = "" if reply.index is None else f"X-Consul-Index: {reply.index}\r\n"
            length = f"Content-Length: {len(body) + reply.cut}\r\nConnection: close\r\n"
            writer.write(
                f"HTTP/1.1 {reply.status} X\r\n{index}{reply.headers}{length}\r\n".encode()
            )
            writer.write(body)
        writer.close()


GARBAGE = {
    "html": Reply(b"<html>" + b"hello " * 100_000),
    "truncated": Reply(json.dumps([ENTRY]).encode()[:-20]),
    "cut off": Reply(cut=100),
    "an error": Reply(b"No cluster leader", 500),
    "not found": Reply(b"", 404),
    "too many": Reply(b"rate limit", 429),
    "no list": Reply({"ID": "1"}),
    "null": Reply(None),
    "deep": Reply(b"[" * 200_000),
    "no text": Reply(b"\xff\xfe["),
    "no index": Reply(index=None),
    "index of words": Reply(index="soon"),
    "nothing": Reply(b""),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_changes_nothing_and_is_said(what):
    """What was known stays known, why is said in one line, and a good answer ends it."""
    async with (
        FakeConsul(Reply(), GARBAGE[what], Reply([])) as fake,
        ConsulRegistry(fake.url) as registry,
    ):
        silent: list[str | None] = []
        told = Told()

        def listen(snapshot: Snapshot) -> None:
            silent.append(watch.why_silent() if silent else None)
            told(snapshot)

        ask = registry._query

        async def query(service: str, index: int | None):
            silent.append(watch.why_silent())
            return await ask(service, index)

        registry._query = query
        watch = registry.watch("payment", listen)
        await fake.served()
        assert [each.instances for each in told.snapshots] == [(ONE,), ()]
        (why,) = {each for each in silent if each is not None}
        assert f"{registry.address}" in why
        assert "\n" not in why
        assert len(why) < 300
        assert watch.why_silent() is None


async def test_bad_records_are_skipped_one_by_one():
    """Of a list that holds anything, what is an instance is used, and the rest is listed."""

    def entry(**changes: Any) -> dict[str, Any]:
        return {**ENTRY, "Service": {**ENTRY["Service"], **changes}}

    body = [
        *(None, 7, "payment", [], {}, {"Service": "payment"}, ENTRY, ENTRY),
        entry(ID="port-0", Port=0),
        entry(ID="port-70000", Port=70000),
        entry(ID="naïve-☃", Address="10.0.0.5"),
        {**entry(ID="no-checks"), "Checks": "passing"},
        entry(ID="control", Address="10.0.0.5\r\nX: y"),
    ]
    async with FakeConsul(Reply(body)) as fake, ConsulRegistry(fake.url) as registry:
        told = Told()
        registry.watch("payment", told)
        await fake.served()
        (snapshot,) = told.snapshots
        assert [each.id for each in snapshot.instances] == ["1", "naïve-☃"]
        named = {each.partition(":")[0] for each in snapshot.skipped}
        assert named == {"''", "'port-0'", "'port-70000'", "'no-checks'", "'control'"}
        assert all("\n" not in each for each in snapshot.skipped)


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ("X-Consul-KnownLeader: true\r\nX-Consul-LastContact: 9000\r\n", None),
        ("X-Consul-KnownLeader: true\r\nX-Consul-LastContact: 45000\r\n", "answer is 45 s old"),
        ("X-Consul-KnownLeader: false\r\nX-Consul-LastContact: 2000\r\n", "has no leader"),
        ("X-Consul-KnownLeader: false\r\n", "has no leader"),
        ("X-Consul-LastContact: soon\r\n", None),
    ],
)
async def test_an_old_answer_is_used_and_said_to_be_old(headers, why):
    """Stale reads are asked for, and what a server without leader says is better than nothing."""
    async with (
        FakeConsul(Reply(headers=headers)) as fake,
        ConsulRegistry(f"{fake.url}?stale=true") as registry,
    ):
        told = Told()
        watch = registry.watch("payment", told)
        await told.until(ONE)
        await fake.served()
        assert watch.why_silent() is None if why is None else why in watch.why_silent()
    assert fake.asked == [
        "/v1/health/service/payment?stale=1",
        "/v1/health/service/payment?index=5&wait=30s&stale=1",
    ]


async def test_what_it_asks_for_is_what_the_url_says():
    """Tags and datacenter go with each query of a watch."""
    async with (
        FakeConsul(Reply()) as fake,
        ConsulRegistry(f"{fake.url}?dc=east&tag=blue&tag=eu") as registry,
    ):
        registry.watch("payment", Told())
        await fake.served()
    assert fake.asked[0] == "/v1/health/service/payment?tag=blue&tag=eu&dc=east"


@pytest.mark.parametrize("ask", ["services", "renew", "drain", "deregister", "register"])
async def test_garbage_is_an_error_of_one_line_for_whoever_asks(ask):
    """Whatever is asked."""
    asks: dict[str, Callable[[ConsulRegistry], Any]] = {
        "services": lambda registry: registry.services(),
        "renew": lambda registry: registry.renew(ONE),
        "drain": lambda registry: registry.drain(ONE),
        "deregister": lambda registry: registry.deregister(ONE),
        "register": lambda registry: registry.register(ONE),
    }
    for body in (
        b"<html>\n" * 1000,
        b"[1, 2",
        b"7",
        b'"x"',
        b"[" * 200_000,
        b'{"default:payment:1": 7}',
    ):
        async with FakeConsul(*[Reply(body)] * 3) as fake, ConsulRegistry(fake.url) as registry:
            with pytest.raises(RegistryError) as caught:
                await asyncio.wait_for(asks[ask](registry), 3)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 300

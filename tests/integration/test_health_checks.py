"""Checks of records made by hand, against real servers, on a virtual clock."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import meshrpc
from meshrpc.control import health_checks
from meshrpc.control.health_checks import EVERY, FAILURES, WITHIN, Check, HealthChecks, ask
from meshrpc.registry.instance import Health, Instance
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.memory import MemoryRegistry

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@contextlib.asynccontextmanager
async def server(*servicers: health_pb2_grpc.HealthServicer, port: int = 0):
    """A plain grpcio server; yields its address."""
    serving = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    for servicer in servicers:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, serving)
    port = serving.add_insecure_port(f"127.0.0.1:{port}")
    await serving.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await serving.stop(None)


class Answering(health_pb2_grpc.HealthServicer):
    """Answers with a status, of gRPC or of the protocol."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self.asked = []

    async def Check(self, request, context):
        self.asked.append(request.service)
        if isinstance(self.answer, grpc.StatusCode):
            await context.abort(self.answer, "so it is")
        return health_pb2.HealthCheckResponse(status=self.answer)


class Silent(health_pb2_grpc.HealthServicer):
    """Never answers."""

    async def Check(self, request, context):
        await asyncio.Event().wait()


@pytest.fixture
def closed_port():
    """Makes addresses where nobody listens, nor will as long as the test runs."""
    with contextlib.ExitStack() as held:

        def make() -> str:
            it = held.enter_context(socket.socket())
            it.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{it.getsockname()[1]}"

        yield make


class Checking:
    """Health checks on a virtual clock that waits for the real servers they ask."""

    def __init__(self, clock) -> None:
        self.clock = clock
        self.leases = LeaseTable()
        self.found: list[tuple[float, str, Health]] = []
        self.checks = HealthChecks(self.leases, self._note, clock=clock, rng=random.Random(1))
        self.waits_for_answers = True
        clock.traffic = self

    def _note(self, instance: Instance, found: Health) -> None:
        if self.leases.set_health(instance.namespace, instance.service, instance.id, found):
            self.found.append((self.clock.now(), instance.id, found))

    def register(self, id_: str, address: str) -> Instance:
        instance = Instance(id=id_, service="legacy", address=address, permanent=True)
        self.leases.register(instance, self.clock.now())
        return instance

    def is_under_way(self) -> bool:
        return self.is_busy()

    def is_busy(self) -> bool:
        return self.waits_for_answers and self.checks.under_way > 0

    def progress(self) -> object:
        return self.checks.under_way


@pytest.fixture
async def checking(virtual_clock):
    checking = Checking(virtual_clock)
    running = asyncio.create_task(checking.checks.run())
    yield checking
    running.cancel()
    await asyncio.wait([running])
    assert checking.checks.under_way == 0


# What an answer means


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (SERVING, ""),
        (NOT_SERVING, "it says NOT_SERVING"),
        (health_pb2.HealthCheckResponse.UNKNOWN, "it says UNKNOWN"),
        (grpc.StatusCode.NOT_FOUND, ""),
        (grpc.StatusCode.PERMISSION_DENIED, ""),
        (grpc.StatusCode.INTERNAL, "INTERNAL: so it is"),
        (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE: so it is"),
    ],
)
async def test_what_a_server_says_of_itself_counts(answer, told):
    """It is asked as a whole; one that will not talk about its health answers all the same."""
    servicer = Answering(answer)
    async with server(servicer) as address:
        assert await ask(address) == told
    assert servicer.asked == [""]


async def test_a_server_without_the_health_protocol_serves():
    """Most servers that somebody registers by hand know nothing of it."""
    async with server() as address:
        assert await ask(address) == ""


async def test_a_service_of_ours_serves():
    """And so does every server with grpcio's own health servicer."""
    async with meshrpc.Service("legacy", registry=MemoryRegistry(), control="none") as service:
        assert await ask(service.address) == ""
    async with server(health.aio.HealthServicer()) as address:
        assert await ask(address) == ""


async def test_nobody_there_is_said_with_the_reason(closed_port):
    """Refused connections, and what is no address at all."""
    assert "refused" in (await ask(closed_port())).lower()
    assert await ask("no such host:1")


async def test_a_server_that_is_no_grpc_does_not_serve():
    """It closes the connection, or answers in its own language."""

    async def answer(reader, writer):
        await reader.read(16)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening, asyncio.timeout(10):
        port = listening.sockets[0].getsockname()[1]
        assert "UNAVAILABLE" in await ask(f"127.0.0.1:{port}")


# When it is decided


def test_three_failures_in_a_row_and_one_success_decide():
    """One lost answer is nothing; two and a success start the count anew."""
    check = Check("127.0.0.1:1", due=0.0)
    rng = random.Random(1)
    ends = [check.done(reason, 0.0, rng) for reason in ["x", "x", "", "x", "x", "x", "x", ""]]
    lost, back = Health.NOT_SERVING, Health.SERVING
    assert ends == [None, None, back, None, None, lost, lost, back]


def test_checks_are_spread():
    """Those that began together do not stay together."""
    rng = random.Random(1)
    checks = [Check("127.0.0.1:1", due=0.0) for _ in range(100)]
    for check in checks:
        check.done("", 100.0, rng)
    dues = sorted(check.due for check in checks)
    assert 100 + 0.9 * EVERY <= dues[0] < dues[-1] <= 100 + 1.1 * EVERY
    assert dues[-1] - dues[0] > 0.1 * EVERY


async def test_a_server_that_stops_is_found_and_so_is_its_return(checking):
    """Within three turns the one, within one the other; nothing else changes the record."""
    clock = checking.clock
    async with server() as address:
        checking.register("l1", address)
        await clock.advance(EVERY)
        assert [(id_, found) for _, id_, found in checking.found] == [("l1", Health.SERVING)]
        stopped = clock.now()
    await clock.advance(1.1 * EVERY * FAILURES)
    (at, _, found) = checking.found[-1]
    assert (len(checking.found), found) == (2, Health.NOT_SERVING)
    assert at - stopped > 0.9 * EVERY * (FAILURES - 1)
    (instance,) = checking.leases.permanent()
    assert "refused" in checking.checks.reason(instance).lower()
    async with server(port=int(address.rpartition(":")[2])):
        await clock.advance(1.1 * EVERY)
        assert checking.found[-1][2] is Health.SERVING
        assert len(checking.found) == 3
        assert checking.checks.reason(instance) == ""


async def test_a_server_that_never_answers_is_found(checking):
    """Each check ends after its time, and others do not wait for it."""
    checking.waits_for_answers = False  # they do not come
    async with server(Silent()) as address:
        instance = checking.register("l1", address)
        await checking.clock.advance(FAILURES * (1.1 * EVERY + WITHIN))
        assert [(id_, found) for _, id_, found in checking.found] == [("l1", Health.NOT_SERVING)]
        assert checking.checks.reason(instance) == f"it did not answer within {WITHIN:.0f} s"


async def test_an_address_that_changes_is_judged_anew(checking, closed_port):
    """What was found of the old one says nothing of the new one."""
    clock = checking.clock
    checking.register("l1", closed_port())
    await clock.advance(2.2 * EVERY)
    moved = checking.register("l1", closed_port())
    await clock.advance(1.9 * EVERY)  # three failures or more, but two at one address
    assert checking.found == []
    checking.leases.deregister("default", "legacy", "l1")
    await clock.advance(2 * EVERY)
    assert checking.found == []
    assert checking.checks.reason(moved) == ""
    assert repr(checking.checks) == "<HealthChecks instances=0 under_way=0>"


async def test_records_with_a_lease_are_not_checked(checking):
    """Their renewals tell that they live."""
    servicer = Answering(SERVING)
    async with server(servicer) as address:
        instance = replace(checking.register("l1", address), permanent=False)
        checking.leases.register(instance, checking.clock.now())
        await checking.clock.advance(3 * EVERY)
        assert servicer.asked == []


async def test_only_so_many_are_asked_at_once(checking, monkeypatch):
    """And everyone's turn comes, however many do not answer."""
    monkeypatch.setattr(health_checks, "AT_ONCE", 5)
    most = 0
    asked = set()

    async def never(address):
        nonlocal most
        asked.add(address)
        most = max(most, checking.checks.under_way)
        await asyncio.Event().wait()

    monkeypatch.setattr(health_checks, "ask", never)
    checking.waits_for_answers = False
    for number in range(15):
        checking.register(f"l{number}", f"127.0.0.1:{number + 1}")
    await checking.clock.advance(5 * WITHIN + EVERY)
    assert most == 5
    assert len(asked) == 15


async def test_what_grpcio_cannot_even_ask_is_a_failure(checking, monkeypatch):
    """Not the end of all checks."""

    async def fail(address):
        raise ValueError(address)

    monkeypatch.setattr(health_checks, "ask", fail)
    instance = checking.register("l1", "127.0.0.1:1")
    await checking.clock.advance(4 * EVERY)
    assert [found for _, _, found in checking.found] == [Health.NOT_SERVING]
    assert checking.checks.reason(instance) == "it cannot be asked: ValueError: 127.0.0.1:1"

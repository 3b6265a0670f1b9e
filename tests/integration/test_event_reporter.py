"""How a supervisor's events travel to control: in order, once, and without anybody waiting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from meshrpc.workers.events import MAX_TEXT, PATH, Event, EventKind, EventReporter

PATIENCE = 10.0


class Taker:
    """An HTTP server that keeps what is posted, and answers as it is told to."""

    def __init__(self) -> None:
        self.requests: list[list[dict]] = []
        self.arrived = asyncio.Condition()
        self.refusals = 0
        self.refuses = ""
        self.answer: object = None
        self.status = 200
        self.gate: asyncio.Event | None = None
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def events(self) -> list[dict]:
        return [event for request in self.requests for event in request]

    @property
    def workers(self) -> list[int]:
        return [event["worker"] for event in self.events]

    async def open(self) -> None:
        application = web.Application()
        application.router.add_post(PATH, self._take)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.Response:
        batch, status = await request.json(), self.status
        if any(event["service"] == self.refuses for event in batch):
            status = 400
        async with self.arrived:
            if status == 200:
                self.requests.append(batch)
            else:
                self.refusals += 1
            self.arrived.notify_all()
        if self.gate is not None:
            await self.gate.wait()
        answer = {"added": len(batch)} if status == 200 else {"error": "no\x1b[2J"}
        return web.json_response(self.answer or answer, status=status)

    async def until(self, condition) -> None:
        async with asyncio.timeout(PATIENCE), self.arrived:
            await self.arrived.wait_for(condition)


@contextlib.asynccontextmanager
async def taker() -> AsyncIterator[Taker]:
    server = Taker()
    await server.open()
    try:
        yield server
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def reporting(*urls: str, **options) -> AsyncIterator[EventReporter]:
    reporter = EventReporter(urls, rng=random.Random(7), **options)
    reporter.start()
    try:
        yield reporter
    finally:
        await asyncio.to_thread(reporter.close, PATIENCE)


def event(worker: int | None, **fields) -> Event:
    given = {
        "kind": EventKind.DIED,
        "service": "payment",
        "namespace": "default",
        "worker": worker,
        "instance": f"payment-{worker}",
        "pid": 100 + (worker or 0),
        "reason": "killed by SIGKILL",
        "at": 1_790_000_000.25,
    }
    return Event(**given | fields)


async def test_an_event_arrives_as_json():
    """Every field is there, the time as text, with an id that no other event has."""
    async with taker() as control, reporting(control.url) as reporter:
        reporter.report(event(2))
        reporter.report(event(None, instance=None, pid=None, kind=EventKind.RELOADED))
        await control.until(lambda: len(control.events) == 2)
    first, second = control.events
    assert first.pop("id") != second.pop("id")
    assert first == {
        "event": "died",
        "service": "payment",
        "namespace": "default",
        "worker": 2,
        "instance": "payment-2",
        "pid": 102,
        "reason": "killed by SIGKILL",
        "time": "2026-09-21T14:13:20.250Z",
    }
    assert (second["event"], second["worker"], second["pid"]) == ("reloaded", None, None)


async def test_a_text_too_long_for_control_is_cut():
    """A reason may quote anything; an event is not refused for its length."""
    async with taker() as control, reporting(control.url) as reporter:
        reporter.report(event(1, reason="x" * (MAX_TEXT + 1)))
        await control.until(lambda: control.events)
    assert control.events[0]["reason"] == "x" * MAX_TEXT


async def test_nothing_is_lost_while_control_is_away():
    """What was reported before control came, and while it was gone, arrives in order, once."""
    control = Taker()
    await control.open()
    await control.close()  # its port is known, and nobody is there
    async with reporting(control.url) as reporter:
        for worker in range(3):
            reporter.report(event(worker))
        await control.open()
        await control.until(lambda: len(control.events) == 3)
        await control.close()
        for worker in range(3, 203):
            reporter.report(event(worker))
        await control.open()
        await control.until(lambda: len(control.events) == 203)
        assert control.workers == list(range(203))
        assert reporter.dropped == 0
    await control.close()


async def test_a_control_service_that_is_not_well_is_asked_again():
    """An answer of 500 is no answer about the events: they wait."""
    async with taker() as control, reporting(control.url) as reporter:
        control.status = 500
        reporter.report(event(1))
        await control.until(lambda: control.refusals >= 2)
        control.status = 200
        await control.until(lambda: control.events)
    assert control.workers == [1]


@pytest.mark.parametrize("answer", [["added"], "added", {"status": "ok"}])
async def test_whoever_else_answers_there_has_taken_nothing(answer):
    """Another program may say 200 to anything: the events wait for control."""
    async with taker() as other, taker() as control:
        other.answer = answer
        async with reporting(other.url, control.url) as reporter:
            reporter.report(event(1))
            await control.until(lambda: control.events)
            assert other.events


async def report_twice_to(answer: Callable[..., Awaitable[None]]) -> int:
    """Report to somebody who `answer`s in its own way, until the first time was told of; its port."""
    asked: asyncio.Queue[None] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.put_nowait(None)
        await answer(reader, writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
        port: int = other.sockets[0].getsockname()[1]
        async with reporting(f"http://127.0.0.1:{port}") as reporter:
            reporter.report(event(1))
            async with asyncio.timeout(10):
                await asked.get()
                await asked.get()  # again: by now the first time has been told
    return port


async def test_what_is_no_http_server_is_told_as_such(caplog):
    """Such as control's gRPC port: what it sent first is nothing for a log."""
    caplog.set_level("INFO", "meshrpc.workers")

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\x18\x04\0\n")
        await writer.drain()
        await reader.read()
        writer.close()

    await report_twice_to(greet)
    assert "what answers there does not speak HTTP" in caplog.text


async def test_who_hangs_up_is_not_said_to_speak_something_else(caplog):
    """As a control service does that ends in the middle of a request."""
    caplog.set_level("INFO", "meshrpc.workers")

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    port = await report_twice_to(hang_up)
    assert f"127.0.0.1:{port}" in caplog.text
    assert "does not speak HTTP" not in caplog.text


async def test_the_next_control_service_is_asked_in_turn():
    """With the first one away the second gets the events, and goes on getting them."""
    async with taker() as away, taker() as control:
        await away.close()
        async with reporting(away.url, control.url) as reporter:
            reporter.report(event(1))
            await control.until(lambda: len(control.events) == 1)
            await away.open()
            reporter.report(event(2))
            await control.until(lambda: len(control.events) == 2)
            assert not away.events
            await control.close()
            reporter.report(event(3))
            await away.until(lambda: away.events)
            assert away.workers == [3]


async def test_the_oldest_events_give_way_and_are_counted(caplog):
    """Past the capacity the newest stay; one warning tells, and another how many it were."""
    control = Taker()
    await control.open()
    await control.close()
    with caplog.at_level(logging.WARNING, "meshrpc.workers"):
        async with reporting(control.url, capacity=5) as reporter:
            for worker in range(12):
                reporter.report(event(worker))
            assert reporter.dropped == 7
            assert "waiting=5 dropped=7" in repr(reporter)
            await control.open()
            await control.until(lambda: len(control.events) == 5)
    assert control.workers == [7, 8, 9, 10, 11]
    assert [record.getMessage() for record in caplog.records] == [
        "5 events wait for the control service: the oldest are dropped from now on",
        "7 events never reached the control service",
    ]
    await control.close()


async def test_an_event_that_gave_way_while_it_was_sent_counts_as_arrived():
    """The queue may overflow during a request: what that carried is not told as lost."""
    async with taker() as control, reporting(control.url, capacity=2) as reporter:
        control.gate = asyncio.Event()
        reporter.report(event(1))
        await control.until(lambda: control.events)
        for worker in (2, 3):
            reporter.report(event(worker))
        assert reporter.dropped == 1
        control.gate.set()
        await control.until(lambda: len(control.events) == 3)
        assert control.workers == [1, 2, 3]
        assert reporter.dropped == 0


async def test_what_control_refuses_for_good_holds_nothing_up(caplog):
    """Events it calls malformed are told of and dropped, and the next ones get their turn."""
    async with taker() as control, reporting(control.url) as reporter:
        control.status = 400
        reporter.report(event(1))
        await control.until(lambda: control.refusals)
        control.status = 200
        reporter.report(event(2))
        await control.until(lambda: control.events)
        assert control.workers == [2]
        assert reporter.dropped == 1
        assert "refused 1 events: 'no\\x1b[2J'" in caplog.text


async def test_one_event_that_is_refused_costs_no_other():
    """Control takes all of a request or nothing: after a refusal each event goes alone."""
    async with taker() as control:
        control.refuses = "payment:service"
        reporter = EventReporter([control.url])
        for worker, service in enumerate(("payment", "payment:service", "order", "payment")):
            reporter.report(event(worker, service=service))
        reporter.start()
        await asyncio.to_thread(reporter.close, PATIENCE)
    assert control.workers == [0, 2, 3]
    assert reporter.dropped == 1


async def test_closing_sends_what_waits():
    """An event reported just before the end arrives, although nobody waited for it before."""
    async with taker() as control:
        reporter = EventReporter([control.url])
        for worker in range(120):
            reporter.report(event(worker))
        reporter.start()
        await asyncio.to_thread(reporter.close, PATIENCE)
        assert control.workers == list(range(120))
        reporter.report(event(120))
        assert "waiting=0" in repr(reporter)


async def test_closing_does_not_wait_for_a_control_service_that_is_away(caplog):
    """One more try, no backoff: the supervisor ends, and says what got lost."""
    async with taker() as away:
        await away.close()
        reporter = EventReporter([away.url])
        reporter.start()
        reporter.report(event(1))
        await asyncio.to_thread(reporter.close, 1_000.0)
    assert "1 events never reached the control service" in caplog.text


async def test_without_control_nothing_is_sent_and_no_thread_runs():
    """`control=none`: reporting is a matter of nothing."""
    async with reporting() as reporter:
        reporter.report(event(1))
        assert reporter._thread is None
        assert "waiting=0" in repr(reporter)


@pytest.mark.parametrize("host", ["a" * 70, "a..b"])
async def test_a_host_that_cannot_be_found_is_like_one_that_is_away(host):
    """What is no name at all does not end the thread that reports."""
    async with taker() as control, reporting(f"http://{host}:1", control.url) as reporter:
        reporter.report(event(1))
        await control.until(lambda: control.events)

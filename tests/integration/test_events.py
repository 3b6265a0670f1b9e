"""Events on their way: from a supervisor to control, and from there to whoever asks."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from click.testing import CliRunner

from meshrpc.cli import events as events_command
from meshrpc.cli import main
from meshrpc.cli.events import EventSource
from meshrpc.control.http import MAX_BODY
from meshrpc.control.server import ControlServer
from meshrpc.errors import ControlError
from meshrpc.workers.events import BATCH, MAX_TEXT, PATH, Event, EventKind, EventReporter

PATIENCE = 10.0
TIME = "2026-09-21T14:13:20.000Z"


@contextlib.asynccontextmanager
async def serving(http: str = "127.0.0.1:0") -> AsyncIterator[ControlServer]:
    async with ControlServer("127.0.0.1:0", http) as server:
        yield server


@pytest.fixture
async def control() -> AsyncIterator[ControlServer]:
    async with serving() as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


def event(worker: int | None = 2, **fields) -> Event:
    given = {
        "kind": EventKind.DIED,
        "service": "payment",
        "namespace": "default",
        "worker": worker,
        "instance": "payment-3f9a1c2e",
        "pid": 123,
        "reason": "killed by SIGKILL",
        "at": 1_790_000_000.0 + (worker or 0),
    }
    return Event(**given | fields)


async def report(server: ControlServer, *events: Event) -> None:
    """Have a real reporter send the events, and return when it has."""
    reporter = EventReporter([f"http://{server.http_address}"])
    reporter.start()
    for each in events:
        reporter.report(each)
    await asyncio.to_thread(reporter.close, PATIENCE)
    assert "waiting=0 dropped=0" in repr(reporter)


async def get(session, server, query: str = "") -> list[dict]:
    async with session.get(f"http://{server.http_address}{PATH}{query}") as response:
        assert response.status == 200
        return await response.json()


async def refused(session, server, method: str = "POST", query: str = "", **request):
    url = f"http://{server.http_address}{PATH}{query}"
    async with session.request(method, url, **request) as response:
        return response.status, (await response.json())["error"]


async def command(*arguments: str):
    """Run `meshrpc events` while control is served by this loop."""
    return await asyncio.to_thread(CliRunner().invoke, main, ["events", *arguments])


# Control's HTTP.


async def test_what_supervisors_report_can_be_asked_for(control, session):
    """In the order in which it was reported, chosen by namespace, service, number and count."""
    await report(
        control,
        *(event(worker) for worker in range(1, 4)),
        event(4, service="order"),
        event(5, namespace="test"),
    )
    found = await get(session, control)
    assert [each["worker"] for each in found] == [1, 2, 3, 4]
    assert list(found[0]) == [
        *("sequence", "time", "service", "namespace", "worker", "event", "instance", "pid"),
        *("reason", "received", "id"),
    ]
    assert (found[0]["event"], found[0]["time"]) == ("died", "2026-09-21T14:13:21.000Z")

    async def workers(query: str) -> list[int]:
        return [each["worker"] for each in await get(session, control, query)]

    assert await workers("?service=payment") == [1, 2, 3]
    assert await workers("?namespace=test") == [5]
    assert await workers(f"?since={found[1]['sequence']}") == [3, 4]
    assert await workers("?limit=1") == [4]
    assert await workers("?service=nobody") == []


async def test_the_longest_request_of_a_reporter_is_taken(control, session):
    """A full batch of the longest texts, each character escaped, is within control's bound."""
    await report(control, *(event(1, reason="\U0001f4a5" * MAX_TEXT) for _ in range(BATCH)))
    assert len(await get(session, control)) == BATCH


async def test_all_events_of_a_request_are_taken_or_none(control, session):
    """One that is wrong is told by its place, and the others are not kept."""
    good = {"event": "died", "service": "payment", "time": TIME}
    status, said = await refused(session, control, json=[good, {**good, "time": None}])
    assert (status, said) == (400, "[1].time: it is missing")
    assert await get(session, control) == []


async def test_one_event_alone_may_be_posted(control, session):
    """As whoever writes a script would; the answer says how many were new."""
    url = f"http://{control.http_address}{PATH}"
    posted = {"id": "a-1", "event": "moved", "service": "payment", "time": TIME}
    for added in (1, 0):
        async with session.post(url, json=posted) as response:
            assert await response.json() == {"added": added}
    (found,) = await get(session, control)
    assert found["event"] == "moved"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "this is no JSON: "),
        (b"", 400, "this is no JSON: "),
        (b'"\xff"', 400, "JSON is written in UTF-8"),
        (b"[" * 100_000, 400, "this is no list of events: nested too deep"),
        (b"9" * 5_000, 400, "Exceeds the limit"),
        (b" " * (MAX_BODY + 1), 413, f"a request has {MAX_BODY} bytes at most"),
    ],
)
async def test_what_is_no_event_is_refused_in_json(control, session, caplog, body, status, said):
    """Whatever is posted, the answer says what is wrong with it, and nothing is a bug."""
    headers = {"Content-Type": "application/json"}
    found, error = await refused(session, control, data=io.BytesIO(body), headers=headers)
    assert found == status
    assert error.startswith(said)
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_web_page_cannot_post_events(control, session):
    """A browser sends these content types to any address without asking; only JSON is taken."""
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        status, said = await refused(
            session, control, data=b"[]", headers={"Content-Type": content_type}
        )
        assert (status, said) == (415, "events are posted as application/json")
    url = f"http://{control.http_address}{PATH}"
    asked = {"Origin": "http://example.com", "Access-Control-Request-Method": "POST"}
    async with session.options(url, headers=asked) as response:
        assert not [name for name in response.headers if name.lower().startswith("access-")]


@pytest.mark.parametrize("query", ["?since=x", "?since=-1", "?limit=1.5", f"?since={'9' * 30}"])
async def test_a_wrong_number_is_told(control, session, query):
    """With its name and the rule."""
    status, said = await refused(session, control, "GET", query)
    assert status == 400
    assert said.startswith(query[1:6])
    assert said.endswith("this is a whole number")


async def test_a_method_that_does_not_exist_is_told_which_do(control, session):
    """Events are read and added, nothing else."""
    status, said = await refused(session, control, "DELETE")
    assert (status, said) == (405, "DELETE is not allowed here, only GET,HEAD,POST")


# The command.


async def test_the_command_shows_a_table(control):
    """A row per event, oldest first; of another service or namespace if that is asked for."""
    await report(control, event(1), event(2, kind=EventKind.CRASH_LOOP), event(3, service="order"))
    result = await command("--control-http", control.http_address, "--service", "payment")
    assert result.exit_code == 0, result.output
    heading, first, second = map(str.split, result.output.splitlines())
    assert heading == ["TIME", "SERVICE", "WORKER", "EVENT", "INSTANCE", "PID", "REASON"]
    assert first[1:] == [
        *("payment", "1", "died", "payment-3f9a1c2e", "123", "killed", "by", "SIGKILL"),
    ]
    assert second[2:4] == ["2", "crash_loop"]
    result = await command("--control-http", control.http_address, "--namespace", "test")
    assert result.output.split() == heading


async def test_the_command_shows_json(control, session):
    """The same records as the HTTP interface."""
    await report(control, *(event(worker) for worker in range(1, 6)))
    result = await command("--control-http", control.http_address, "-o", "json", "--limit", "2")
    assert json.loads(result.stdout) == (await get(session, control))[-2:]


async def test_events_of_several_control_services_are_merged():
    """Each has what was reported to it; by time, and once if two of them have it."""
    async with serving() as one, serving() as two, aiohttp.ClientSession() as session:
        await report(one, event(1), event(4))
        await report(two, event(2), event(3))
        (double, _) = await get(session, one)
        posted = {name: double[name] for name in ("id", "event", "service", "worker", "time")}
        async with session.post(f"http://{two.http_address}{PATH}", json=posted) as response:
            assert response.status == 200
        both = f"{one.http_address},{two.http_address}"
        result = await command("--control-http", both, "-o", "json")
        assert [each["worker"] for each in json.loads(result.stdout)] == [1, 2, 3, 4]


async def test_one_control_service_of_several_may_be_away(control):
    """The others answer; a note says whose events are missing."""
    async with serving() as gone:
        away = gone.http_address
    await report(control, event(1))
    result = await command("--control-http", f"{away},{control.http_address}")
    assert result.exit_code == 0
    assert "SIGKILL" in result.stdout
    assert result.stderr == f"note: cannot ask http://{away} for events: connection refused\n"


async def test_a_control_service_that_is_away_is_a_clear_error():
    """One line, with what to do; never a traceback."""
    async with serving() as gone:
        away = gone.http_address
    for watch in ((), ("--watch",)):
        result = await command("--control-http", away, *watch)
        assert result.exit_code == 1
        assert result.output == (
            f"error: cannot ask http://{away} for events: connection refused; "
            "start one with: meshrpc control\n"
        )


async def test_an_answer_of_another_program_is_a_clear_error(control, session):
    """What answers there is not control, or one from before there were events."""
    result = await command("--control-http", control.address)
    assert result.exit_code == 1
    assert result.output.startswith(
        f"error: cannot ask http://{control.address} for events: "
        "what answers there does not speak HTTP"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--control", "none"], "there is no control service to ask: give --control-http"),
        (
            ["--control", "10.0.0.5:7701"],
            "where the control service at 10.0.0.5:7701 listens for HTTP is not known: give",
        ),
    ],
)
async def test_where_control_listens_for_http_has_to_be_known(arguments, said):
    """Of a control service on a port of its own nothing is guessed: 7780 may be anybody's."""
    result = await command(*arguments)
    assert result.exit_code == 1
    assert result.output.startswith(f"error: {said}")


class Steps:
    """A clock whose sleep ends when the test says so."""

    def __init__(self) -> None:
        self._sleeping = asyncio.Event()
        self._go_on = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self._go_on.clear()
        self._sleeping.set()
        await self._go_on.wait()

    async def step(self) -> None:
        """Have one look taken, and return when it is over."""
        self._sleeping.clear()
        self._go_on.set()
        async with asyncio.timeout(PATIENCE):
            await self._sleeping.wait()

    async def begun(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._sleeping.wait()


async def test_watching_goes_on_with_what_comes(capfd):
    """Each event once, a line of JSON each, over an outage and a restart of control too."""
    steps = Steps()
    async with serving() as control:
        http = control.http_address
        await report(control, event(1), event(2))
        source = EventSource(f"http://{http}", "default", None)
        watching = asyncio.create_task(
            events_command._watch([source], 1, "json", clock=steps),
        )
        try:
            await steps.begun()
            await report(control, event(3))
            await steps.step()
            await steps.step()
        except BaseException:
            watching.cancel()
            raise
    await steps.step()
    await steps.step()
    async with serving(http) as control:
        await report(control, event(4))
        await steps.step()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    out, err = capfd.readouterr()
    assert [json.loads(line)["worker"] for line in out.splitlines()] == [2, 3, 4]
    assert err.splitlines() == [
        f"note: cannot ask http://{http} for events: connection refused",
        "note: events come again",
    ]


async def test_watching_does_not_begin_without_control():
    """Whoever begins to watch is told; whoever watches already waits."""
    async with serving() as gone:
        away = gone.http_address
    source = EventSource(f"http://{away}", "default", None)
    with pytest.raises(ControlError, match="connection refused"):
        await events_command._watch([source], None, "table", clock=Steps())

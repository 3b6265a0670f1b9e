"""`meshrpc events`: what the mesh did by itself, from every control service that can be asked.

Events lie where they were reported, so that several control services each have some of them: all
are asked, and the answers merged by time. Asked over HTTP, as they are reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import aiohttp
import click

from meshrpc.cli.options import control_options
from meshrpc.cli.output import (
    Output,
    ending_with_reader,
    output_option,
    show_next,
    show_records,
)
from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import ControlError, SettingsError
from meshrpc.settings import Settings, control_http_urls

COLUMNS = ("time", "service", "worker", "event", "instance", "pid", "reason")
ASK_EVERY = 1.0
"""Seconds between two looks of `--watch`."""
CONNECT_WITHIN = 2.0
"""Seconds until an address that says nothing counts as away."""
ANSWER_WITHIN = 10.0
"""Seconds a control service has for a whole answer: 10,000 events are some 3 MB."""

Event = Mapping[str, Any]


@click.command()
@click.option("--service", metavar="NAME", help="Only events of this service.")
@click.option("--watch", is_flag=True, help="Go on with what comes, a line each, until Ctrl-C.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Only the newest N.")
@click.option(
    "--control-http",
    metavar="HOST:PORT[,...]",
    help="Its HTTP.  [env: MESHRPC_CONTROL_HTTP; default: port 7780 beside --control]",
)
@control_options
@output_option
def events(
    service: str | None,
    limit: int | None,
    control_http: str | None,
    control: str | None,
    namespace: str | None,
    output: Output,
    *,
    watch: bool,
) -> None:
    """Show what the mesh did by itself: workers that died, were restarted, scaled, reloaded.

    Oldest first. Control keeps the newest 10,000 events, in memory: those from before it was
    started are gone.
    """
    settings = Settings.resolve(control=control, control_http=control_http, namespace=namespace)
    sources = [EventSource(url, settings.namespace, service) for url in urls_to_ask(settings)]
    if not watch:
        listed = asyncio.run(_list(sources, limit))
        rows = [_row(event) for event in listed] if output == "table" else listed
        show_records(rows, output, columns=COLUMNS)
        return
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it, so no failure
        asyncio.run(_watch(sources, limit, output, clock=SYSTEM_CLOCK))


def urls_to_ask(settings: Settings) -> Sequence[str]:
    """Return where control is asked over HTTP, as `http://host:port`, at least one.

    Raises:
        SettingsError: nothing says where that is.
    """
    urls = control_http_urls(settings)
    if not urls:
        where = ", ".join(settings.control)
        raise SettingsError(
            (
                f"where the control service at {where} listens for HTTP is not known"
                if where
                else "there is no control service to ask"
            )
            + ": give --control-http HOST:PORT or MESHRPC_CONTROL_HTTP"
        )
    return urls


class EventSource:
    """One control service, and which of its events are known already."""

    def __init__(self, url: str, namespace: str, service: str | None) -> None:
        self._url = url
        self._query = {"namespace": namespace, **({"service": service} if service else {})}
        self._since = 0
        self.failure: str | None = None
        """Why it could not be asked the last time."""

    def __repr__(self) -> str:
        return f"<EventSource {self._url} since={self._since} {self.failure or 'ok'}>"

    async def news(self, session: aiohttp.ClientSession) -> list[Event]:
        """Return its events that came after those it returned before; none if it is away."""
        query = {**self._query, "since": str(self._since)}
        try:
            async with session.get(f"{self._url}/api/v1/events", params=query) as response:
                found = _checked(await response.read(), response.status)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self.failure = _cannot_ask(self._url, error)
            return []
        self.failure = None
        if found:
            self._since = found[-1]["sequence"]
        return found


def _checked(body: bytes, status: int) -> list[Event]:
    """Return the events in an answer; ValueError if those of another program were asked for."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if status == 200 and isinstance(found, list) and all(map(_is_event, found)):
        return found
    said = found.get("error") if isinstance(found, dict) else None
    if status == 400 and said:
        raise ValueError(str(said))
    raise ValueError(f"no control service that knows events answers there (HTTP status {status})")


def _is_event(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("sequence"), int)
        and isinstance(found.get("time"), str)
    )


def _cannot_ask(url: str, error: BaseException) -> str:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        cause = f"no connection within {CONNECT_WITHIN:.0f} s"
    elif isinstance(error, TimeoutError):
        cause = f"no answer within {ANSWER_WITHIN:.0f} s"
    elif isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0
        # asyncio says less than the number does; a name that is not found has a text of its own.
        cause = os.strerror(number).lower() if number > 0 else str(error.os_error.strerror)
    elif isinstance(error, aiohttp.ClientResponseError):
        cause = "what answers there does not speak HTTP"  # its gRPC port, most likely
    else:
        cause = str(error) or type(error).__name__
    return f"cannot ask {url} for events: {cause}"


async def _list(sources: Sequence[EventSource], limit: int | None) -> list[Event]:
    async with _session() as session:
        found = await _gather(sources, session)
    _require_one(sources)
    for source in sources:
        if source.failure is not None:
            click.echo(f"note: {source.failure}", err=True)
    return _newest(found, limit)


async def _watch(
    sources: Sequence[EventSource], limit: int | None, output: Output, *, clock: Clock
) -> None:
    told: dict[EventSource, str | None] = dict.fromkeys(sources)
    async with _session() as session:
        found = _newest(await _gather(sources, session), limit)
        _require_one(sources)
        async with ending_with_reader():
            while True:
                for event in found:
                    show_next(_row(event) if output == "table" else event, output, columns=COLUMNS)
                for source in sources:
                    if source.failure != told[source]:
                        told[source] = source.failure
                        click.echo(f"note: {source.failure or 'events come again'}", err=True)
                await clock.sleep(ASK_EVERY)
                found = await _gather(sources, session)


def _session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN, sock_connect=CONNECT_WITHIN)
    return aiohttp.ClientSession(timeout=timeout)


def _require_one(sources: Iterable[EventSource]) -> None:
    failures = [source.failure for source in sources]
    if None not in failures:
        reasons = "; ".join(failure for failure in failures if failure)
        raise ControlError(f"{reasons}; start one with: meshrpc control")


async def _gather(sources: Sequence[EventSource], session: aiohttp.ClientSession) -> list[Event]:
    """Return what is new of all sources, by time, an event that two of them have once."""
    answers = await asyncio.gather(*(source.news(session) for source in sources))
    merged: dict[Any, Event] = {}
    for at, answer in enumerate(answers):
        for event in answer:
            merged.setdefault(event.get("id") or (at, event["sequence"]), event)
    if len(sources) == 1:
        return list(merged.values())  # as they came: of one reporter's clock that was set, too
    return sorted(merged.values(), key=lambda event: event["time"])


def _newest(found: list[Event], limit: int | None) -> list[Event]:
    return found if limit is None else found[len(found) - min(limit, len(found)) :]


def _row(event: Event) -> dict[str, Any]:
    """Return an event as a table shows it: the time as the clock on the wall has it."""
    return {**event, "time": _local(event["time"])}


def _local(time: str) -> str:
    try:
        return datetime.fromisoformat(time).astimezone().isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        return time

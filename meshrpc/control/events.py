"""What the mesh did by itself, as control was told: a bounded log, the newest events only.

Each event gets a sequence number, by which a reader asks for what came after the last one it has
seen. The first number of a process is the time it started, in milliseconds: numbers go on growing
over a restart of control, although the log does not outlive it. An event that comes twice (its
reporter did not hear the answer) is kept once, told by its id.

`parse_events` is what control takes: it is strict about what it knows and passes over fields it
does not, and any word is a kind of event, so that older and newer reporters get through.

Pure: wall time, which is for people, is an argument.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final, TypeVar

from meshrpc.settings import valid_name
from meshrpc.timestamps import seconds_of, timestamp

CAPACITY: Final = 10_000
"""Events that are kept: some 6 MB as supervisors report them."""
MAX_REASON: Final = 1_000
"""Characters of a reason."""
MAX_INSTANCE: Final = 512
"""Characters of an instance's id, as in registries."""
MAX_NUMBER: Final = 2**31 - 1
"""The highest worker number and process id."""
MAX_SHOWN: Final = 60
"""Characters of a wrong value that an error repeats."""

_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}")

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedEvent:
    """One event, as its reporter told it."""

    id: str | None
    """Unlike any other event's; None: the reporter gave none."""
    event: str
    """What happened: `died`."""
    service: str
    namespace: str
    worker: int | None
    instance: str | None
    pid: int | None
    reason: str
    at: float
    """When, by the reporter's clock, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event in the log."""

    sequence: int
    reported: ReportedEvent
    received: float
    """When it came, by control's clock, in seconds since 1970."""

    def to_json(self) -> dict[str, Any]:
        """Return what the HTTP interface and `meshrpc events -o json` show."""
        return {
            "sequence": self.sequence,
            "time": timestamp(self.reported.at),
            "service": self.reported.service,
            "namespace": self.reported.namespace,
            "worker": self.reported.worker,
            "event": self.reported.event,
            "instance": self.reported.instance,
            "pid": self.reported.pid,
            "reason": self.reported.reason,
            "received": timestamp(self.received),
            "id": self.reported.id,
        }


class EventLog:
    """The newest `capacity` events. `started`: wall time, from which sequence numbers begin."""

    def __init__(self, *, started: float, capacity: int = CAPACITY) -> None:
        self._sequence = int(started * 1000)
        self._capacity = capacity
        self._events: deque[LoggedEvent] = deque()
        self._ids: set[str] = set()

    def __repr__(self) -> str:
        return f"<EventLog {len(self._events)} events, the last is {self._sequence}>"

    def add(self, event: ReportedEvent, received: float) -> bool:
        """Append an event, the oldest giving way; return False if it is there already."""
        if event.id is not None:
            if event.id in self._ids:
                return False
            self._ids.add(event.id)
        self._sequence += 1
        self._events.append(LoggedEvent(self._sequence, event, received))
        if len(self._events) > self._capacity:
            self._ids.discard(self._events.popleft().reported.id or "")
        return True

    def select(
        self,
        *,
        namespace: str,
        service: str | None = None,
        since: int = 0,
        limit: int = CAPACITY,
    ) -> list[LoggedEvent]:
        """Return the newest `limit` events after number `since`, oldest first."""
        newest = takewhile(lambda one: one.sequence > since, reversed(self._events))
        chosen = [
            one
            for one in newest
            if one.reported.namespace == namespace and service in (None, one.reported.service)
        ]
        return chosen[:limit][::-1]


def parse_events(document: Any) -> tuple[ReportedEvent, ...]:
    """Return the events of a JSON document: one, or a list of them.

    Raises:
        ValueError: something is wrong in it; names the place, the value and the rule.
    """
    if isinstance(document, list):
        return tuple(_event(one, f"[{index}]") for index, one in enumerate(document))
    return (_event(document, ""),)


def _event(given: Any, path: str) -> ReportedEvent:
    if not isinstance(given, dict):
        raise ValueError(f"{path or 'the document'}: an event is a JSON object")  # noqa: TRY004
    fields = _Fields(given, path)
    return ReportedEvent(
        id=fields.optional("id", valid_name),
        event=fields.required("event", _kind),
        service=fields.required("service", valid_name),
        namespace=fields.optional("namespace", valid_name) or "default",
        worker=fields.optional("worker", _number),
        instance=fields.optional("instance", _instance),
        pid=fields.optional("pid", _number),
        reason=fields.optional("reason", _reason) or "",
        at=fields.required("time", _time),
    )


class _Fields:
    """One event's fields, and where it stands."""

    def __init__(self, given: Mapping[str, Any], path: str) -> None:
        self._given = given
        self._prefix = f"{path}." if path else ""

    def required(self, name: str, parse: Callable[[Any], _Value]) -> _Value:
        if self._given.get(name) is None:
            raise ValueError(f"{self._prefix}{name}: it is missing")
        return self._parsed(name, parse)

    def optional(self, name: str, parse: Callable[[Any], _Value]) -> _Value | None:
        return None if self._given.get(name) is None else self._parsed(name, parse)

    def _parsed(self, name: str, parse: Callable[[Any], _Value]) -> _Value:
        value = self._given[name]
        try:
            return parse(value)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self._prefix}{name}: {_shown(value)}: {error}") from error


def _shown(value: Any) -> str:
    text = ascii(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _kind(value: Any) -> str:
    if not isinstance(value, str) or not _KIND.fullmatch(value):
        raise ValueError("an event is a word in snake_case, 64 characters at most")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 < value <= MAX_NUMBER:  # a bool is an int too
        raise ValueError("this is a number above 0")
    return value


def _instance(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_INSTANCE or not value.isprintable():
        raise ValueError(f"an id is printable text, {MAX_INSTANCE} characters at most")
    return value


def _reason(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_REASON:
        raise ValueError(f"a reason is text, {MAX_REASON} characters at most")
    # One line, whoever prints it: no escape sequence, and no half character that cannot be encoded.
    return "".join(each if each.isprintable() else " " for each in value)


def _time(value: Any) -> float:
    if not isinstance(value, str):
        raise ValueError("a time is written as 2026-03-09T08:30:01.118Z")  # noqa: TRY004
    return seconds_of(value)

"""What a supervisor tells control about its workers: they died, were restarted, were scaled.

A thread posts the events over HTTP, in the order in which they were reported, to the first control
service that takes them. While none does they wait in a bounded queue, the oldest giving way, and
are tried again after an exponential backoff with jitter. Each event has an id of its own, so that
one which is sent twice (an answer was lost) is listed once. Nothing here waits for the network but
that thread, and no failure here reaches the supervisor.

It does not persist: what waits when the process ends, and cannot be sent in time, is lost.
"""

from __future__ import annotations

import contextlib
import enum
import http.client
import json
import logging
import random
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from meshrpc.backoff import backoff
from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.timestamps import timestamp

CAPACITY = 1_000
"""Events that wait at most while no control service takes any."""
BATCH = 50
"""Events in one request: with the longest texts, each character escaped, less than the 1 MiB that
control reads."""
ANSWER_WITHIN = 5.0
"""Seconds a control service has for each step of an answer, before the next one is asked."""
MAX_TEXT = 1_000
"""Characters of a text that are sent; control takes no longer ones."""
MAX_ANSWER = 65_536
"""Bytes that are read of an answer: whoever answers there may be anybody."""
PATH = "/api/v1/events"

_TAKEN = range(200, 300)
_REFUSED_FOR_GOOD = (400, 413, 422)
"""Answers about the events themselves: the same events would be refused again."""

_logger = logging.getLogger("meshrpc.workers")


class EventKind(enum.StrEnum):
    """What happened."""

    DIED = "died"
    RESTARTED = "restarted"
    SCALED = "scaled"
    CRASH_LOOP = "crash_loop"
    RELOADED = "reloaded"
    RELOAD_FAILED = "reload_failed"
    HUNG = "hung"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to the workers of a service; None: it concerns no single one."""

    kind: EventKind
    service: str
    namespace: str
    worker: int | None
    """The worker's number, from 1."""
    instance: str | None
    pid: int | None
    reason: str
    """Why, for people: `killed by SIGKILL`."""
    at: float
    """When, in seconds since 1970, for people."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as control takes and shows it; texts are cut at `MAX_TEXT`."""
        return {
            "event": self.kind.value,
            "service": self.service,
            "namespace": self.namespace,
            "worker": self.worker,
            "instance": self.instance,
            "pid": self.pid,
            "reason": self.reason[:MAX_TEXT],
            "time": timestamp(self.at),
        }


class EventReporter:
    """Reports events to control, from a thread of its own.

    Args:
        urls: the control services' HTTP addresses, `http://host:port`, tried in turn from the one
            that answered last; none: events are dropped without a word.
        capacity: how many events wait at most.
        clock: monotonic time, which bounds `close`.
        rng: draws the backoff's jitter.

    `report` may be called before `start`. Any thread may call any method.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        capacity: int = CAPACITY,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        self._urls = tuple(urls)
        self._current = 0  # which of them answered last
        self._capacity = capacity
        self._clock = clock
        self._rng = rng or random.Random()
        self._id = uuid.uuid4().hex[:12]
        self._reported = 0
        self._dropped = 0
        self._queue: deque[dict[str, Any]] = deque()
        self._changed = threading.Condition()
        self._close_at: float | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        with self._changed:
            waiting, dropped = len(self._queue), self._dropped
        return f"<EventReporter {','.join(self._urls)} waiting={waiting} dropped={dropped}>"

    @property
    def dropped(self) -> int:
        """How many events gave way to newer ones, or were refused, and never reached control."""
        return self._dropped

    def start(self) -> None:
        """Begin to send. To be called once."""
        if self._urls:
            self._thread = threading.Thread(target=self._run, name="meshrpc events", daemon=True)
            self._thread.start()

    def report(self, event: Event) -> None:
        """Have `event` sent. Returns at once, whatever control does; raises nothing."""
        with self._changed:
            if not self._urls or self._close_at is not None:
                return
            self._reported += 1
            self._queue.append({"id": f"{self._id}-{self._reported}", **event.to_json()})
            overflows = len(self._queue) > self._capacity
            is_first = overflows and self._dropped == 0
            if overflows:
                self._queue.popleft()
                self._dropped += 1
            self._changed.notify()
        if is_first:
            _logger.warning(
                "%d events wait for the control service: the oldest are dropped from now on",
                self._capacity,
            )

    def close(self, within: float) -> None:
        """Send what waits, trying each control service once more, for `within` seconds at most."""
        with self._changed:
            self._close_at = self._clock.now() + within
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(within)
        with self._changed:
            lost = self._dropped + len(self._queue)
        if lost:
            _logger.warning("%d events never reached the control service", lost)

    # The thread.

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                if failures and self._close_at is None:
                    self._changed.wait_for(self._is_closing, backoff(failures, self._rng))
                self._changed.wait_for(lambda: self._queue or self._is_closing())
                is_last = self._is_closing()
                batch = list(islice(self._queue, BATCH))
            if not batch:
                return
            if self._send(batch, tell=failures == 0):
                failures = 0
            elif is_last:
                return
            else:
                failures += 1

    def _is_closing(self) -> bool:
        return self._close_at is not None

    def _send(self, batch: list[dict[str, Any]], *, tell: bool) -> bool:
        """Post `batch` to the first control service that answers; return whether one did."""
        body = json.dumps(batch).encode()
        why = ""
        for _ in self._urls:
            url = self._urls[self._current]
            try:
                status, answer = _post(url, body, self._patience())
            except ConnectionError as error:  # before HTTPException: RemoteDisconnected is both
                why = str(error) or type(error).__name__
            except http.client.HTTPException:  # whose text would be what was read
                why = "what answers there does not speak HTTP"
            except (OSError, ValueError) as error:  # no host's name
                why = str(error) or type(error).__name__
            else:
                if status in _TAKEN and "added" in answer:  # or else it is somebody else
                    self._settle(batch, was_taken=True)
                    return True
                if status in _REFUSED_FOR_GOOD and len(batch) > 1:
                    # It may be for one of them, and all or none are taken.
                    return all(self._send([event], tell=tell) for event in batch)
                if status in _REFUSED_FOR_GOOD:
                    said = str(answer.get("error", status))[:MAX_TEXT]
                    _logger.warning("%s refused %d events: %r", url, len(batch), said)
                    self._settle(batch, was_taken=False)
                    return True
                why = f"HTTP status {status}"
            why = f"{url}: {why}"
            self._current = (self._current + 1) % len(self._urls)
        if tell:
            _logger.info("events wait for the control service: %s", why)
        return False

    def _settle(self, batch: list[dict[str, Any]], *, was_taken: bool) -> None:
        """Take out of the queue what control has answered for."""
        ids = {event["id"] for event in batch}
        with self._changed:
            left = 0
            while self._queue and self._queue[0]["id"] in ids:
                self._queue.popleft()
                left += 1
            if was_taken:
                # Those that gave way while they were under way have arrived all the same.
                self._dropped -= len(batch) - left
            else:
                self._dropped += left

    def _patience(self) -> float:
        if self._close_at is None:
            return ANSWER_WITHIN
        # A timeout of 0 would mean something else: not to wait at all.
        return min(ANSWER_WITHIN, max(0.05, self._close_at - self._clock.now()))


def _post(url: str, body: bytes, patience: float) -> tuple[int, dict[str, Any]]:
    """Return the status, and the JSON object that is the answer; empty if it is none."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or 80, timeout=patience
    )
    with contextlib.closing(connection):
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            return response.status, _object(response.read(MAX_ANSWER))


def _object(answer: bytes) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

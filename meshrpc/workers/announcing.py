"""What a supervisor says of its workers: lines in its log, and events for control.

Which service it is and where control listens, the workers know, since their code may say so:
events wait until the first of them has told. The environment has the answer where none ever does.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from meshrpc.errors import SettingsError
from meshrpc.settings import Settings, control_http_urls
from meshrpc.workers.actions import Tell
from meshrpc.workers.events import CAPACITY, Event, EventKind, EventReporter
from meshrpc.workers.logs import Who

LAST_WORDS = 2.0
"""Seconds that the last events have to reach control when the supervisor ends."""

_logger = logging.getLogger("meshrpc.workers")


class Reporter(Protocol):
    """Where events go: an `EventReporter`."""

    def start(self) -> None: ...
    def report(self, event: Event) -> None: ...
    def close(self, within: float) -> None: ...


class MakeReporter(Protocol):
    """How a reporter is made."""

    def __call__(self, urls: Sequence[str], /) -> Reporter: ...


class Announcer:
    """Logs and reports what a team tells.

    `reference`: the service as MODULE:SERVICE; `environment`: that of the workers; `who`: told
    the service's name when it is known.
    """

    def __init__(
        self,
        reference: str,
        environment: Mapping[str, str],
        *,
        who: Who | None = None,
        make_reporter: MakeReporter = EventReporter,
    ) -> None:
        self._service = reference.replace(":", ".")  # until a worker says its name
        self._who = who or Who()
        self._environment = environment
        self._make_reporter = make_reporter
        self._namespace = "default"
        self._waiting: deque[tuple[EventKind, Tell, float]] = deque(maxlen=CAPACITY)
        self._reporter: Reporter | None = None

    def __repr__(self) -> str:
        return f"<Announcer {self._service} {self._reporter or 'knows no control yet'}>"

    def introduce(self, service: str, namespace: str, urls: Sequence[str]) -> None:
        """A worker says who it is, and where control takes events; the newest word counts."""
        self._service, self._namespace = service, namespace
        self._who.service = service
        if self._reporter is None:
            self._begin(urls)

    def tell(self, told: Tell) -> None:
        """Log it, and report it if it is an event."""
        _logger.log(logging.WARNING if told.is_bad else logging.INFO, "%s", told.text)
        if told.kind is None:
            return
        self._waiting.append((told.kind, told, time.time()))
        if self._reporter is None and told.kind is EventKind.CRASH_LOOP:
            self._begin_by_environment()  # none will ever say where to
        self._report()

    def close(self) -> None:
        """Have the last events sent, for `LAST_WORDS` at most."""
        if self._reporter is None and self._waiting:
            self._begin_by_environment()
        if self._reporter is not None:
            self._reporter.close(LAST_WORDS)

    def _begin_by_environment(self) -> None:
        try:
            settings = Settings.resolve(self._environment)
        except SettingsError:
            return  # that is what the workers die of, and what they say
        self._namespace = settings.namespace
        self._begin(control_http_urls(settings))

    def _begin(self, urls: Sequence[str]) -> None:
        self._reporter = self._make_reporter(urls)
        self._reporter.start()
        self._report()

    def _report(self) -> None:
        while self._reporter is not None and self._waiting:
            kind, told, at = self._waiting.popleft()
            self._reporter.report(
                Event(
                    kind=kind,
                    service=self._service,
                    namespace=self._namespace,
                    worker=told.number,
                    instance=told.instance,
                    pid=told.pid,
                    reason=told.reason,
                    at=at,
                )
            )

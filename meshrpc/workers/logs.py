"""How the processes that meshrpc starts log: to stderr, as text for people or JSON for programs.

As text a record begins with time, level and who logs (`payment[2]`: worker 2 of payment); each
further line of it, such as a traceback's, begins with who logs, so that the lines of several
workers on one stderr can be told apart. As JSON a record is one line, whatever is in it, with the
trace and span that it belongs to. Either is written at once, so that lines of two processes do not
mix.

The library itself configures no logging; these are its own processes, and the programs they load
keep whatever they configured first.
"""

from __future__ import annotations

import enum
import json
import logging
import os
import sys
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry import trace

from meshrpc.timestamps import timestamp

ENVIRONMENT = "MESHRPC_LOG_FORMAT"
"""The environment variable that says how to log: `text` or `json`."""

_TIME_FORMAT = "%H:%M:%S"
_COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}
_WRITTEN_OUT = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}
"""Control characters: what somebody put into a message shall not move a terminal's cursor."""


class LogFormat(enum.StrEnum):
    """How records are written."""

    TEXT = "text"
    JSON = "json"


@dataclass(slots=True)
class Who:
    """Who logs: each part as soon as it is known; a change shows in the next record."""

    service: str | None = None
    worker: int | None = None
    """The worker's number, from 1; None for the supervisor."""
    instance: str | None = None

    def __str__(self) -> str:
        if self.service is None:
            return ""
        return self.service if self.worker is None else f"{self.service}[{self.worker}]"


_LOOP_IS_CLOSED: Final = "Event loop is closed"


def log_to_stderr(
    level: int,
    *,
    format: LogFormat = LogFormat.TEXT,  # noqa: A002 - what it is called everywhere
    who: Who | None = None,
) -> None:
    """Log records of `level` and above to stderr.

    Another call replaces what this one set. Where the root logger has another handler already,
    somebody configured logging, and all stays as it is.
    """
    root = logging.getLogger()
    own = next((each for each in root.handlers if isinstance(each, _ToStderr)), None)
    if own is None:
        if root.handlers:
            return
        own = _ToStderr(sys.stderr)
        own.addFilter(_is_news)
        root.addHandler(own)
    who = who or Who()
    if format is LogFormat.JSON:
        own.setFormatter(_Json(who))
    else:
        own.setFormatter(_Text(who, is_coloured=own.is_terminal and not os.environ.get("NO_COLOR")))
    root.setLevel(level)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether this is more than grpcio's farewell to an event loop.

    Its poller may have something yet for the loop that a command had before its present one. That
    loop is closed, nobody waits for it, and asyncio would log a traceback.
    """
    if record.name != "asyncio" or record.exc_info is None:
        return True
    message = _message(record)
    return "PollerCompletionQueue" not in message or str(record.exc_info[1]) != _LOOP_IS_CLOSED


class _ToStderr(logging.StreamHandler[Any]):
    """Writes a record by one system call: more would let another process write in between."""

    @property
    def is_terminal(self) -> bool:
        return bool(self.stream.isatty())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            descriptor = self.stream.fileno()
        except (OSError, ValueError):  # no file: somebody collects it in memory
            super().emit(record)
            return
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
            self.stream.flush()
            while line:
                line = line[os.write(descriptor, line) :]
        except Exception:  # noqa: BLE001 - logging says itself what went wrong, and goes on
            self.handleError(record)


class _Text(logging.Formatter):
    def __init__(self, who: Who, *, is_coloured: bool) -> None:
        super().__init__("%(message)s", _TIME_FORMAT)
        self._who = who
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        time = f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}"
        level = record.levelname
        if self._is_coloured and record.levelno in _COLOURS:
            level = f"\x1b[{_COLOURS[record.levelno]}m{level}\x1b[0m"
        said = super().format(record).translate(_WRITTEN_OUT)
        who = f"{self._who} " if self._who.service else ""
        said = said.replace("\n", f"\n{who}| ")
        return f"{time} {level} {who}{record.name}: {said}"


class _Json(logging.Formatter):
    def __init__(self, who: Who) -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        span = trace.get_current_span().get_span_context()
        fields = {
            "time": timestamp(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            "service": self._who.service,
            "worker": self._who.worker,
            "instance": self._who.instance,
            "pid": record.process,
            "trace_id": trace.format_trace_id(span.trace_id) if span.is_valid else None,
            "span_id": trace.format_span_id(span.span_id) if span.is_valid else None,
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
            "stack": record.stack_info,
        }
        # In ASCII, where nothing that ends a line for anybody is left.
        return json.dumps({name: value for name, value in fields.items() if value is not None})


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - whatever an argument's own code raises
        # logging would print several lines about it, between those of JSON.
        return f"{record.msg!r} cannot be formatted: {type(error).__name__}: {error}"

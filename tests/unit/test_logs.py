"""How the processes that meshrpc starts log."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import os
import threading
from types import SimpleNamespace

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace

from meshrpc.workers import logs
from meshrpc.workers.logs import LogFormat, Who, log_to_stderr

SPAN = trace.SpanContext(0xABC, 0xDEF, is_remote=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def root(monkeypatch):
    """A root logger that only the module under test sees: pytest has handlers on the real one."""
    own = logging.RootLogger(logging.WARNING)
    seen = SimpleNamespace(**{**vars(logging), "getLogger": lambda: own})
    monkeypatch.setattr(logs, "logging", seen)
    return own


@pytest.fixture
def stderr(monkeypatch):
    collected = io.StringIO()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=collected))
    return collected


def fail() -> None:
    raise ValueError("no\nsuch \x1bthing")


def logged_failure(root: logging.Logger) -> None:
    try:
        fail()
    except ValueError:
        root.exception("charge %s failed", 7)


def test_a_line_of_text_says_when_what_and_who(root, stderr):
    """Time, level, service and worker, logger, message; what is below the level is left out."""
    log_to_stderr(logging.INFO, who=Who("payment", 2))
    root.info("ready at %s", "127.0.0.1:1")
    root.debug("not shown")
    time, rest = stderr.getvalue().split(" ", 1)
    assert len(time) == len("09:30:01.118")
    assert rest == "INFO payment[2] root: ready at 127.0.0.1:1\n"


def test_who_logs_may_be_known_later(root, stderr):
    """Before, nothing stands there; the supervisor is the service without a number."""
    who = Who()
    log_to_stderr(logging.INFO, who=who)
    root.info("one")
    who.service = "payment"
    root.info("two")
    first, second = stderr.getvalue().splitlines()
    assert first.endswith(" INFO root: one")
    assert second.endswith(" INFO payment root: two")


def test_every_line_of_a_traceback_says_whose_it_is(root, stderr):
    """Several workers write to one stderr; a line that a message brings along is no record."""
    log_to_stderr(logging.INFO, who=Who("payment", 2))
    logged_failure(root)
    first, *further = stderr.getvalue().splitlines()
    assert first.endswith(" ERROR payment[2] root: charge 7 failed")
    assert further[0] == "payment[2] | Traceback (most recent call last):"
    assert further[-2:] == ["payment[2] | ValueError: no", "payment[2] | such \\x1bthing"]
    assert all(line.startswith("payment[2] | ") for line in further)


@pytest.mark.parametrize(("who", "begins"), [(Who("payment", 2), "payment[2] | "), (Who(), "| ")])
def test_nobody_forges_a_record(root, stderr, who, begins):
    """A method's name may come with line ends in it: what follows one stands apart."""
    log_to_stderr(logging.INFO, who=who)
    forged = "09:30:01.118 ERROR payment[2] meshrpc.server: all is lost"
    root.warning("no such method: %s", f"/a\n{forged}\r{forged}")
    _, second = stderr.getvalue().splitlines()
    assert second == f"{begins}{forged}\\x0d{forged}"


def test_a_message_moves_no_terminals_cursor(root, stderr):
    """Control characters are written out, but for tabs and line ends."""
    log_to_stderr(logging.INFO)
    root.info("a\x1b[2J\r\x9b\tb é")
    assert stderr.getvalue().endswith("root: a\\x1b[2J\\x0d\\x9b\tb é\n")


@pytest.mark.parametrize(("no_colour", "is_coloured"), [("", True), ("1", False)])
def test_levels_are_coloured_on_a_terminal_only(root, monkeypatch, no_colour, is_coloured):
    """Nor there for people who said NO_COLOR."""
    terminal = Terminal()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=terminal))
    monkeypatch.setenv("NO_COLOR", no_colour)
    log_to_stderr(logging.INFO)
    root.warning("careful")
    assert ("\x1b[33mWARNING\x1b[0m root: careful" in terminal.getvalue()) is is_coloured


def test_a_record_of_json_is_one_line(root, stderr):
    """Whatever is in it, a traceback included."""
    log_to_stderr(logging.INFO, format=LogFormat.JSON, who=Who("payment", 2, "payment-1"))
    root.info("a\nb\u2028\x85\ud800 %d", 5)
    logged_failure(root)
    lines = stderr.getvalue()
    assert lines.isascii()
    first, second = map(json.loads, lines.splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "INFO",
        "logger": "root",
        "message": "a\nb\u2028\x85\ud800 5",
        "service": "payment",
        "worker": 2,
        "instance": "payment-1",
        "pid": os.getpid(),
    }
    assert second["message"] == "charge 7 failed"
    assert second["exception"].startswith("Traceback (most recent call last):\n")
    assert second["exception"].endswith("ValueError: no\nsuch \x1bthing")


def test_a_message_that_cannot_be_formatted_is_a_record_all_the_same(root, stderr):
    """logging's own complaint, several lines of text, would stand between those of JSON."""
    log_to_stderr(logging.INFO, format=LogFormat.JSON)
    root.info("%d", "five")
    said = json.loads(stderr.getvalue())["message"]
    assert said.startswith("'%d' cannot be formatted: TypeError: ")


def test_json_carries_the_trace_of_the_call_that_is_served(root, stderr):
    """Also from a handler's thread, which runs in a copy of the call's context."""
    log_to_stderr(logging.INFO, format=LogFormat.JSON)
    context = contextvars.copy_context()
    in_span = trace.set_span_in_context(trace.NonRecordingSpan(SPAN))
    context.run(otel_context.attach, in_span)
    root.info("outside")
    thread = threading.Thread(target=context.run, args=(root.info, "inside"))
    thread.start()
    thread.join()
    outside, inside = map(json.loads, stderr.getvalue().splitlines())
    assert "trace_id" not in outside
    assert "span_id" not in outside
    assert inside["trace_id"] == f"{0xABC:032x}"
    assert inside["span_id"] == f"{0xDEF:016x}"


def test_another_call_replaces_what_the_first_one_set(root, stderr):
    """A command sets up logging before it has read its own options."""
    log_to_stderr(logging.WARNING)
    log_to_stderr(logging.INFO, format=LogFormat.JSON)
    root.info("once")
    assert json.loads(stderr.getvalue())["message"] == "once"
    assert root.level == logging.INFO


def test_logging_that_somebody_configured_stays_as_it_is(root, stderr):
    """Handlers and level are those of the service's own module."""
    theirs = logging.NullHandler()
    root.addHandler(theirs)
    root.setLevel(logging.DEBUG)
    log_to_stderr(logging.INFO)
    assert root.handlers == [theirs]
    assert root.level == logging.DEBUG


def test_a_record_is_written_at_once(root, monkeypatch):
    """By one system call, however long it is: lines of two processes do not mix."""
    written = []
    read_end, write_end = os.pipe()
    monkeypatch.setattr(
        logs.os, "write", lambda _fd, data: (written.append(bytes(data)), len(data))[1]
    )
    with os.fdopen(read_end), os.fdopen(write_end, "w") as pipe:
        monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=pipe))
        log_to_stderr(logging.INFO, format=LogFormat.JSON)
        root.info("x" * 50_000)
    assert [len(json.loads(line)["message"]) for line in written] == [50_000]


def test_a_record_that_is_taken_in_pieces_is_written_to_its_end(root, monkeypatch):
    """A full pipe may take a part of it."""
    read_end, write_end = os.pipe()
    write = os.write
    monkeypatch.setattr(logs.os, "write", lambda fd, data: write(fd, data[:10]))
    with os.fdopen(read_end) as reader:
        with os.fdopen(write_end, "w") as pipe:
            monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=pipe))
            log_to_stderr(logging.INFO)
            root.info("x" * 100)
        assert reader.read().endswith(f"{'x' * 100}\n")


@pytest.mark.parametrize(
    ("text", "error", "is_told"),
    [
        ("PollerCompletionQueue._handle_events()", "Event loop is closed", False),
        ("PollerCompletionQueue._handle_events()", "something else", True),
        ("another callback", "Event loop is closed", True),
    ],
)
def test_grpcios_farewell_to_a_loop_that_is_closed_is_no_news(root, stderr, text, error, is_told):
    """A command that has one loop after another would show its traceback now and then."""
    log_to_stderr(logging.WARNING)
    record = logging.LogRecord(
        *("asyncio", logging.ERROR, __file__, 1, "Exception in callback %s", (text,)),
        (RuntimeError, RuntimeError(error), None),
    )
    root.handle(record)
    assert bool(stderr.getvalue()) is is_told

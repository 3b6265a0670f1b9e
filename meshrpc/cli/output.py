"""How listing commands answer: a table for people, JSON or YAML for programs.

The records are plain data (what `to_json` methods return). Tables show chosen columns, the other
forms all there is. A row is a line and columns are aligned, so that `| grep` and `| awk` see what they
expect; a terminal gets colours besides. Nothing that somebody put into a record moves its cursor.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import stat
import sys
import unicodedata
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import compress
from typing import Any, Literal, TypeVar

import click
import yaml

Output = Literal["table", "json", "yaml"]
"""What `-o` says."""

Record = Mapping[str, Any]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_NOTHING = "-"

_COLOURS = {
    **dict.fromkeys(("active", "serving", "synced", "ready", "added"), "green"),
    **dict.fromkeys(("draining", "pending", "held", "connecting", "changed"), "yellow"),
    **dict.fromkeys(("not_serving", "refused", "ejected", "transient_failure", "removed"), "red"),
    **dict.fromkeys(("stale", "bad_record", "duplicate_address", "unreachable"), "red"),
    **dict.fromkeys(("lease_near_expiry", "version_skew", "restarted"), "yellow"),
    **dict.fromkeys(("died", "hung", "crash_loop", "reload_failed"), "red"),
}


def output_option(command: _Command) -> _Command:
    """Give a command `-o/--output`: it receives `output: Output`, `table` unless told."""
    option = click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="How to show the answer.",
    )
    return option(command)


def show_records(records: Sequence[Record], output: Output, *, columns: Sequence[str]) -> None:
    """Print a list: a table with a row per record, or a JSON or YAML list of whole records.

    Each of `columns` is a record's key; the table's heading is that key in capitals.
    """
    if output == "table":
        _table([[shown(record.get(column)) for column in columns] for record in records], columns)
    else:
        click.echo(_document([dict(record) for record in records], output))


def show_record(record: Record, output: Output) -> None:
    """Print one thing: a row per key, or a JSON or YAML mapping."""
    if output == "table":
        _table([[key, shown(value)] for key, value in record.items()], ())
    else:
        click.echo(_document(dict(record), output))


def show_next(record: Record, output: Output, *, columns: Sequence[str]) -> None:
    """Print one of a stream that has no end: a line (JSON: one line) or a YAML document."""
    if output == "table":
        click.echo("  ".join(_coloured(shown(record.get(column))) for column in columns))
    elif output == "json":
        click.echo(json.dumps(dict(record), ensure_ascii=False))
    else:
        click.echo("---\n" + _document(dict(record), output))
    sys.stdout.flush()


@asynccontextmanager
async def ending_with_reader() -> AsyncIterator[None]:
    """End the block with `BrokenPipeError` when the reader of a pipe (`| head`) leaves.

    For streams that have no end: the next write, which would fail, may be long in coming.
    """
    task, loop, stdout = asyncio.current_task(), asyncio.get_running_loop(), sys.stdout.fileno()
    has_left = False

    def on_left() -> None:
        nonlocal has_left
        has_left = True
        loop.remove_reader(stdout)
        if task is not None:
            task.cancel()

    if stat.S_ISFIFO(os.fstat(stdout).st_mode):
        # Nobody writes to this end: all there can be to read from it is that the other one closed.
        loop.add_reader(stdout, on_left)
    try:
        yield
    except asyncio.CancelledError:
        if not has_left:
            raise
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
    finally:
        loop.remove_reader(stdout)


def _document(data: Any, output: Output) -> str:
    text = json.dumps(data, indent=2, ensure_ascii=False)
    if output == "json":
        return text
    # By way of JSON, so that both forms show the same plain data.
    dumped: str = yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True)
    return dumped.rstrip("\n")


def shown(value: Any) -> str:
    """Return a value as a table's cell shows it: nothing as `-`, a mapping as `key=value,...`."""
    match value:
        case None | "":
            return _NOTHING
        case True:
            return "yes"
        case False:
            return "no"
        case Mapping():
            return ",".join(f"{key}={shown(inner)}" for key, inner in value.items()) or _NOTHING
        case list() | tuple():
            return ",".join(shown(inner) for inner in value) or _NOTHING
        case _:
            return _printable(str(value))


def _printable(text: str) -> str:
    """Return `text` with line ends, escape sequences and their like written out."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _coloured(cell: str) -> str:
    """Return a cell in its colour on a terminal, for people who did not say NO_COLOR."""
    if cell not in _COLOURS or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return cell
    return click.style(cell, fg=_COLOURS[cell])


def _table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    if columns and sys.stdout.isatty() and sum(_widths(rows, columns)) > _terminal_width():
        # What says nothing goes first. If that is not enough the terminal breaks the lines, and not
        # the table: what is broken inside a cell cannot be copied.
        told = [not rows or any(row[at] != _NOTHING for row in rows) for at in range(len(columns))]
        columns = list(compress(columns, told))
        rows = [list(compress(row, told)) for row in rows]
    widths = _widths(rows, columns)
    if columns:
        click.echo(click.style(_line([each.upper() for each in columns], widths), bold=True))
    for row in rows:
        click.echo(_line(row, widths))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        _coloured(cell) + " " * (width - _cells(cell))
        for cell, width in zip(row, widths, strict=True)
    )
    return "".join(padded).rstrip()


def _widths(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> list[int]:
    """Return how wide each column is, with the two spaces that follow it."""
    lines = [columns, *rows] if columns else rows
    return [max(map(_cells, column)) + 2 for column in zip(*lines, strict=True)]


def _terminal_width() -> int:
    """Return what a line holds, with the two spaces that would follow it."""
    return shutil.get_terminal_size().columns + 2


def _cells(text: str) -> int:
    """Return how many places of a terminal `text` takes: 2 for an ideograph, 0 for an accent."""
    return sum(
        0
        if unicodedata.combining(each)
        else 2
        if unicodedata.east_asian_width(each) in ("W", "F")
        else 1
        for each in text
    )

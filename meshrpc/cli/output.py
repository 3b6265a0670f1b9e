"""How listing commands answer: a table for people, JSON or YAML for programs.

The records are plain data (what `to_json` methods return). Tables show chosen columns, the other
forms all there is. On a terminal rich draws the table, in colour; into a pipe goes plain aligned
text, so that `| grep` and `| awk` see what they expect.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import sys
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
    "active": "green",
    "serving": "green",
    "synced": "green",
    "draining": "yellow",
    "pending": "yellow",
    "not_serving": "red",
    "refused": "red",
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
        _table([[_cell(record.get(column)) for column in columns] for record in records], columns)
    else:
        click.echo(_document([dict(record) for record in records], output))


def show_record(record: Record, output: Output) -> None:
    """Print one thing: a row per key, or a JSON or YAML mapping."""
    if output == "table":
        _table([[key, _cell(value)] for key, value in record.items()], ())
    else:
        click.echo(_document(dict(record), output))


def show_next(record: Record, output: Output, *, columns: Sequence[str]) -> None:
    """Print one of a stream that has no end: a line (JSON: one line) or a YAML document."""
    if output == "table":
        click.echo("  ".join(_cell(record.get(column)) for column in columns))
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


def _cell(value: Any) -> str:
    match value:
        case None | "":
            return _NOTHING
        case True:
            return "yes"
        case False:
            return "no"
        case Mapping():
            return ",".join(f"{key}={_cell(inner)}" for key, inner in value.items()) or _NOTHING
        case list() | tuple():
            return ",".join(_cell(inner) for inner in value) or _NOTHING
        case _:
            return str(value)


def _table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    if sys.stdout.isatty():
        _drawn(rows, columns)
    else:
        _aligned(rows, columns)


def _drawn(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    from rich.console import Console  # noqa: PLC0415 - costs 50 ms, and only people see it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    if columns and _width(rows, columns) > console.width:
        # First goes what says nothing. If that is not enough the terminal breaks the lines, and
        # not the table: what is broken inside a cell cannot be copied.
        told = [not rows or any(row[at] != _NOTHING for row in rows) for at in range(len(columns))]
        columns = list(compress(columns, told))
        rows = [list(compress(row, told)) for row in rows]
        console.width = max(console.width, _width(rows, columns))
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(columns))
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for row in rows:
        # Text, because a value such as `[red]` is not markup.
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    console.print(table)


def _width(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> int:
    cells = zip(columns, *rows, strict=True)
    return sum(2 + max(map(len, column)) for column in cells) - 2


def _aligned(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    lines = [[column.upper() for column in columns], *rows] if columns else [*rows]
    if not lines:
        return
    widths = [max(len(cell) for cell in cells) for cells in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())

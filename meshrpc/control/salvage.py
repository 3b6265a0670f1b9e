"""What becomes of a damaged SQLite file: it is moved aside, never deleted, and the rest lives on.

Of its tables those that SQLite finds whole are copied into the new file. Of one that is not, and of
one that refers to such a one, nothing is: half of a history would bring back what was changed since.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from pathlib import Path

OWN_SUFFIXES = (".db", ".sqlite", ".sqlite3")
"""Of files that are taken for a database even if their first bytes are overwritten."""

_MAGIC = b"SQLite format 3\0"
_PARTS = ("", "-wal", "-shm")
"""Suffixes of the files that make up one database."""


class DamagedError(Exception):
    """The file is a database, but not what it was."""


def move_aside(file: Path) -> Path | None:
    """Rename a damaged database; None: it was never one, or cannot be renamed."""
    try:
        with file.open("rb") as content:
            if content.read(len(_MAGIC)) != _MAGIC and file.suffix not in OWN_SUFFIXES:
                return None
        names = (f"{file.name}.damaged-{number}" for number in itertools.count(1))
        aside = next(new for name in names if not (new := file.with_name(name)).exists())
        for part in _PARTS:
            with contextlib.suppress(FileNotFoundError):
                file.with_name(file.name + part).rename(f"{aside}{part}")
    except OSError:
        return None
    return aside


def take_along(damaged: Path, connection: sqlite3.Connection) -> list[str]:
    """Copy the tables that are whole into a new database that has them; return which were lost."""
    names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    # A table comes after those that it refers to.
    tables = [name for (name,) in connection.execute(f"{names} ORDER BY rowid")]
    lost = []
    with contextlib.closing(sqlite3.connect(damaged)) as source:
        for table in tables:
            connection.execute("BEGIN IMMEDIATE")
            try:
                _copy(source, connection, table)
                connection.execute("COMMIT")
            except (DamagedError, sqlite3.Error):
                connection.execute("ROLLBACK")
                lost.append(table)
    return sorted(lost)


def _copy(source: sqlite3.Connection, connection: sqlite3.Connection, table: str) -> None:
    (verdict,) = source.execute(f"PRAGMA quick_check({table})").fetchone()
    if verdict != "ok":
        raise DamagedError(verdict)
    columns = [column for _, column, *_ in connection.execute(f"PRAGMA table_info({table})")]
    # The names are those of our own schema.
    rows = source.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()  # noqa: S608
    values = ", ".join("?" * len(columns))
    connection.executemany(f"INSERT INTO {table} VALUES ({values})", rows)  # noqa: S608
    if connection.execute(f"PRAGMA foreign_key_check({table})").fetchone() is not None:
        raise DamagedError("what it refers to is lost")

"""What is taken along of a damaged SQLite file: every table that is whole, and none by halves.

Half of a history would bring back what was changed since, or look as if the rest had been deleted. So a
table that is damaged is lost as a whole, which only those may be whose content comes back by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
from collections.abc import Collection
from pathlib import Path


class DamagedError(Exception):
    """The file is not what it was, or never was a database of ours."""


def set_aside(file: Path) -> Path:
    """Copy a damaged database, which nobody has open, to a name of its own; return that."""
    names = (f"{file.name}.damaged-{number}" for number in itertools.count(1))
    aside = next(new for name in names if not (new := file.with_name(name)).exists())
    shutil.copy2(file, aside)
    return aside


def take_along(damaged: Path, connection: sqlite3.Connection, renewable: Collection[str]) -> None:
    """Copy the tables that are whole into a new database that has them.

    Raises:
        DamagedError: one that is not whole does not come back by itself.
    """
    names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    # A table comes after those that it refers to.
    tables = [name for (name,) in connection.execute(f"{names} ORDER BY rowid")]
    with contextlib.closing(sqlite3.connect(damaged)) as source:
        for table in tables:
            connection.execute("BEGIN IMMEDIATE")
            try:
                _copy(source, connection, table)
                connection.execute("COMMIT")
            except (DamagedError, sqlite3.Error):
                connection.execute("ROLLBACK")
                if table not in renewable:
                    raise
        # The numbers given out, also those of rows that are gone: none is given out twice.
        given = source.execute("SELECT name, seq FROM sqlite_sequence").fetchall()
        connection.execute("DELETE FROM sqlite_sequence")
        connection.executemany("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", given)


def require_whole(connection: sqlite3.Connection, table: str) -> None:
    """Raise a `DamagedError` unless the table is whole, and has all that it refers to."""
    # The names are those of our own schema.
    (verdict,) = connection.execute(f"PRAGMA quick_check({table})").fetchone()
    if verdict != "ok":
        raise DamagedError(f"table {table}: {verdict.splitlines()[-1]}")
    if connection.execute(f"PRAGMA foreign_key_check({table})").fetchone() is not None:
        raise DamagedError(f"table {table}: what it refers to is lost")


def _copy(source: sqlite3.Connection, connection: sqlite3.Connection, table: str) -> None:
    require_whole(source, table)
    columns = [column for _, column, *_ in connection.execute(f"PRAGMA table_info({table})")]
    rows = source.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()  # noqa: S608
    values = ", ".join("?" * len(columns))
    connection.executemany(f"INSERT INTO {table} VALUES ({values})", rows)  # noqa: S608

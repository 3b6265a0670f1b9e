"""The file of a database: made whole or not at all, and examined before it is used.

What is damaged is not made good by leaving it out: who starts on half of a history tells everybody
that the other half was deleted. So damage is an error, and the file stays as it is. Only where all
that was lost comes back by itself (`renewable` tables) is the file set aside, and its rest goes on in a
new one (`salvage`). SQLite has no checksums: it finds what breaks its structure, not each changed byte.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
from collections.abc import Collection
from pathlib import Path
from typing import Final

from meshrpc.control.salvage import DamagedError, require_whole, set_aside, take_along

LOCKED_WITHIN = 2.0
"""Seconds for the control service before this one to let go of the file."""

_MAGIC: Final = b"SQLite format 3\0"
_HEADER: Final = 100
"""Bytes before the content."""
_LOGS: Final = ("-wal", "-journal")
"""Suffixes of files in which SQLite keeps what is not in the database yet."""

_log = logging.getLogger(__name__)


class NotWritableError(Exception):
    """The file, or its folder, may not be read or written."""


def open_memory(schema: str) -> sqlite3.Connection:
    """Return a database that nothing is kept of."""
    connection = _connect(":memory:")
    connection.executescript(schema)
    return connection


def open_file(file: Path, schema: str, renewable: Collection[str]) -> sqlite3.Connection:
    """Open a database that this process has alone; make it, with its folder, where there is none.

    Raises:
        DamagedError: it is not what it was, or never was a database of ours.
        NotWritableError: it may not be read or written.
        OSError, sqlite3.Error: another reason.
    """
    _require_access(file.parent)
    log = _log_of(file)  # looked for first: whoever makes the file just now makes its log after it
    if not file.exists():
        if log is not None:
            raise DamagedError(f"{file.name} is gone, and {log.name} has changes that belong to it")
        _make(file, schema, renewable)
    _require_access(file)
    _require_database(file)
    connection = _connect(str(file))
    try:
        damage = _damage(connection, schema, renewable)
        if damage is not None:
            connection.close()
            _mend(file, schema, renewable, damage)
            connection = _connect(str(file))
        _prepare(connection, schema)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=LOCKED_WITHIN, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    return connection


def _prepare(connection: sqlite3.Connection, schema: str) -> None:
    """Have it written as we write; make what is missing of the tables."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(f"BEGIN EXCLUSIVE; {schema} COMMIT;")


def _make(file: Path, schema: str, renewable: Collection[str], damaged: Path | None = None) -> None:
    """Make a new database with all that is whole of a damaged one.

    It comes to its place with all of its tables: one that has none was ours, and is damaged.
    """
    made = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with contextlib.closing(_connect(str(made))) as connection:
            _prepare(connection, schema)
            if damaged is not None:
                take_along(damaged, connection, renewable)
        if damaged is None:
            _publish(made, file)
        else:
            made.replace(file)
    finally:
        for suffix in ("", *_LOGS):
            made.with_name(made.name + suffix).unlink(missing_ok=True)


def _publish(made: Path, file: Path) -> None:
    """Give the new file its name, unless another process was faster."""
    try:
        os.link(made, file)
    except FileExistsError:
        pass
    except OSError:  # not every filesystem has links
        made.rename(file)


def _require_access(path: Path) -> None:
    what = f"the folder {path}" if path.is_dir() else "the file"
    if not _may(path, os.R_OK):
        raise NotWritableError(f"this user may not read {what}")
    if not _may(path, os.W_OK):
        raise NotWritableError(f"{what} is read-only, or this user may not write it")


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _require_database(file: Path) -> None:
    """Look before SQLite does, which takes an empty file for a new one, and drops its log."""
    if not file.is_file():  # a pipe would keep us waiting for ever
        raise NotWritableError("it is a folder" if file.is_dir() else "it is not a file")
    log = _log_of(file)  # before the size: of who is closing it just now, the log is the last to go
    with file.open("rb") as content:
        header = content.read(_HEADER)
        size = content.seek(0, os.SEEK_END)
    if not header:
        raise DamagedError("it is empty")
    if not header.startswith(_MAGIC):
        raise DamagedError("it is not a database: is the path right?")
    if log is not None:
        return  # SQLite may have been killed while it wrote: it makes that good from its log
    page = int.from_bytes(header[16:18]) or 1  # as SQLite's file format has it: 1 for 64 KiB
    pages = int.from_bytes(header[28:32])
    if size < pages * (page if page > 1 else 65536):
        raise DamagedError(f"it was cut off: it has {size} bytes")


def _log_of(file: Path) -> Path | None:
    """Return the file of what is not in the database yet; None: all is."""
    for log in (file.with_name(file.name + suffix) for suffix in _LOGS):
        with contextlib.suppress(FileNotFoundError):  # also if it goes just now
            if log.stat().st_size:
                return log
    return None


def _damage(connection: sqlite3.Connection, schema: str, renewable: Collection[str]) -> str | None:
    """Return what is damaged besides what comes back by itself; None: nothing is.

    Raises:
        DamagedError: something that does not come back.
    """
    try:
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        with contextlib.closing(open_memory(schema)) as ours:
            tables = [
                name
                for (name,) in ours.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                if name not in renewable
            ]
        own = [name for name in tables if not name.startswith("sqlite_")]
        if missing := [name for name in own if name not in there]:
            which = f"it has no table {' and no table '.join(missing)}"
            raise DamagedError(which if len(missing) < len(own) else f"{which}: is it ours?")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        for table in tables:
            require_whole(connection, table)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        raise DamagedError(str(error)) from error
    return None if verdict == "ok" else str(verdict.splitlines()[-1])


def _mend(file: Path, schema: str, renewable: Collection[str], damage: str) -> None:
    """Replace a database by what is whole of it; the damaged one is kept beside it."""
    if _log_of(file) is not None:
        raise DamagedError(damage)  # what is in the log would be lost
    aside = set_aside(file)
    try:
        _make(file, schema, renewable, damaged=aside)
    except BaseException:
        aside.unlink()
        raise
    _log.warning(
        "the store %s was damaged (%s); it goes on with all that does not come back by itself, "
        "and the damaged file is %s now",
        *(file, damage, aside.name),
    )


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file is not what it was."""
    name = getattr(error, "sqlite_errorname", "")  # errors of the module itself have none
    return name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")) or str(error).startswith(
        "Could not decode to UTF-8"
    )

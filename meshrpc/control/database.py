"""The file the control service keeps: one SQLite database, one connection, one writer.

WAL with `synchronous=FULL`: what was answered survives a kill and a power cut. The connection
holds the file alone (`locking_mode=EXCLUSIVE`), so a second control service on the same file
is told so instead of drifting away from the first. Work runs in a thread, one piece at a time;
each is a transaction. Nothing is read from here after the start: readers have it in memory.

A damaged file stops nobody: `salvage` moves it aside, and saves of it what is whole.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from meshrpc.control.salvage import DamagedError, move_aside, take_along
from meshrpc.errors import ControlError, SettingsError

SCHEME = "sqlite:"
MEMORY = ":memory:"
LOCKED_WITHIN = 2.0
"""Seconds for the control service before this one to let go of the file."""

_MOVE_ASIDE = "move the file aside, and a new one is made"

_log = logging.getLogger(__name__)

T = TypeVar("T")


class StoreFullError(ControlError):
    """The disk is full: nothing was written, and what is there is intact."""


class Database:
    """An open database; make one with `Database.open`, and close it.

    Args:
        connection: what `open` made.
        url: as its user wrote it, for messages.
    """

    def __init__(self, connection: sqlite3.Connection, url: str) -> None:
        self._connection = connection
        self._url = url
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Database {self._url}>"

    @classmethod
    async def open(cls, url: str, schema: str) -> Database:
        """Open `sqlite:PATH` or `sqlite::memory:`; make the file, its folder and `schema`.

        Raises:
            SettingsError: this is no such URL.
            ControlError: the file cannot be used; says why and what to do.
        """
        path = url.removeprefix(SCHEME)
        if path == url or not path:
            raise SettingsError(
                f"store {url!r}: a store is sqlite:PATH, or sqlite::memory: to keep nothing"
            )
        try:
            return cls(await asyncio.to_thread(_open, path, schema), url)
        except FileExistsError as error:
            raise ControlError(
                f"cannot make the folder of the store {url}: there is a file in its place; "
                "choose another with --store"
            ) from error
        except OSError as error:
            raise ControlError(
                f"cannot make the folder of the store {url}: {error.strerror}; "
                "choose another with --store"
            ) from error
        except DamagedError as error:
            raise ControlError(f"the store {url} is damaged ({error}); {_MOVE_ASIDE}") from error
        except sqlite3.Error as error:
            raise ControlError(f"cannot open the store {url}: {_remedy(error)}") from error

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` as one transaction in a thread, after the work before it.

        It runs to its end also when the caller is cancelled: a caller that keeps a copy of
        what it writes shields itself as a whole.

        Raises:
            StoreFullError: the disk is full; nothing was written.
            ControlError: another reason why nothing was written.
        """
        async with self._turn:
            task = asyncio.ensure_future(asyncio.to_thread(_transaction, self._connection, work))
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                await asyncio.wait([task])  # keeps its turn until it has ended
                raise
            except sqlite3.Error as error:
                kind = StoreFullError if _name(error) == "SQLITE_FULL" else ControlError
                raise kind(f"cannot use the store {self._url}: {_remedy(error)}") from error

    async def close(self) -> None:
        """Close the file, after the work that is under way."""
        async with self._turn:
            await asyncio.to_thread(self._connection.close)


def _open(path: str, schema: str) -> sqlite3.Connection:
    if path == MEMORY:
        return _connect(path, schema)
    file = Path(path).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(str(file), schema)
    except (DamagedError, sqlite3.DatabaseError) as error:
        if not (isinstance(error, DamagedError) or _is_damage(error)):
            raise
        aside = move_aside(file)
        if aside is None:
            raise
        connection = _connect(str(file), schema)
        lost = take_along(aside, connection)
        what = f"lost with it: {', '.join(lost)}" if lost else "all that was in it could be read"
        _log.warning(
            "the store %s was damaged (%s) and is %s now; %s%s",
            *(
                file,
                error,
                aside.name,
                what,
                "; policies among it have to be applied again" if lost else "",
            ),
        )
        return connection


def _connect(path: str, schema: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=LOCKED_WITHIN, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _check(connection)
        connection.executescript(f"BEGIN EXCLUSIVE; {schema} COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise DamagedError(verdict.splitlines()[-1])


def _is_damage(error: sqlite3.Error) -> bool:
    return _name(error).startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT"))


def _transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # of a full disk, SQLite has sometimes rolled back itself
            connection.execute("ROLLBACK")
        raise
    return result


def _remedy(error: sqlite3.Error) -> str:
    name = _name(error)
    if name == "SQLITE_FULL":
        return "the disk is full; make room, nothing else is needed"
    if name.startswith("SQLITE_BUSY"):
        return "another control service has it open; stop that one, or choose another with --store"
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return f"{error}; make it writable, or choose another with --store"
    if _is_damage(error):
        return f"{error}; {_MOVE_ASIDE}"
    if name.startswith("SQLITE_IOERR"):
        return f"{error}; is the disk well, and writable? choose another with --store"
    if str(error).startswith(("no such column", "no such table")):
        return f"{error}; it is another program's, or another release's: {_MOVE_ASIDE}"
    return str(error)


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "")  # errors of the module itself have none

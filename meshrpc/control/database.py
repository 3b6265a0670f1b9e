"""What the control service keeps: one SQLite database, one connection, one writer.

WAL with `synchronous=FULL`: what was answered survives a kill and a power cut. The connection
holds the file alone (`locking_mode=EXCLUSIVE`), so a second control service on the same file
is told so instead of drifting away from the first. Work runs in a thread, one piece at a time;
each is a transaction. Nothing is read from here after the start: readers have it in memory.

A file that turns out to be damaged, or is taken away, is written to no more: readers go on with what
they have, and whoever writes is told why not. How a file is opened stands in `database_file`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from meshrpc.control.database_file import NotWritableError, is_damage, open_file, open_memory
from meshrpc.control.salvage import DamagedError
from meshrpc.errors import ControlError, SettingsError

SCHEME = "sqlite:"
MEMORY = ":memory:"

_RESTORE = (
    "it stays as it is, and so do the policies that processes have: restore it from a backup, or "
    "fill a new one with your policies (docs/control.md, A damaged store)"
)
_ACCESS = "make it writable for this user, or choose another with --store"

T = TypeVar("T")


class StoreFullError(ControlError):
    """The disk is full: nothing was written, and what is there is intact."""


class Database:
    """An open database; make one with `Database.open`, and close it.

    Args:
        connection: what `database_file` made.
        url: as its user wrote it, for messages.
        file: where it is; None: in memory.
    """

    def __init__(self, connection: sqlite3.Connection, url: str, file: Path | None = None) -> None:
        self._connection = connection
        self._url = url
        self._file = file
        self._opened = None if file is None else file.stat()
        self._damage: str | None = None
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Database {self._url}>"

    @classmethod
    async def open(cls, url: str, schema: str, *, renewable: Collection[str] = ()) -> Database:
        """Open `sqlite:PATH` or `sqlite::memory:`; make the file, its folder and `schema`.

        `renewable` are tables whose content comes back by itself: where only they are damaged,
        they begin anew, and the damaged file is kept beside the new one.

        Raises:
            SettingsError: this is no such URL.
            ControlError: the file cannot be used; says why and what to do.
        """
        path = url.removeprefix(SCHEME)
        if path == url or not path:
            raise SettingsError(
                f"store {url!r}: a store is sqlite:PATH, or sqlite::memory: to keep nothing"
            )
        if path == MEMORY:
            return cls(await asyncio.to_thread(open_memory, schema), url)
        try:
            return await asyncio.to_thread(cls._open, url, path, schema, renewable)
        except DamagedError as error:
            raise ControlError(f"the store {url} is damaged ({error}); {_RESTORE}") from error
        except NotWritableError as error:
            raise ControlError(f"cannot open the store {url}: {error}; {_ACCESS}") from error
        except OSError as error:
            raise ControlError(
                f"cannot open the store {url}: {error.strerror}; choose another with --store"
            ) from error
        except sqlite3.Error as error:
            if is_damage(error):
                raise ControlError(f"the store {url} is damaged ({error}); {_RESTORE}") from error
            raise ControlError(f"cannot open the store {url}: {_remedy(error)}") from error

    @classmethod
    def _open(cls, url: str, path: str, schema: str, renewable: Collection[str]) -> Database:
        file = Path(path).expanduser()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = "there is a file in its place"
            if not isinstance(error, FileExistsError | NotADirectoryError):
                why = error.strerror or str(error)
            raise ControlError(
                f"cannot make the folder of the store {url}: {why}; choose another with --store"
            ) from error
        file = file.resolve()  # the working folder may change, and links may be changed
        return cls(open_file(file, schema, renewable), url, file)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` as one transaction in a thread, after the work before it.

        It runs to its end also when the caller is cancelled: a caller that keeps a copy of
        what it writes shields itself as a whole.

        Raises:
            StoreFullError: the disk is full; nothing was written.
            ControlError: another reason why nothing was written.
        """
        async with self._turn:
            task = asyncio.ensure_future(asyncio.to_thread(self._run, work))
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                await asyncio.wait([task])  # keeps its turn until it has ended
                raise

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            self._require_same_file()
            return _transaction(self._connection, work)
        except DamagedError as error:
            raise self._damaged(str(error)) from error
        except sqlite3.Error as error:
            if is_damage(error):
                raise self._damaged(str(error)) from error
            kind = StoreFullError if _name(error) == "SQLITE_FULL" else ControlError
            raise kind(f"cannot use the store {self._url}: {_remedy(error)}") from error

    def _damaged(self, why: str) -> ControlError:
        """Write no more: each further change would be one to half of what was there."""
        self._damage = why
        return ControlError(f"the store {self._url} is damaged ({why}); {_RESTORE}")

    def _require_same_file(self) -> None:
        """SQLite would go on in a file that has no name any more, and the next start find none."""
        if self._damage is not None:
            raise DamagedError(self._damage)
        if self._file is None or self._opened is None:
            return
        try:
            now = self._file.stat()
        except OSError:
            now = None
        if now is None or not os.path.samestat(now, self._opened):
            raise ControlError(
                f"cannot use the store {self._url}: its file was removed or replaced; put it back, "
                "or restart the control service if what is there now is right"
            )
        if now.st_size < self._opened.st_size:
            raise DamagedError("it was cut off")
        self._opened = now

    async def close(self) -> None:
        """Close the file, after the work that is under way."""
        async with self._turn:
            await asyncio.to_thread(self._connection.close)


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
        return f"{error}; {_ACCESS}"
    if name.startswith("SQLITE_IOERR"):
        return f"{error}; is the disk well, and writable? choose another with --store"
    if str(error).startswith(("no such column", "no such table")):
        return (
            f"{error}; it is another program's, or another release's: choose another with --store"
        )
    return str(error)


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "")  # errors of the module itself have none

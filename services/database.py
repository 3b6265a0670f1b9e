"""One SQLite file that all workers of a service share, and this process's connection to it.

Several processes write at once, in WAL mode: readers never wait, and a writer waits for the others up
to `BUSY_TIMEOUT`. Each statement is a transaction of its own, so no worker holds the write lock
between two lines of Python: one that is frozen does not stop the others.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Seconds a writer waits for the others; less than the time that callers have.
BUSY_TIMEOUT = 1.0


class Database:
    """The file at `path`, which is created with the tables of `schema` on first use."""

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        self._schema = schema
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend the one connection to one thread at a time."""
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
            yield self._connection

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self._path,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,  # each statement commits by itself
            check_same_thread=False,  # the lock does better
        )
        connection.row_factory = sqlite3.Row
        # Workers that make the file together can meet here, and SQLite does not wait for this lock.
        for _ in range(100):
            with suppress(sqlite3.OperationalError):
                connection.execute("PRAGMA journal_mode = WAL")  # readers beside a writer
                break
            time.sleep(0.01)
        # No disk flush for each write: a killed process loses nothing, since the system has what it
        # wrote; only a power cut can take the last writes, and never leaves a damaged file.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(self._schema)
        return connection

"""The embedded registry's records on disk, so that a restarted control service forgets nobody.

What changed since the last write goes out as one transaction, the latest state of each record
only. A new record waits to be `written` before callers hear of it, so that a restart never
knows fewer than they do; but not for a disk that is full or slow, the mesh goes on without it.
Leases are not written: each record comes back with a fresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from functools import partial
from typing import Final

from google.protobuf.message import DecodeError

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.control.database import Database
from meshrpc.errors import ControlError
from meshrpc.registry.instance import Instance
from meshrpc.v1 import registry_pb2

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS instances (
    namespace TEXT NOT NULL,
    service TEXT NOT NULL,
    id TEXT NOT NULL,
    record BLOB NOT NULL,  -- meshrpc.v1.Instance
    PRIMARY KEY (namespace, service, id)
) WITHOUT ROWID;
"""

TABLES: Final = ("instances",)
"""What comes back by itself if it is lost: who runs registers again, within seconds."""

WRITE_WITHIN = 1.0
"""Seconds that somebody waits for the disk."""
RETRY_AFTER = 5.0
"""Seconds until a write that failed is tried again."""

_log = logging.getLogger(__name__)

_Key = tuple[str, str, str]


class InstanceRecords:
    """What is to be remembered of the lease table over a restart.

    `run` does the writing, until it is cancelled; `flush` writes what is left at the end.
    """

    def __init__(self, database: Database, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._database = database
        self._clock = clock
        self._noted: dict[_Key, Instance] = {}
        """What is on disk once all that is unwritten is."""
        self._unwritten: dict[_Key, Instance | None] = {}
        self._has_unwritten = asyncio.Event()
        self._tried = asyncio.Event()  # of what is unwritten; each batch has its own
        self._is_failing = False

    def __repr__(self) -> str:
        return f"<InstanceRecords unwritten={len(self._unwritten)}>"

    async def load(self) -> tuple[Instance, ...]:
        """Return every record; one that cannot be read is left out, and dropped."""
        rows = await self._database.run(_read)
        instances = []
        for *key, record in rows:
            try:
                instance = Instance.from_wire(registry_pb2.Instance.FromString(record))
            except (DecodeError, TypeError):
                instance = None
            if instance is None or [instance.namespace, instance.service, instance.id] != key:
                _log.warning("the record of %s cannot be read; it will register again", key[2])
                self._note((key[0], key[1], key[2]), None)
            else:
                instances.append(instance)
                self._noted[key[0], key[1], key[2]] = instance
        return tuple(instances)

    def keep(self, instance: Instance) -> None:
        """Remember the record as it is now; the same as before costs nothing."""
        key = (instance.namespace, instance.service, instance.id)
        if self._noted.get(key) != instance:
            self._noted[key] = instance
            self._note(key, instance)

    def forget(self, namespace: str, service: str, id: str) -> None:  # noqa: A002
        """Remember the record no longer."""
        if self._noted.pop((namespace, service, id), None) is not None:
            self._note((namespace, service, id), None)

    def _note(self, key: _Key, instance: Instance | None) -> None:
        self._unwritten[key] = instance
        self._has_unwritten.set()

    async def written(self) -> None:
        """Return once all that is noted is on disk, or the disk keeps us waiting."""
        if self._unwritten and not self._is_failing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_WITHIN):
                    await self._tried.wait()

    async def run(self) -> None:
        """Write what changes, as it changes."""
        while True:
            await self._has_unwritten.wait()
            try:
                await self.flush()
            except ControlError as error:
                if not self._is_failing:
                    _log.warning("%s (until then a restart forgets some instances)", error)
                self._is_failing = True
                await self._clock.sleep(RETRY_AFTER)
            else:
                self._is_failing = False

    async def flush(self) -> None:
        """Write what is not written yet.

        Raises:
            ControlError: it cannot be written; it stays to be.
        """
        self._has_unwritten.clear()
        if not self._unwritten:
            return
        batch, self._unwritten = self._unwritten, {}
        tried, self._tried = self._tried, asyncio.Event()
        try:
            await self._database.run(lambda connection: _write(connection, batch))
        except BaseException:
            self._unwritten = batch | self._unwritten
            self._has_unwritten.set()
            raise
        finally:
            tried.set()


def _read(connection: sqlite3.Connection) -> list[tuple[str, str, str, bytes]]:
    # A name that is no text any more costs one record, not all of them.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    try:
        return connection.execute("SELECT namespace, service, id, record FROM instances").fetchall()
    finally:
        connection.text_factory = str


def _write(connection: sqlite3.Connection, batch: dict[_Key, Instance | None]) -> None:
    connection.executemany(
        "DELETE FROM instances WHERE namespace = ? AND service = ? AND id = ?",
        [key for key, instance in batch.items() if instance is None],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO instances VALUES (?, ?, ?, ?)",
        [
            (*key, instance.to_wire().SerializeToString())
            for key, instance in batch.items()
            if instance is not None
        ],
    )

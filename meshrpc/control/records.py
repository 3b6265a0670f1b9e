"""The embedded registry's records on disk, so that a restarted control service forgets nobody.

Written behind: a record that a crash loses is registered again with its next renewal, so nobody
waits for this disk. What changed since the last write goes out as one transaction, the latest
state of each record only; leases are not written, each record comes back with a fresh one.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
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
        self._unwritten: dict[_Key, Instance | None] = {}
        self._has_unwritten = asyncio.Event()

    def __repr__(self) -> str:
        return f"<InstanceRecords unwritten={len(self._unwritten)}>"

    async def load(self) -> tuple[Instance, ...]:
        """Return every record; one that cannot be read is left out."""
        rows = await self._database.run(
            lambda connection: connection.execute("SELECT record FROM instances").fetchall()
        )
        instances = []
        for (record,) in rows:
            try:
                instances.append(Instance.from_wire(registry_pb2.Instance.FromString(record)))
            except DecodeError:
                _log.warning("a record of the registry cannot be read; it will register again")
        return tuple(instances)

    def keep(self, instance: Instance) -> None:
        """Remember the record as it is now."""
        self._note((instance.namespace, instance.service, instance.id), instance)

    def forget(self, namespace: str, service: str, id: str) -> None:  # noqa: A002
        """Remember the record no longer."""
        self._note((namespace, service, id), None)

    def _note(self, key: _Key, instance: Instance | None) -> None:
        self._unwritten[key] = instance
        self._has_unwritten.set()

    async def run(self) -> None:
        """Write what changes, as it changes."""
        is_failing = False
        while True:
            await self._has_unwritten.wait()
            try:
                await self.flush()
            except ControlError as error:
                if not is_failing:
                    _log.warning("%s (until then a restart forgets some instances)", error)
                is_failing = True
                await self._clock.sleep(RETRY_AFTER)
            else:
                is_failing = False

    async def flush(self) -> None:
        """Write what is not written yet.

        Raises:
            ControlError: it cannot be written; it stays to be.
        """
        batch, self._unwritten = self._unwritten, {}
        self._has_unwritten.clear()
        if not batch:
            return
        try:
            await self._database.run(lambda connection: _write(connection, batch))
        except BaseException:
            self._unwritten = batch | self._unwritten
            self._has_unwritten.set()
            raise


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

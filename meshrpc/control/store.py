"""The policy store: a history of documents in which revisions only grow.

Every apply or delete that changes something is one revision, whatever number of documents it
touches; a revision's number is never used twice, also across restarts. Each document keeps its
past versions, so that any two can be compared and an old one brought back. The current
documents stand in memory: reading needs no disk, and goes on when the disk is full.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from meshrpc.control.database import Database
from meshrpc.control.salvage import DamagedError

# AUTOINCREMENT is SQLite's promise never to give out a number again.
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS revisions (
    revision INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    author TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS documents (
    namespace TEXT NOT NULL,
    service TEXT NOT NULL,
    revision INTEGER NOT NULL REFERENCES revisions (revision),
    document TEXT NOT NULL,  -- empty: deleted
    PRIMARY KEY (namespace, service, revision)
) WITHOUT ROWID;
"""

_CURRENT: Final = """
SELECT namespace, service, max(revision), document FROM documents GROUP BY namespace, service
"""


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A document as the store has it."""

    namespace: str
    service: str
    revision: int
    """The revision that last changed it."""
    document: str
    """Canonical JSON; empty when the document was deleted."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What a write did: the store's revision after it, and the services that changed."""

    revision: int
    changed: tuple[str, ...]


class PolicyStore:
    """Documents by namespace and service. Make one with `PolicyStore.load`."""

    def __init__(
        self, database: Database, policies: Mapping[tuple[str, str], StoredPolicy], revision: int
    ) -> None:
        self._database = database
        self._policies = dict(policies)
        self._revision = revision
        self._turn = asyncio.Lock()
        self.on_change: Callable[[str, Applied], None] | None = None
        """Called with the namespace as soon as a write is done, also if who asked has gone."""

    def __repr__(self) -> str:
        return f"<PolicyStore revision={self._revision} documents={len(self._policies)}>"

    @classmethod
    async def load(cls, database: Database) -> PolicyStore:
        """Read the current documents of a database that has `SCHEMA`."""

        def read(connection: sqlite3.Connection) -> tuple[list[StoredPolicy], int]:
            policies = [StoredPolicy(*row) for row in connection.execute(_CURRENT).fetchall()]
            for stored in policies:
                _require_readable(stored)
            (revision,) = connection.execute(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'revisions'"
            ).fetchone()
            return policies, max([revision, *(stored.revision for stored in policies)])

        policies, revision = await database.run(read)
        return cls(database, {(one.namespace, one.service): one for one in policies}, revision)

    @property
    def revision(self) -> int:
        """The newest revision; 0 before the first."""
        return self._revision

    def get(self, namespace: str, service: str) -> StoredPolicy | None:
        """Return the service's current document; None when it has none."""
        stored = self._policies.get((namespace, service))
        return stored if stored is not None and stored.document else None

    def version(self, namespace: str, service: str) -> int:
        """Return the revision that last changed or deleted the service's document; 0: none."""
        stored = self._policies.get((namespace, service))
        return 0 if stored is None else stored.revision

    def list(self, namespace: str) -> tuple[StoredPolicy, ...]:
        """Return the namespace's current documents, ordered by service."""
        return tuple(
            stored
            for (space, _), stored in sorted(self._policies.items())
            if space == namespace and stored.document
        )

    def difference(self, namespace: str, documents: Mapping[str, str]) -> tuple[str, ...]:
        """Return the services, sorted, whose current document is another one than given."""
        return tuple(
            sorted(
                service
                for service, document in documents.items()
                if ((stored := self.get(namespace, service)) is None and document)
                or (stored is not None and stored.document != document)
            )
        )

    async def apply(
        self, namespace: str, documents: Mapping[str, str], *, author: str = ""
    ) -> Applied:
        """Store canonical documents by service, all as one revision; an empty one deletes.

        What is the same already does not count as changed; when nothing is changed there is no
        revision.

        Raises:
            ControlError: nothing was written.
        """
        # To its end, once begun: memory must not fall behind the disk when a caller goes away.
        task = asyncio.ensure_future(self._apply(namespace, documents, author))
        return await asyncio.shield(task)

    async def _apply(self, namespace: str, documents: Mapping[str, str], author: str) -> Applied:
        async with self._turn:
            changed = self.difference(namespace, documents)
            if not changed:
                return Applied(self._revision, ())

            def write(connection: sqlite3.Connection) -> int:
                cursor = connection.execute("INSERT INTO revisions (author) VALUES (?)", [author])
                revision = cursor.lastrowid or 0
                connection.executemany(
                    "INSERT INTO documents VALUES (?, ?, ?, ?)",
                    [(namespace, service, revision, documents[service]) for service in changed],
                )
                return revision

            revision = await self._database.run(write)
            for service in changed:
                self._policies[namespace, service] = StoredPolicy(
                    namespace, service, revision, documents[service]
                )
            self._revision = revision
            applied = Applied(revision, changed)
            if self.on_change is not None:
                self.on_change(namespace, applied)
            return applied


def _require_readable(stored: StoredPolicy) -> None:
    """Find bytes that were changed inside of a document: SQLite does not."""
    try:
        if stored.document:
            json.loads(stored.document)
    except ValueError as error:
        raise DamagedError(
            f"the policy of {stored.service} in namespace {stored.namespace} cannot be read: {error}"
        ) from error

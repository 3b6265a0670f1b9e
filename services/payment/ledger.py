"""The ledger: every payment, in one SQLite file that all workers of the service share.

Table `payments`, one row for each idempotency key: id, idempotency_key (unique), order_id, amount,
currency, status (CHARGED or REFUNDED), processed_by, loyalty_points, created_at (UTC). Anybody may
read it while the service runs.

Several processes write at once. Every write here is one statement and that statement is the whole
transaction, so that no worker holds the write lock between two lines of Python: one that is frozen
does not stop the others. Calls block for as long as the disk does; run them in a thread.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from services.payment.v1 import payment_pb2

# Seconds a writer waits for the others; less than the time that callers have.
BUSY_TIMEOUT = 1.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS payments (
    id              TEXT PRIMARY KEY,
    idempotency_key TEXT NOT NULL UNIQUE,
    order_id        TEXT NOT NULL,
    amount          INTEGER NOT NULL,
    currency        TEXT NOT NULL,
    status          TEXT NOT NULL DEFAULT 'CHARGED',
    processed_by    TEXT NOT NULL,
    loyalty_points  INTEGER NOT NULL,
    created_at      TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
)
"""

SELECT = """
SELECT id, order_id, amount, currency, 'STATUS_' || status AS status, processed_by, loyalty_points
FROM payments
"""


class UnknownPaymentError(LookupError):
    """The ledger has no payment with this id."""


class Ledger:
    """The payments in the file at `path`, which is created on first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def charge(
        self, request: payment_pb2.ChargeRequest, *, processed_by: str, loyalty_points: int
    ) -> payment_pb2.Payment:
        """Write a payment, unless its idempotency key has one; return the one that stands."""
        row = (
            f"payment-{uuid.uuid4()}",
            request.idempotency_key,
            request.order_id,
            request.amount,
            request.currency,
            processed_by,
            loyalty_points,
        )
        with self._connection() as db:
            # Of two workers that get the same key at once, one writes and both read what it wrote.
            db.execute(
                "INSERT INTO payments (id, idempotency_key, order_id, amount, currency, "
                "processed_by, loyalty_points) VALUES (?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (idempotency_key) DO NOTHING",
                row,
            )
            found = db.execute(f"{SELECT} WHERE idempotency_key = ?", (request.idempotency_key,))
            return payment_pb2.Payment(**found.fetchone())

    def refund(self, payment_id: str) -> payment_pb2.Payment:
        """Mark a payment as refunded and return it.

        Raises:
            UnknownPaymentError: there is no payment with this id.
        """
        with self._connection() as db:
            db.execute("UPDATE payments SET status = 'REFUNDED' WHERE id = ?", (payment_id,))
        return self.get(payment_id)

    def get(self, payment_id: str) -> payment_pb2.Payment:
        """Return a payment.

        Raises:
            UnknownPaymentError: there is no payment with this id.
        """
        with self._connection() as db:
            row = db.execute(f"{SELECT} WHERE id = ?", (payment_id,)).fetchone()
        if row is None:
            raise UnknownPaymentError(f"no payment {payment_id!r}")
        return payment_pb2.Payment(**row)

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend the one connection to one thread at a time."""
        with self._lock:
            if self._db is None:
                self._db = _connect(self._path)
            yield self._db


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(
        path,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,  # each statement commits by itself
        check_same_thread=False,  # the ledger's lock does better
    )
    db.row_factory = sqlite3.Row
    # Workers that make the file together can meet here, and SQLite does not wait for this lock.
    for _ in range(100):
        with suppress(sqlite3.OperationalError):
            db.execute("PRAGMA journal_mode = WAL")  # readers and a writer at the same time
            break
        time.sleep(0.01)
    # No disk flush for each payment: a killed process loses nothing, since the system has what it
    # wrote; only a power cut can take the last payments, and never leaves a damaged file.
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(SCHEMA)
    return db

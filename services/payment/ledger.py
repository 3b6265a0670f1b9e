"""The ledger: every payment, in one SQLite file that all workers of the service share.

Table `payments`, one row for each idempotency key: id, idempotency_key (unique), order_id, amount,
currency, status (CHARGED or REFUNDED), processed_by, loyalty_points, created_at (UTC). Anybody may
read it while the service runs.

Every write here is one statement (`services/database.py` says why). Calls block for as long as the
disk does; run them in a thread.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from services.database import Database
from services.payment.v1 import payment_pb2

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
        self._database = Database(path, SCHEMA)

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
        with self._database.connection() as db:
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
        with self._database.connection() as db:
            db.execute("UPDATE payments SET status = 'REFUNDED' WHERE id = ?", (payment_id,))
        return self.get(payment_id)

    def get(self, payment_id: str) -> payment_pb2.Payment:
        """Return a payment.

        Raises:
            UnknownPaymentError: there is no payment with this id.
        """
        with self._database.connection() as db:
            row = db.execute(f"{SELECT} WHERE id = ?", (payment_id,)).fetchone()
        if row is None:
            raise UnknownPaymentError(f"no payment {payment_id!r}")
        return payment_pb2.Payment(**row)

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        self._database.close()

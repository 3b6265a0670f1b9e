"""The book: every order, in one SQLite file that all workers of the service share.

Table `orders`, one row for each request_id, in the order they came: id, request_id (unique),
customer, items (JSON: a list of {sku, quantity, unit_price}), currency, total, status (PENDING,
PAID or FAILED), payment_id, paid_by, failure (the last three empty until known), created_at (UTC).
Anybody may read it while the service runs.

Every write here is one statement (`services/database.py` says why). Calls block for as long as the
disk does; run them in a thread.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from pathlib import Path

from services.database import Database
from services.order.v1 import order_pb2

SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    id         TEXT PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    customer   TEXT NOT NULL,
    items      TEXT NOT NULL,
    currency   TEXT NOT NULL,
    total      INTEGER NOT NULL,
    status     TEXT NOT NULL DEFAULT 'PENDING',
    payment_id TEXT NOT NULL DEFAULT '',
    paid_by    TEXT NOT NULL DEFAULT '',
    failure    TEXT NOT NULL DEFAULT '',
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
)
"""

SELECT = """
SELECT id, customer, items, currency, total, 'STATUS_' || status AS status,
       payment_id, paid_by, failure
FROM orders
"""


class UnknownOrderError(LookupError):
    """The book has no order with this id."""


class Book:
    """The orders in the file at `path`, which is created on first use."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path, SCHEMA)

    def place(self, request: order_pb2.CreateOrderRequest, *, total: int) -> order_pb2.Order:
        """Write a pending order, unless its request_id has one; return the one that stands."""
        items = [
            {"sku": item.sku, "quantity": item.quantity, "unit_price": item.unit_price}
            for item in request.items
        ]
        row = (
            f"order-{uuid.uuid4()}",
            request.request_id,
            request.customer,
            json.dumps(items),
            request.currency,
            total,
        )
        with self._database.connection() as db:
            # Of two workers that get the same request at once, one writes and both read that.
            db.execute(
                "INSERT INTO orders (id, request_id, customer, items, currency, total) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (request_id) DO NOTHING",
                row,
            )
            found = db.execute(f"{SELECT} WHERE request_id = ?", (request.request_id,))
            return _order(found.fetchone())

    def paid(self, order_id: str, *, payment_id: str, paid_by: str) -> order_pb2.Order:
        """Mark an order as paid, whatever it was before: money that was taken is a fact."""
        with self._database.connection() as db:
            db.execute(
                "UPDATE orders SET status = 'PAID', payment_id = ?, paid_by = ?, failure = '' "
                "WHERE id = ?",
                (payment_id, paid_by, order_id),
            )
        return self.get(order_id)

    def failed(self, order_id: str, *, failure: str) -> order_pb2.Order:
        """Mark an order as failed, unless it is paid."""
        with self._database.connection() as db:
            db.execute(
                "UPDATE orders SET status = 'FAILED', failure = ? "
                "WHERE id = ? AND status = 'PENDING'",
                (failure, order_id),
            )
        return self.get(order_id)

    def get(self, order_id: str) -> order_pb2.Order:
        """Return an order.

        Raises:
            UnknownOrderError: there is no order with this id.
        """
        with self._database.connection() as db:
            row = db.execute(f"{SELECT} WHERE id = ?", (order_id,)).fetchone()
        if row is None:
            raise UnknownOrderError(f"no order {order_id!r}")
        return _order(row)

    def page(self, size: int, *, after: str = "") -> list[order_pb2.Order]:
        """Return up to `size` orders, oldest first, that came `after` the order with that id.

        Raises:
            ValueError: there is no order with that id.
        """
        with self._database.connection() as db:
            rowid = 0
            if after:
                row = db.execute("SELECT rowid FROM orders WHERE id = ?", (after,)).fetchone()
                if row is None:
                    raise ValueError(after)
                rowid = row["rowid"]
            rows = db.execute(f"{SELECT} WHERE rowid > ? ORDER BY rowid LIMIT ?", (rowid, size))
            return [_order(row) for row in rows]

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        self._database.close()


def _order(row: sqlite3.Row) -> order_pb2.Order:
    fields = dict(row)
    fields["items"] = json.loads(fields["items"])
    return order_pb2.Order(**fields)

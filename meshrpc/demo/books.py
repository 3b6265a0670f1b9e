"""The audit: what the customers were told, held against the shop's own books.

The books are the services' databases, read after everything has stopped. Three things must not
be: an order somebody was told is paid that is not, a payment missing for it, and an order that
was charged twice.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Audit:
    """What the books say. The first two must be empty."""

    lost: tuple[str, ...]
    """Orders answered as paid which the books do not show as paid, or without their payment."""
    duplicates: tuple[str, ...]
    """Orders charged more than once."""
    payments: int
    """Payments taken."""

    @property
    def is_clean(self) -> bool:
        """Nothing was lost or charged twice."""
        return not self.lost and not self.duplicates


def audit(folder: Path, told_paid: Mapping[str, str]) -> Audit:
    """Read the shop's databases in `folder` against the orders that customers were told are paid."""
    charges = Counter(
        order for (order,) in _rows(folder / "payments.db", "SELECT order_id FROM payments")
    )
    orders = dict(_rows(folder / "orders.db", "SELECT id, status FROM orders"))
    return Audit(
        lost=tuple(id_ for id_ in told_paid if orders.get(id_) != "PAID" or not charges[id_]),
        duplicates=tuple(order for order, count in charges.items() if count > 1),
        payments=sum(charges.values()),
    )


def _rows(path: Path, query: str) -> list[Any]:
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()

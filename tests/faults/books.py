"""What customers of the shop were told, held against its books: the services' own databases."""

import contextlib
import sqlite3

from meshrpc.demo.books import audit


def rows(shop, file, query):
    """Return what a query says of one of the shop's databases."""
    with contextlib.closing(sqlite3.connect(shop.folder / file)) as database:
        return database.execute(query).fetchall()


def mistakes(shop, account):
    """Return what is wrong in the books: orders and payments that are lost, orders charged twice."""
    found = audit(shop.folder, account.paid)
    payments = {id_ for (id_,) in rows(shop, "payments.db", "SELECT id FROM payments")}
    lost = [*found.lost, *(id_ for id_ in account.charged if id_ not in payments)]
    return [f"lost: {id_}" for id_ in lost] + [f"charged twice: {id_}" for id_ in found.duplicates]


def paid(shop):
    """Return how many orders are paid."""
    query = "SELECT COUNT(*) FROM orders WHERE status = 'PAID'"
    ((count,),) = rows(shop, "orders.db", query)
    return count

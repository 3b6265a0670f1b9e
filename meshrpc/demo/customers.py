"""The demo's customers: they place orders at a steady rate, and try again as a shop page would.

Open loop: a new order starts every 1/rate seconds however long the others take, so a slow shop
is not spared load. The same request_id is sent again when the answer did not say how the order
ended, which is safe: it always means the same order.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from meshrpc.excerpt import excerpt

RATE = 25.0
"""Orders per second: enough for figures, little enough for a laptop."""
PATIENCE = 5.0
"""Seconds a customer waits for one answer."""
TRIES = 4
SHOWN = 100
"""Characters of the reason for which an order failed."""
_PAUSE = 0.5
"""Seconds before a customer tries again."""


@dataclass(slots=True)
class Sales:
    """What the customers were told."""

    placed: int = 0
    paid: dict[str, str] = field(default_factory=dict)
    """Order ids that were answered as paid, by the version of payment that took the money."""
    failed: Counter[str] = field(default_factory=Counter)
    """Orders that did not end paid, by why."""
    tried_again: int = 0

    @property
    def open(self) -> int:
        """Orders under way."""
        return self.placed - len(self.paid) - sum(self.failed.values())


class Customers:
    """Places orders until told to stop."""

    def __init__(self, orders: Any, messages: Any, rng: random.Random) -> None:
        """`orders` is an OrderService stub, `messages` the module of its messages."""
        self.sales = Sales()
        self._orders = orders
        self._messages = messages
        self._rng = rng
        self._under_way: set[asyncio.Task[None]] = set()

    async def shop(self) -> None:
        """Place orders at `RATE` until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            task = asyncio.create_task(self._buy(), context=contextvars.Context())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            due += 1 / RATE
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def leave(self, within: float) -> None:
        """Wait for the orders under way."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=within)
        for task in tuple(self._under_way):
            task.cancel()

    async def _buy(self) -> None:
        order = self._messages.CreateOrderRequest(
            request_id=str(uuid.uuid4()),
            customer=f"customer-{self._rng.randrange(100)}",
            currency="EUR",
            items=[
                self._messages.Item(
                    sku=f"sku-{self._rng.randrange(1000)}",
                    quantity=self._rng.randrange(1, 4),
                    unit_price=self._rng.randrange(100, 10_000),
                )
            ],
        )
        self.sales.placed += 1
        try:
            self._note(await self._place(order))
        except grpc.aio.AioRpcError as error:
            why = excerpt(error.details() or "", SHOWN)
            self.sales.failed[f"{error.code().name}: {why}"] += 1
        except asyncio.CancelledError:
            self.sales.failed["the demo ended first"] += 1
            raise

    async def _place(self, order: Any) -> Any:
        for tries in range(1, TRIES + 1):
            try:
                return await self._orders.CreateOrder(order, timeout=PATIENCE)
            except grpc.aio.AioRpcError:
                if tries == TRIES:
                    raise
                self.sales.tried_again += 1
                await asyncio.sleep(_PAUSE * tries)
        raise AssertionError("unreachable")

    def _note(self, order: Any) -> None:
        if order.status == self._messages.Order.STATUS_PAID:
            self.sales.paid[order.id] = order.paid_by
        else:
            self.sales.failed[excerpt(order.failure, SHOWN) or "not paid"] += 1

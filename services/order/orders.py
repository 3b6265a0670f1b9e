"""The order service's handlers: store the order, have it paid, answer.

An order is charged under its own id as idempotency key. So whatever goes wrong on the way to the
payment service, sending the same CreateOrder again is safe: it finds the order, charges under the
same key and gets the same payment.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, ParamSpec, TypeAlias, TypeVar

import grpc
from grpc import StatusCode

from services.order.book import Book, UnknownOrderError
from services.order.v1 import order_pb2, order_pb2_grpc
from services.payment.v1 import payment_pb2, payment_pb2_grpc

# Seconds for a payment; the mesh takes less when this service's caller has less left.
PAYMENT_TIMEOUT = 2.0
# Seconds between two looks at a watched order, which another worker may be changing.
WATCH_INTERVAL = 0.1
MAX_NAME = 128  # characters in an id or a name
MAX_ITEMS = 100
MAX_TOTAL = 2**63 - 1  # what an int64 holds
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

# Payment said no, and would say it again. After any other error nobody knows how it ended.
REFUSALS = {
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.ALREADY_EXISTS,
    StatusCode.PERMISSION_DENIED,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.OUT_OF_RANGE,
}

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
P = ParamSpec("P")
T = TypeVar("T")


class Orders(order_pb2_grpc.OrderServiceServicer):
    """Orders, kept in `book` and paid through `payment`."""

    def __init__(self, book: Book, payment: payment_pb2_grpc.PaymentServiceStub) -> None:
        self._book = book
        self._payment = payment

    async def CreateOrder(
        self, request: order_pb2.CreateOrderRequest, context: Context
    ) -> order_pb2.Order:
        if problem := _problem(request):
            await context.abort(StatusCode.INVALID_ARGUMENT, problem)
        order = await _answer(context, self._book.place, request, total=_total(request))
        for field in ("customer", "items", "currency"):
            if getattr(order, field) != getattr(request, field):
                await context.abort(
                    StatusCode.ALREADY_EXISTS,
                    f"request_id {request.request_id!r} stands for order {order.id}, "
                    f"which has another {field}",
                )
        if order.status != order_pb2.Order.STATUS_PENDING:
            return order

        charge = payment_pb2.ChargeRequest(
            idempotency_key=order.id,
            order_id=order.id,
            amount=order.total,
            currency=order.currency,
        )
        try:
            payment = await self._payment.Charge(charge, timeout=PAYMENT_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if error.code() not in REFUSALS:
                await _leave_pending(context, order, error)
            failure = f"{error.code().name}: {error.details()}"
            return await _answer(context, self._book.failed, order.id, failure=failure)
        return await _answer(
            context,
            self._book.paid,
            order.id,
            payment_id=payment.id,
            paid_by=payment.processed_by,
        )

    async def GetOrder(
        self, request: order_pb2.GetOrderRequest, context: Context
    ) -> order_pb2.Order:
        return await _answer(context, self._book.get, request.order_id)

    async def ListOrders(
        self, request: order_pb2.ListOrdersRequest, context: Context
    ) -> order_pb2.ListOrdersResponse:
        size = request.page_size or DEFAULT_PAGE_SIZE
        if size > MAX_PAGE_SIZE:
            await context.abort(
                StatusCode.INVALID_ARGUMENT, f"page_size: must be 1 to {MAX_PAGE_SIZE}, not {size}"
            )
        try:
            # One more than asked for tells whether there is another page.
            orders = await _answer(context, self._book.page, size + 1, after=request.page_token)
        except ValueError:
            await context.abort(
                StatusCode.INVALID_ARGUMENT,
                f"page_token: {request.page_token!r} is not the next_page_token of an answer",
            )
        response = order_pb2.ListOrdersResponse(orders=orders[:size])
        if len(orders) > size:
            response.next_page_token = response.orders[-1].id
        return response

    async def WatchOrder(
        self, request: order_pb2.WatchOrderRequest, context: Context
    ) -> AsyncIterator[order_pb2.Order]:
        order = await _answer(context, self._book.get, request.order_id)
        yield order
        while order.status == order_pb2.Order.STATUS_PENDING:
            await asyncio.sleep(WATCH_INTERVAL)
            before, order = order, await _answer(context, self._book.get, request.order_id)
            if order != before:
                yield order


async def _leave_pending(
    context: Context, order: order_pb2.Order, error: grpc.aio.AioRpcError
) -> NoReturn:
    """Fail the call, not the order: the same request, sent again, finishes it."""
    details = (
        f"payment of order {order.id} is open: {error.code().name}: {error.details()}; "
        "the same request may be sent again"
    )
    if error.code() is StatusCode.RESOURCE_EXHAUSTED:
        when = [pair for pair in error.trailing_metadata() or () if pair[0] == "retry-after"]
        await context.abort(StatusCode.RESOURCE_EXHAUSTED, details, tuple(when))
    await context.abort(StatusCode.UNAVAILABLE, details)


def _total(request: order_pb2.CreateOrderRequest) -> int:
    return sum(item.quantity * item.unit_price for item in request.items)


def _problem(request: order_pb2.CreateOrderRequest) -> str | None:
    """What is wrong with the request, naming the field; None if nothing is."""
    for field in ("request_id", "customer"):
        if not 1 <= len(getattr(request, field)) <= MAX_NAME:
            return f"{field}: must have 1 to {MAX_NAME} characters"
    if not re.fullmatch("[A-Z]{3}", request.currency):
        return f"currency: must be three upper-case letters, not {request.currency!r}"
    if not 1 <= len(request.items) <= MAX_ITEMS:
        return f"items: must be 1 to {MAX_ITEMS}, not {len(request.items)}"
    for number, item in enumerate(request.items):
        if not 1 <= len(item.sku) <= MAX_NAME:
            return f"items[{number}].sku: must have 1 to {MAX_NAME} characters"
        if item.quantity == 0:
            return f"items[{number}].quantity: must be above 0"
        if item.unit_price <= 0:
            return f"items[{number}].unit_price: must be above 0, not {item.unit_price}"
    if _total(request) > MAX_TOTAL:
        return f"items: their total must be {MAX_TOTAL} at most"
    return None


async def _answer(context: Context, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Ask the book, in a thread, and turn what it raises into a status."""
    try:
        return await asyncio.to_thread(ask, *args, **kwargs)
    except UnknownOrderError as error:
        await context.abort(StatusCode.NOT_FOUND, str(error))
    except (OSError, sqlite3.OperationalError) as error:
        await context.abort(StatusCode.UNAVAILABLE, f"the book cannot be used now: {error}")

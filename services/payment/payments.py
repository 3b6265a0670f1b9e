"""The payment service's handlers: check the request, ask the ledger, answer."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar

import grpc
from grpc import StatusCode

from services.payment.ledger import Ledger, UnknownPaymentError
from services.payment.v1 import payment_pb2, payment_pb2_grpc

MAX_NAME = 128  # characters in a key or an id
CENTS_PER_POINT = 100

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
P = ParamSpec("P")
T = TypeVar("T")


class Payments(payment_pb2_grpc.PaymentServiceServicer):
    """Charges and refunds, as `version` does it: from v2 on, charges earn loyalty points."""

    def __init__(self, ledger: Ledger, *, version: str) -> None:
        self._ledger = ledger
        self._version = version

    async def Charge(
        self, request: payment_pb2.ChargeRequest, context: Context
    ) -> payment_pb2.Payment:
        if problem := _problem(request):
            await context.abort(StatusCode.INVALID_ARGUMENT, problem)
        points = 0 if self._version == "v1" else request.amount // CENTS_PER_POINT
        payment = await _answer(
            context,
            self._ledger.charge,
            request,
            processed_by=self._version,
            loyalty_points=points,
        )
        for field in ("order_id", "amount", "currency"):
            if getattr(payment, field) != getattr(request, field):
                await context.abort(
                    StatusCode.ALREADY_EXISTS,
                    f"idempotency_key {request.idempotency_key!r} stands for payment {payment.id}, "
                    f"which has another {field}",
                )
        return payment

    async def Refund(
        self, request: payment_pb2.RefundRequest, context: Context
    ) -> payment_pb2.Payment:
        return await _answer(context, self._ledger.refund, request.payment_id)

    async def GetPayment(
        self, request: payment_pb2.GetPaymentRequest, context: Context
    ) -> payment_pb2.Payment:
        return await _answer(context, self._ledger.get, request.payment_id)


def _problem(request: payment_pb2.ChargeRequest) -> str | None:
    """What is wrong with the request, naming the field; None if nothing is."""
    for field in ("idempotency_key", "order_id"):
        if not 1 <= len(getattr(request, field)) <= MAX_NAME:
            return f"{field}: must have 1 to {MAX_NAME} characters"
    if request.amount <= 0:
        return f"amount: must be above 0, not {request.amount}"
    if not re.fullmatch("[A-Z]{3}", request.currency):
        return f"currency: must be three upper-case letters, not {request.currency!r}"
    return None


async def _answer(context: Context, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Ask the ledger, in a thread, and turn what it raises into a status."""
    try:
        return await asyncio.to_thread(ask, *args, **kwargs)
    except UnknownPaymentError as error:
        await context.abort(StatusCode.NOT_FOUND, str(error))
    except (OSError, sqlite3.OperationalError) as error:
        await context.abort(StatusCode.UNAVAILABLE, f"the ledger cannot be used now: {error}")

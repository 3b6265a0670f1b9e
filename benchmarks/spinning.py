"""A handler that costs CPU and nothing else: so much of its own thread's, however long that takes.

By the thread's clock, not by the wall's: what other programs take of the core then makes calls
slower, as it would, instead of making their work less.
"""

from __future__ import annotations

import time
from typing import Any

from services.payment.v1 import payment_pb2, payment_pb2_grpc

REQUEST = payment_pb2.ChargeRequest(
    idempotency_key="order-1a2b3c4d", order_id="order-1a2b3c4d", amount=1999, currency="EUR"
)


class Spinning(payment_pb2_grpc.PaymentServiceServicer):
    """Answers `Charge` after `cpu` seconds of work."""

    _payment = payment_pb2.Payment(
        id="payment-1a2b3c4d",
        order_id=REQUEST.order_id,
        amount=REQUEST.amount,
        currency=REQUEST.currency,
        status=payment_pb2.Payment.STATUS_CHARGED,
        processed_by="v1",
    )

    def __init__(self, cpu: float) -> None:
        self.cpu = cpu
        self.runs = 0
        """How often it ran, for whom it may concern or not."""

    async def Charge(self, request: payment_pb2.ChargeRequest, context: Any) -> payment_pb2.Payment:  # noqa: ARG002
        self.runs += 1
        end = time.thread_time() + self.cpu
        while time.thread_time() < end:
            pass
        return self._payment

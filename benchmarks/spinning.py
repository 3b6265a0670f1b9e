"""A handler that costs CPU and nothing else: so much of its own thread's, however long that takes.

By the thread's clock, not by the wall's: what other programs take of the core then makes calls
slower, as it would, instead of making their work less.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.overhead import Payments
from services.payment.v1 import payment_pb2


class Spinning(Payments):
    """Answers `Charge` after `cpu` seconds of work."""

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

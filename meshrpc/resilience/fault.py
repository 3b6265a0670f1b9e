"""Fault injection: calls that are delayed or refused on purpose, to see what becomes of them.

As in Envoy and gRFC A33, delay and abort are drawn independently of each other, and a cap bounds
how many calls have a fault at a time: an experiment must not become an outage. A fault is thrown
once per call, before anything is sent.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import grpc

from meshrpc.policy.model import Fault


@dataclass(frozen=True, slots=True)
class Injection:
    """What is done to one call: it waits `delay` seconds, then fails with `abort` or goes on."""

    delay: float
    abort: grpc.StatusCode | None


class FaultInjection:
    """The faults of one caller's calls to one service."""

    def __init__(self) -> None:
        self.active = 0
        """Calls that have a fault just now."""

    def __repr__(self) -> str:
        return f"<FaultInjection active={self.active}>"

    def draw(self, fault: Fault, rng: random.Random) -> Injection | None:
        """Return what is to be done to a call, None for nothing; `end` follows what is something."""
        delay = fault.delay if rng.random() < fault.delay_percent else 0.0
        abort = fault.abort_code if rng.random() < fault.abort_percent else None
        if not delay and abort is None:
            return None
        if fault.max_active is not None and self.active >= fault.max_active:
            return None
        self.active += 1
        return Injection(delay, abort)

    def end(self) -> None:
        """Count out a call whose fault is over: it goes on, or has failed."""
        self.active -= 1

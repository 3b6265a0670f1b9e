"""Why control is away, for people: said in the log when it goes, once a minute, and when it is back."""

from __future__ import annotations

import logging

import grpc

from meshrpc.clock import Clock
from meshrpc.outage import Outage

CONNECT_WITHIN = 5.0
"""Seconds until an address that accepts a connection but says nothing counts as failed."""

_log = logging.getLogger(__name__)


class Absence:
    """Whether control is away just now, and why."""

    def __init__(self, clock: Clock) -> None:
        self.why: str | None = None
        """What the last attempt to reach it failed of; None: it is there, or none has failed."""
        self._clock = clock
        self._outage = Outage()

    def __repr__(self) -> str:
        return f"<Absence {self.why or 'none'}>"

    def begin(self, address: str, error: BaseException) -> None:
        """Note that it cannot be reached."""
        self.why = unreachable(address, error)
        if self._outage.goes_on(self._clock.now()):
            _log.warning("%s (meanwhile all stays as last known)", self.why)

    def end(self, address: str) -> None:
        """Note that it answers."""
        self.why = None
        if self._outage.end():
            _log.info("connected to the control service at %s again", address)


def unreachable(address: str, error: BaseException) -> str:
    """Say that control at `address` cannot be reached, why, and what to do about it."""
    cause = str(error) or type(error).__name__
    if isinstance(error, grpc.aio.AioRpcError):
        cause = error.details() or error.code().name
        if cause.startswith("failed to connect"):
            cause = cause.rpartition(": ")[2]  # the rest repeats the address
    elif isinstance(error, TimeoutError):
        cause = f"no answer within {CONNECT_WITHIN:.0f} s"
    return f"cannot reach the control service at {address}: {cause}; start it with: meshrpc control"

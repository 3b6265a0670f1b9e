"""What scripted instances were asked: every call, in the order of arrival."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from meshrpc.wire import Metadata

RECEIVED_WITHIN = 5.0
"""Real seconds that `received` waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedCall:
    """A call as it arrived at an instance."""

    method: str
    """Its name, as `Charge`."""
    instance: str
    """The id of the instance, as `payment-1`."""
    caller: str
    """The calling service by its own word."""
    metadata: Metadata
    time_remaining: float | None
    """Seconds until the caller's deadline, on arrival; None without one."""
    requests: list[Any] = field(default_factory=list)
    """All requests; those of a stream as they come."""

    @property
    def request(self) -> Any:
        """The request, of a stream the first one."""
        return self.requests[0]


class CallLog:
    """The calls of one scripted service, in the order in which they arrived."""

    def __init__(self) -> None:
        self._calls: list[ReceivedCall] = []
        self._arrived = asyncio.Event()

    def add(self, call: ReceivedCall) -> None:
        """Take note of a call."""
        self._calls.append(call)
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    def calls(self, method: str | None, instance: str | None) -> list[ReceivedCall]:
        """Return the calls of one method and instance; None: of all."""
        return [
            call
            for call in self._calls
            if method in (None, call.method) and instance in (None, call.instance)
        ]

    async def received(
        self, count: int, method: str | None, instance: str | None
    ) -> list[ReceivedCall]:
        """Return the calls once there are `count`; TimeoutError after 5 real seconds."""
        try:
            async with asyncio.timeout(RECEIVED_WITHIN):
                while len(calls := self.calls(method, instance)) < count:
                    await self._arrived.wait()
        except TimeoutError:
            raise TimeoutError(
                f"{len(self.calls(method, instance))} of {count} calls arrived within "
                f"{RECEIVED_WITHIN:g} s"
            ) from None
        return calls

"""Shares of limits over the fleet, as they travel on the control stream, from the process's end.

While the stream stands the process says once a second what it wants and uses, sooner when what is
wanted changes a lot, and at once when it has been given other shares: control waits for that before
it gives what was freed to others. Without a stream everything stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from meshrpc.clock import Clock
from meshrpc.limits.shares import Claim, Share
from meshrpc.v1 import control_pb2

LOOK_EVERY: Final = 0.25
"""Seconds between two looks at what is wanted."""
SAY_EVERY: Final = 1.0
"""Seconds between two reports at most; they are also how control knows that a share is in use."""


class FleetLimits(Protocol):
    """The limits over the fleet of a process that serves."""

    @property
    def has_fleet_limits(self) -> bool:
        """Whether there are any."""
        ...

    def look(self) -> bool:
        """Work out what is wanted; return whether that has changed a lot."""
        ...

    def claims(self) -> tuple[Claim, ...]:
        """Return what is wanted and used of all of them."""
        ...

    def take_shares(self, shares: Iterable[Share]) -> None:
        """Use these from now on."""
        ...


class ShareReports:
    """What is said of shares on one stream.

    Args:
        limits: what it is about.
        send: puts a report on the stream; must not block.
        clock: monotonic time.
    """

    def __init__(
        self,
        limits: FleetLimits,
        send: Callable[[control_pb2.QuotaReport], None],
        *,
        clock: Clock,
    ) -> None:
        self._limits = limits
        self._send = send
        self._clock = clock
        self._said_at: float | None = None
        self._said_nothing = True
        self._number = 0

    def __repr__(self) -> str:
        return f"<ShareReports grants={self._number}>"

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            self.look()
            await self._clock.sleep(LOOK_EVERY)

    def look(self) -> None:
        """Report if it is time to."""
        has_changed = self._limits.look()
        said = self._said_at
        if said is None or has_changed or self._clock.now() - said >= SAY_EVERY - LOOK_EVERY / 2:
            self._report()

    def take(self, grant: control_pb2.QuotaGrant) -> None:
        """Use what control gives, and say so."""
        self._limits.take_shares(
            Share(one.limit, one.key, None if one.forget else one.share) for one in grant.shares
        )
        self._number = grant.number
        self._report()

    def _report(self) -> None:
        claims = self._limits.claims()
        if not claims and self._said_nothing:
            return
        self._said_nothing = not claims  # the last claim given up is news, once
        self._said_at = self._clock.now()
        report = control_pb2.QuotaReport(grant=self._number)
        for claim in claims:
            report.claims.add(
                limit=claim.limit,
                key=claim.key,
                demand=claim.demand,
                share=claim.share,
                is_granted=claim.is_granted,
            )
        self._send(report)

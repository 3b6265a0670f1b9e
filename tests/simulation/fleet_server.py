"""A server of the fleet: a queue whose end is known when a call joins it.

Calls wait in one queue and `slots` of them are worked on at a time, each for a random time, as in
`server.py`. Nobody leaves this queue and the server never breaks, so that when a call is done is known
at once, and no event is needed for it. It reports its load as a server of the mesh does.
"""

from __future__ import annotations

import heapq
import random
from math import fsum

from meshrpc.load_report import LoadReport

_SHAPE = 4.0
"""Of the gamma distribution of service times: standard deviation = mean / 2."""

_REPORT_WINDOW = 1.0
"""Seconds over which a server measures what it reports."""


class Server:
    """One process: calls wait in one queue, `slots` of them are worked on at a time."""

    __slots__ = (
        "_counted",
        "_free",
        "_report",
        "_rng",
        "_since",
        "_work",
        "answered",
        "arrived",
        "id",
        "service_time",
        "slots",
        "slowness",
        "zone",
    )

    def __init__(
        self,
        id_: str,
        rng: random.Random,
        service_time: float,
        slots: int = 1,
        zone: str | None = None,
        *,
        since: float = 0.0,
    ) -> None:
        """Start at `since`; `service_time` is the mean of its seconds of work per call."""
        self.id = id_
        self.zone = zone
        self.service_time = service_time
        self.slots = slots
        self.slowness = 1.0
        """What the work of calls that come from now on is multiplied with."""
        self.arrived = 0
        self.answered = 0
        """Calls whose answers have arrived; whoever takes them counts."""
        self._rng = rng
        self._free = [0.0] * slots  # a heap: when each slot is done with what it has
        self._work = 0.0  # seconds taken in since the last report, and what was left over then
        self._counted = 0
        self._since = since
        self._report = LoadReport(0.0, 0.0)

    def __repr__(self) -> str:
        return f"<Server {self.id} arrived={self.arrived}>"

    def serve(self, now: float) -> float:
        """Take in a call that arrives at `now`; return when its answer goes out."""
        self.arrived += 1
        free = self._free[0]
        work = self._rng.gammavariate(_SHAPE, self.service_time * self.slowness / _SHAPE)
        end = (free if free > now else now) + work  # noqa: FURB136 - half the time of max()
        heapq.heapreplace(self._free, end)
        self._work += work
        return end

    def report(self, now: float) -> LoadReport:
        """Return what it says of itself: the part of its time that it works, and calls per second."""
        seconds = now - self._since
        if seconds >= _REPORT_WINDOW:
            left = fsum(free - now for free in self._free if free > now)
            done = self.answered - self._counted
            # Work taken in and not done by now belongs to the next report.
            self._report = LoadReport((self._work - left) / (seconds * self.slots), done / seconds)
            self._work, self._counted, self._since = left, self.answered, now
        return self._report

"""The sign of life that a worker gives once a second, with the load of its event loop.

It comes from that very loop: one that is blocked is silent, however well its process may be.
"""

from __future__ import annotations

from collections.abc import Callable

from meshrpc.telemetry.loop_load import WINDOW, LoopLoad, join
from meshrpc.workers.places import Load

EVERY = 1.0
"""Seconds between two signs."""


class Heartbeat:
    """Calls `report` with the load of the running loop, at once and then every second.

    It ends with the loop, or with `stop`.
    """

    def __init__(self, report: Callable[[Load], None]) -> None:
        self._report = report
        self._next = 0.0
        self._loop_load: LoopLoad = join(self._on_beat)
        self._on_beat(self._loop_load.now())

    def __repr__(self) -> str:
        return f"<Heartbeat {self._loop_load!r}>"

    def stop(self) -> None:
        """End it, in the same loop."""
        self._loop_load.leave(self._on_beat)

    def _on_beat(self, now: float) -> None:
        if now < self._next:
            return
        self._next = now + EVERY
        usage = self._loop_load.over(WINDOW)
        self._report(Load(0.0, 0.0) if usage is None else Load(usage.busy, usage.queue_time))

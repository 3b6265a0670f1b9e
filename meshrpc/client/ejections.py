"""Ejections: which endpoints of a destination get no calls for a while, carried out.

What is decided, `resilience.outlier` decides. Here is what it needs done: time to pass, one real
call to be the probe, and a line in the log each time.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Callable, Iterable

from meshrpc.client.endpoint import Endpoint
from meshrpc.client.probes import Probes
from meshrpc.clock import Clock
from meshrpc.policy import model
from meshrpc.resilience.health import Admission
from meshrpc.resilience.outlier import OutlierDetector

_log = logging.getLogger("meshrpc.client")


class Ejections:
    """The outlier detector of one destination, with its timer and its probes.

    `on_change` is called when endpoints may have been ejected, or come due for their probe.
    """

    def __init__(
        self,
        policy: model.Outlier,
        clock: Clock,
        rng: random.Random,
        on_change: Callable[[], None],
    ) -> None:
        self.detector = OutlierDetector(policy, rng)
        self._clock = clock
        self._on_change = on_change
        self._probes = Probes()
        self._timer: asyncio.Task[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Ejections {self.detector!r} probes={len(self._probes)}>"

    def configure(self, policy: model.Outlier, now: float) -> None:
        """Go by other rules from now on; they may end ejections earlier."""
        self.detector.configure(policy, now)
        self._set_timer()

    async def close(self) -> None:
        """End the timer."""
        self._closed = True
        self._on_change = _nothing  # it knows the destination, which knows this
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.gather(self._timer, return_exceptions=True)

    def offer(self, active: Iterable[Endpoint], now: float) -> None:
        """Offer those in probation among the endpoints to the calls that come."""
        due = (each for each in active if each.health.admission is Admission.PROBATION)
        self._probes.offer(due, now)

    def has_probes(self) -> bool:
        """Return whether any endpoint waits for a probe."""
        return len(self._probes) > 0

    def take_probe(
        self, now: float, fits: Callable[[Endpoint], bool], *, repeatable: bool
    ) -> Endpoint | None:
        """Return an endpoint that the next attempt is to probe; see `Probes.take`."""
        endpoint = self._probes.take(now, fits, repeatable=repeatable)
        if endpoint is not None:
            self.detector.begin_probe(endpoint.health, now)
            self._set_timer()
        return endpoint

    def admission_changed(self, endpoint: Endpoint, now: float) -> None:
        """Carry out that an endpoint was ejected, or is back, and tell people."""
        health, id_, service = endpoint.health, endpoint.id, endpoint.instance.service
        if health.admission is Admission.ADMITTED:
            _log.info("instance %s of %s is back", id_, service)
        elif health.ejected_until is not None:
            lasts, cause = health.ejected_until - now, health.cause
            _log.warning("instance %s of %s is ejected for %.1f s: %s", id_, service, lasts, cause)
        self._on_change()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed:
            self._timer = asyncio.create_task(self._advance(), context=contextvars.Context())

    async def _advance(self) -> None:
        while (at := self.detector.next_change()) is not None:
            await self._clock.sleep(at - self._clock.now())
            if self.detector.advance(self._clock.now()):
                self._on_change()


def _nothing() -> None:
    pass

"""Probes: endpoints that were ejected, have served their time, and wait for one real call.

A probe may fail, so it should be a call that its user would not see fail: one that may be
repeated. Where no such call comes, any will do after a moment, or an endpoint of a service without
such methods would never come back. A probe that came to nothing, because its user cancelled it, is
followed by another only after a moment: where one hangs, every call of a caller would hang otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshrpc.client.endpoint import Endpoint

PATIENCE = 1.0
"""Seconds that an endpoint waits for a call that may be repeated, and from one probe to the next."""


class Probes:
    """Who waits for a probe, and from when on it may have one."""

    def __init__(self) -> None:
        self._due: dict[Endpoint, float] = {}
        self._asked: dict[Endpoint, float] = {}
        """When those were probed that may be offered again too soon."""

    def __len__(self) -> int:
        return len(self._due)

    def offer(self, waiting: Iterable[Endpoint], now: float) -> None:
        """Take note of who waits; those that did already go on waiting."""
        self._asked = {each: at for each, at in self._asked.items() if now < at + PATIENCE}
        self._due = {each: self._due.get(each, self._next(each, now)) for each in waiting}

    def take(
        self, now: float, fits: Callable[[Endpoint], bool], *, repeatable: bool
    ) -> Endpoint | None:
        """Return the endpoint that a call is to probe, which then waits no more; None: no one.

        Args:
            now: the time.
            fits: whether the call may go to an endpoint.
            repeatable: whether the call may be sent again if the probe fails.
        """
        for endpoint, due in self._due.items():
            at = due if repeatable else due + PATIENCE
            if now >= at and endpoint.is_ready() and fits(endpoint):
                del self._due[endpoint]
                self._asked[endpoint] = now
                return endpoint
        return None

    def _next(self, endpoint: Endpoint, now: float) -> float:
        asked = self._asked.get(endpoint)
        return now if asked is None else asked + PATIENCE

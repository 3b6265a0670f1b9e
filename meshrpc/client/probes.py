"""Probes: endpoints that were ejected, have served their time, and wait for one real call.

A probe may fail, so it should be a call that its user would not see fail: one that may be
repeated. Where no such call comes, any will do after a moment, or an endpoint of a service without
such methods would never come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshrpc.client.endpoint import Endpoint

PATIENCE = 1.0
"""Seconds that an endpoint waits for a call that may be repeated."""


class Probes:
    """Who waits for a probe, and since when."""

    def __init__(self) -> None:
        self._since: dict[Endpoint, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def offer(self, waiting: Iterable[Endpoint], now: float) -> None:
        """Take note of who waits; those that did already go on waiting."""
        self._since = {endpoint: self._since.get(endpoint, now) for endpoint in waiting}

    def take(
        self, now: float, fits: Callable[[Endpoint], bool], *, repeatable: bool
    ) -> Endpoint | None:
        """Return the endpoint that a call is to probe, which then waits no more; None: no one.

        Args:
            now: the time.
            fits: whether the call may go to an endpoint.
            repeatable: whether the call may be sent again if the probe fails.
        """
        for endpoint, since in self._since.items():
            if (repeatable or now >= since + PATIENCE) and endpoint.is_ready() and fits(endpoint):
                del self._since[endpoint]
                return endpoint
        return None

"""Calls as their callers saw them: rate, errors and latency per instance over a short window.

Pure: spans go in, figures come out. A failed attempt that was retried counts as an error of the
instance it went to, although nobody but the caller's span noticed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc

from meshrpc.demo.spans import Span

WINDOW = 5.0
"""Seconds that rates and latencies look back."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the live view shows of one instance, or of a whole service."""

    calls_per_second: float
    calls: int
    errors: int
    """Since the beginning, failed attempts included."""
    p50: float | None
    """Seconds; None without a call in the window."""
    p99: float | None


@dataclass(slots=True)
class _Counts:
    calls: int = 0
    errors: int = 0
    recent: deque[tuple[float, float]] = field(default_factory=deque)
    """(when, latency) of the calls within the window."""


class Traffic:
    """Counts of every (service, instance) that was called."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], _Counts] = {}

    def add(self, span: Span, now: float) -> None:
        """Take in a caller's span; others are left aside."""
        if not span.is_client or not span.callee:
            return
        for attempt in span.attempts:
            counts = self._counts.setdefault((span.callee, attempt.instance), _Counts())
            counts.calls += 1
            counts.errors += 1
        if not span.callee_instance:
            return
        counts = self._counts.setdefault((span.callee, span.callee_instance), _Counts())
        counts.calls += 1
        counts.errors += span.code is not grpc.StatusCode.OK
        counts.recent.append((now, span.duration))

    def instances(self, service: str) -> tuple[str, ...]:
        """Return every instance of `service` that was called so far."""
        return tuple(instance for called, instance in self._counts if called == service)

    def instance(self, service: str, instance: str, now: float) -> Figures:
        """Return the figures of one instance."""
        return _figures([self._counts.get((service, instance), _Counts())], now)

    def service(self, service: str, now: float) -> Figures:
        """Return the figures of all of a service's instances together."""
        return _figures([c for (called, _), c in self._counts.items() if called == service], now)


def _figures(counts: Iterable[_Counts], now: float) -> Figures:
    counts = list(counts)
    latencies: list[float] = []
    for each in counts:
        while each.recent and each.recent[0][0] < now - WINDOW:
            each.recent.popleft()
        latencies.extend(latency for _, latency in each.recent)
    latencies.sort()
    return Figures(
        calls_per_second=len(latencies) / WINDOW,
        calls=sum(each.calls for each in counts),
        errors=sum(each.errors for each in counts),
        p50=percentile(latencies, 0.50),
        p99=percentile(latencies, 0.99),
    )


def percentile(ordered: list[float], share: float) -> float | None:
    """Return the value that `share` of the ordered values do not exceed (nearest rank)."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

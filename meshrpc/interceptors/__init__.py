"""The concerns of the server side, one per file, and the one place that orders them."""

from __future__ import annotations

from collections.abc import Iterable

from meshrpc.interceptors.arrival import DeadlineInterceptor, TargetInterceptor
from meshrpc.interceptors.compose import ServerInterceptor
from meshrpc.interceptors.concurrency import ConcurrencyInterceptor
from meshrpc.interceptors.load_report import LoadReportInterceptor
from meshrpc.interceptors.rate_limit import RateLimitInterceptor
from meshrpc.interceptors.tracing import TracingInterceptor

SERVER_ORDER: tuple[type[ServerInterceptor], ...] = (
    # Outermost: refusals tell the load as well. They are the answers of those who are busiest.
    LoadReportInterceptor,
    # Before all that costs something: nobody waits for the answer, so nothing may be spent on it.
    DeadlineInterceptor,
    # Before anything counts: a call for another instance is none of ours.
    TargetInterceptor,
    # After the two above, whose refusals must not use up a caller's tokens; before the span and
    # before the request is decoded, so that refusing stays cheaper than serving.
    RateLimitInterceptor,
    # After the limits, which cost less than a place; before the span, for the same reason as they.
    ConcurrencyInterceptor,
    # Next to the handler: its span is what the handler's own calls and spans hang under.
    TracingInterceptor,
)
"""From the outside in. Concerns of other classes come after these, in the order given."""


def in_order(interceptors: Iterable[ServerInterceptor]) -> tuple[ServerInterceptor, ...]:
    """Return the concerns in the order in which they belong round a handler."""

    def place(interceptor: ServerInterceptor) -> int:
        for index, kind in enumerate(SERVER_ORDER):
            if isinstance(interceptor, kind):
                return index
        return len(SERVER_ORDER)

    return tuple(sorted(interceptors, key=place))

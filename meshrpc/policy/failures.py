"""The fields that say what a caller does about failures.

Another attempt, and how many of them; whom to leave alone for a while; what not to send at all.
The numbers are carried out by `resilience`, which says where each algorithm is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from meshrpc.policy.model import (
    Backoff,
    CircuitBreaker,
    Hedge,
    Outlier,
    Retry,
    RetryBudget,
    SlowStart,
    Throttle,
)
from meshrpc.policy.names import code, exact_method
from meshrpc.policy.quantities import duration, integer, number, percentage
from meshrpc.policy.schema import Place, Reader, checked, list_of, record

_LEAST_MULTIPLIER = 1.1
"""With less, hardly more calls would be let out than were accepted before: a service that is back
would take minutes to get all of them."""

_MOST_REJECTED = 0.95


def _backoff_grows(place: Place, backoff: Backoff) -> None:
    if backoff.base > backoff.max:
        at = place["max" if place["base"].tree is None else "base"]
        at.refuse(f"base ({backoff.base:g}s) is at most max ({backoff.max:g}s)")


def _codes(place: Place) -> frozenset[grpc.StatusCode]:
    return frozenset(list_of(code)(place))


def _non_idempotent(place: Place) -> frozenset[str]:
    return frozenset(list_of(exact_method)(place))


retry = record(
    Retry,
    {
        "attempts": integer(1, 5),
        "codes": _codes,
        "per_attempt_timeout": duration,
        "backoff": checked(record(Backoff, {"base": duration, "max": duration}), _backoff_grows),
        "non_idempotent": _non_idempotent,
    },
)


def _percentile(place: Place) -> float:
    value = percentage(place)
    if not 0 < value < 1:
        raise place.refuse("a percentile is more than 0% and less than 100%")
    return value


def _ejection_grows(place: Place, outlier: Outlier) -> None:
    if outlier.base_ejection > outlier.max_ejection:
        at = place["max_ejection" if place["base_ejection"].tree is None else "base_ejection"]
        at.refuse(
            f"base_ejection ({outlier.base_ejection:g}s) is at most "
            f"max_ejection ({outlier.max_ejection:g}s)"
        )


_outlier = checked(
    record(
        Outlier,
        {
            "consecutive_failures": integer(1, 1000),
            "success_rate_below": percentage,
            "base_ejection": duration,
            "max_ejection": duration,
            "max_ejected": percentage,
        },
    ),
    _ejection_grows,
)


def _max_rejected(place: Place) -> float:
    value = percentage(place)
    if value > _MOST_REJECTED:
        raise place.refuse("at most 95%: some calls must find out when the service is back")
    return value


FAILURE_FIELDS: Mapping[str, Reader[Any]] = {
    "retry": retry,
    "retry_budget": record(
        RetryBudget, {"ratio": percentage, "min_per_second": number(0, 1_000_000)}
    ),
    "hedge": record(Hedge, {"percentile": _percentile, "max_extra": percentage}),
    "outlier": _outlier,
    "slow_start": record(SlowStart, {"window": duration}),
    "throttle": record(
        Throttle,
        {
            "multiplier": number(_LEAST_MULTIPLIER, 1000),
            "window": duration,
            "max_rejected": _max_rejected,
        },
    ),
    "circuit_breaker": record(CircuitBreaker, {"max_requests": integer(1, 1_000_000_000)}),
}

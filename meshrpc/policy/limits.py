"""The fields of what a service lets in: its rate limits, and how many handlers run at a time.

They are carried out by `meshrpc.limits`, in front of the service's handlers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from meshrpc.policy.model import (
    Concurrency,
    ConcurrencyMode,
    LimitMode,
    RateLimit,
    RateOverride,
    ShareMode,
)
from meshrpc.policy.names import bucket_key, exact_method, metadata_value, name, service
from meshrpc.policy.quantities import integer, rate
from meshrpc.policy.schema import (
    Place,
    Reader,
    checked,
    list_of,
    mapping_of,
    one_of,
    record,
    word,
)

_burst = integer(1, 1_000_000_000)


# Rate limits.


_named_values = mapping_of(bucket_key, lambda place: str(place.tree))


def _value_of(key: str) -> Reader[str]:
    return {"caller": service, "method": exact_method}.get(key, metadata_value)


def _values(place: Place) -> tuple[tuple[str, str], ...]:
    """Read which bucket an override is of: the value of each key of its limit."""
    keys = _named_values(place)
    return tuple((key, place[key].read(_value_of(key))) for key in sorted(keys))


def _each_override_names_one_bucket(place: Place, limit: RateLimit) -> None:
    seen: set[tuple[tuple[str, str], ...]] = set()
    for each, override in zip(place["overrides"], limit.overrides, strict=True):
        values = each["values"]
        if {key for key, _ in override.values} != set(limit.key):
            listed = ", ".join(limit.key)
            rule = f"expected a value for each key of the limit: {listed}"
            raise values.refuse(rule if listed else "a limit without key has only one bucket")
        if override.values in seen:
            raise values.refuse("this is listed twice")
        seen.add(override.values)
    if len(seen) > limit.max_keys:
        place["max_keys"].refuse(f"there are {len(seen)} overrides, each of which is a key")


_override = record(
    RateOverride,
    {"values": _values, "rate": rate, "burst": _burst},
    required=("values", "rate", "burst"),
)

_rate_limit = checked(
    record(
        RateLimit,
        {
            "name": name,
            "key": list_of(bucket_key),
            "rate": rate,
            "burst": _burst,
            "overrides": list_of(_override),
            "share": word({mode.value: mode for mode in ShareMode}),
            "mode": word({mode.value: mode for mode in LimitMode}),
            "max_keys": integer(1, 10_000_000),
        },
        required=("name", "rate", "burst"),
    ),
    _each_override_names_one_bucket,
)


# Handlers at a time.


def _concurrency(
    mode: ConcurrencyMode, fields: Mapping[str, Reader[Any]], required: tuple[str, ...] = ()
) -> Reader[Concurrency]:
    return record(partial(_one_concurrency, mode), fields, required)


def _one_concurrency(mode: ConcurrencyMode, **limit: int) -> Concurrency:
    (said,) = limit.values() or (Concurrency().limit,)
    return Concurrency(mode, said)


_handlers = integer(1, 1_000_000)

LIMIT_FIELDS: Mapping[str, Reader[Any]] = {
    "rate_limits": list_of(_rate_limit, distinct=lambda limit: limit["name"]),
    "concurrency": one_of(
        {
            "adaptive": _concurrency(ConcurrencyMode.ADAPTIVE, {"max": _handlers}),
            "fixed": _concurrency(ConcurrencyMode.FIXED, {"limit": _handlers}, ("limit",)),
            "off": _concurrency(ConcurrencyMode.OFF, {}),
        }
    ),
}

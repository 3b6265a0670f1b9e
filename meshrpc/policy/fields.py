"""The fields of a policy document: which there are, and what each may say.

A field is carried out by this release, or only accepted: typed and checked like any other, so
that a document is right or wrong today and not on the day of an upgrade. Something that would
otherwise be done wrongly (a balancer that this release lacks) is refused. What the fields mean is
told to users in docs/policy.md; defaults stand in `model`. Fields about failures are in
`failures`, those of routes in `routes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshrpc.policy.failures import FAILURE_FIELDS
from meshrpc.policy.model import Balancer, BalancerKind, LimitMode, RateLimit, ShareMode
from meshrpc.policy.names import any_service, bucket_key, label, name
from meshrpc.policy.quantities import duration, integer, percentage, rate
from meshrpc.policy.routes import routes, stream, subsets_are_known
from meshrpc.policy.schema import (
    Fields,
    Place,
    Reader,
    list_of,
    mapping_of,
    one_of,
    plain,
    record,
    text,
    word,
)

SCHEMA = "meshrpc.policy/v1"


# Carried out by this release.

_balancer: Reader[Balancer] = one_of(
    {
        "random": record(lambda: Balancer(BalancerKind.RANDOM), {}),
        "round_robin": record(lambda: Balancer(BalancerKind.ROUND_ROBIN), {}),
        "peak_ewma": record(Balancer, {"decay": duration}),
        "ring_hash": record(lambda: Balancer(BalancerKind.RING_HASH), {}),
    },
    planned=frozenset(BalancerKind),
)

_rate_limit = record(
    RateLimit,
    {
        "name": name,
        "key": list_of(bucket_key),
        "rate": rate,
        "burst": integer(1, 1_000_000_000),
        "share": word({mode.value: mode for mode in ShareMode}),
        "mode": word({mode.value: mode for mode in LimitMode}),
        "max_keys": integer(1, 10_000_000),
    },
    required=("name", "rate", "burst"),
)

CARRIED_OUT: Mapping[str, Reader[Any]] = {
    "timeout": duration,
    "balancer": _balancer,
    **FAILURE_FIELDS,
    "subsets": mapping_of(name, mapping_of(label, label)),
    "rate_limits": list_of(_rate_limit, distinct=lambda limit: limit["name"]),
}


# Accepted: checked in full, then only named in a warning.


def _sample() -> Reader[Fields]:
    return plain({"sample": percentage}, required=("sample",))


ACCEPTED: Mapping[str, Reader[Any]] = {
    "routes": routes,
    "stream": stream,
    "concurrency": one_of({"adaptive": plain({})}),
    "telemetry": plain({"tracing": _sample(), "access_log": _sample()}),
}

_document = plain(
    {
        "schema": text(SCHEMA.replace(".", r"\."), f"expected {SCHEMA}"),
        "service": any_service,
        **CARRIED_OUT,
        **ACCEPTED,
    },
    required=("schema", "service"),
)


def document(place: Place) -> Fields:
    """Read a whole document into its fields; what is in `CARRIED_OUT` has the model's types."""
    subsets_are_known(place)
    return _document(place)

"""The fields of a policy document: which there are, and what each may say.

A field is carried out by this release, or only accepted: typed and checked like any other, so
that a document is right or wrong today and not on the day of an upgrade. What the fields mean is
told to users in docs/policy.md; defaults stand in `model`. Fields about failures are in
`failures`, those of routes in `routes`, those of what a service lets in in `limits`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from meshrpc.policy.failures import FAILURE_FIELDS
from meshrpc.policy.limits import LIMIT_FIELDS
from meshrpc.policy.model import Balancer, BalancerKind, Locality
from meshrpc.policy.names import any_service, hash_key, label, name
from meshrpc.policy.quantities import duration, integer, number, percentage
from meshrpc.policy.routes import routes, stream, subsets_are_known
from meshrpc.policy.schema import (
    Fields,
    Place,
    Reader,
    mapping_of,
    one_of,
    plain,
    record,
    text,
)

SCHEMA = "meshrpc.policy/v1"


# Carried out by this release.


def _kind(kind: BalancerKind, **parameters: Reader[Any]) -> Reader[Balancer]:
    return record(partial(Balancer, kind), parameters)


_max_load = number(1.05, 100)
"""With less than a twentieth to spare, most keys would be passed on when loads differ by chance."""

_balancer = one_of(
    {
        "round_robin": _kind(BalancerKind.ROUND_ROBIN),
        "random": _kind(BalancerKind.RANDOM),
        "weighted_round_robin": _kind(
            BalancerKind.WEIGHTED_ROUND_ROBIN,
            blackout=duration,
            expiry=duration,
            update=duration,
            error_penalty=number(0, 1000),
        ),
        "least_request": _kind(BalancerKind.LEAST_REQUEST, choices=integer(2, 10)),
        "peak_ewma": _kind(BalancerKind.PEAK_EWMA, decay=duration),
        "ring_hash": _kind(BalancerKind.RING_HASH, max_load=_max_load),
        "maglev": _kind(BalancerKind.MAGLEV, max_load=_max_load),
    }
)

_locality = one_of(
    {
        "none": record(Locality, {}),
        "zone": record(partial(Locality, zone=True), {"min_instances": integer(1, 1_000_000)}),
    }
)

CARRIED_OUT: Mapping[str, Reader[Any]] = {
    "timeout": duration,
    "stream": stream,
    "balancer": _balancer,
    "hash_key": hash_key,
    "subset_size": integer(1, 100_000),
    "locality": _locality,
    **FAILURE_FIELDS,
    "subsets": mapping_of(name, mapping_of(label, label)),
    "routes": routes,
    **LIMIT_FIELDS,
}


# Accepted: checked in full, then only named in a warning.


def _sample() -> Reader[Fields]:
    return plain({"sample": percentage}, required=("sample",))


ACCEPTED: Mapping[str, Reader[Any]] = {
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

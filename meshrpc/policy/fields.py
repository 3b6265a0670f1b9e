"""The fields of a policy document: which there are, and what each may say.

A field is carried out by this release, or only accepted: typed and checked like any other, so
that a document is right or wrong today and not on the day of an upgrade. Something that would
otherwise be done wrongly (a balancer that this release lacks) is refused. What the fields mean is
told to users in docs/policy.md; defaults stand in `model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import grpc

from meshrpc.policy.loading import shown
from meshrpc.policy.model import (
    Backoff,
    Balancer,
    BalancerKind,
    LimitMode,
    RateLimit,
    Retry,
    RetryBudget,
    ShareMode,
)
from meshrpc.policy.schema import (
    Place,
    Reader,
    checked,
    duration,
    integer,
    list_of,
    mapping_of,
    number,
    one_of,
    percentage,
    rate,
    record,
    text,
    word,
)

SCHEMA = "meshrpc.policy/v1"

Fields: TypeAlias = dict[str, Any]
"""What was read from a mapping that has no class of its own yet."""


def _plain(fields: Mapping[str, Reader[Any]], required: Iterable[str] = ()) -> Reader[Fields]:
    return record(dict, fields, required)


# Words and names of the language.

_SERVICE_NAME = r"[\w.-]{1,128}"
_service = text(_SERVICE_NAME, "a service name has letters, digits, '.', '_' and '-', 128 at most")
_any_service = text(
    rf"{_SERVICE_NAME}|\*", 'expected a service name, or "*" for the defaults of the mesh'
)
_name = text(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "a name has letters, digits, '.', '_' and '-', 64 at most"
)
_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
_PROTO_SERVICE = rf"{_WORD}(?:\.{_WORD})*"
_METHOD = rf"{_PROTO_SERVICE}/{_WORD}"
_exact_method = text(_METHOD, "expected an exact method, pkg.Service/Method, without wildcards")
_any_method = text(
    rf"{_METHOD}|{_PROTO_SERVICE}/\*", "expected pkg.Service/Method or pkg.Service/*"
)
# Keys are lower case on the wire, and values of -bin keys are bytes.
_METADATA = r"(?!.*-bin$)[a-z0-9_.-]+"
_metadata_key = text(_METADATA, "a metadata key is lower case, and not a binary one (-bin)")
_metadata_value = text(r"[ -~]*", "a metadata value is printable ASCII")
_label = text(r"[^\s,=]{1,128}", "a label has no spaces, '=' or ',', 128 characters at most")
_code = word({code.name: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK})


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


def _backoff_grows(place: Place, backoff: Backoff) -> None:
    if backoff.base > backoff.max:
        at = place["max" if place["base"].tree is None else "base"]
        at.refuse(f"base ({backoff.base:g}s) is at most max ({backoff.max:g}s)")


def _codes(place: Place) -> frozenset[grpc.StatusCode]:
    return frozenset(list_of(_code)(place))


def _non_idempotent(place: Place) -> frozenset[str]:
    return frozenset(list_of(_exact_method)(place))


_retry = record(
    Retry,
    {
        "attempts": integer(1, 5),
        "codes": _codes,
        "per_attempt_timeout": duration,
        "backoff": checked(record(Backoff, {"base": duration, "max": duration}), _backoff_grows),
        "non_idempotent": _non_idempotent,
    },
)

_rate_limit = record(
    RateLimit,
    {
        "name": _name,
        "key": list_of(
            text(
                rf"caller|method|metadata\.{_METADATA}",
                "expected caller, method or metadata.<key in lower case>",
            )
        ),
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
    "retry": _retry,
    "retry_budget": record(
        RetryBudget, {"ratio": percentage, "min_per_second": number(0, 1_000_000)}
    ),
    "subsets": mapping_of(_name, mapping_of(_label, _label)),
    "rate_limits": list_of(_rate_limit, distinct=lambda limit: limit["name"]),
}


# Accepted: checked in full, then only named in a warning.

_BASE_EJECTION = 5.0  # seconds; what holds where the document does not say
_MAX_EJECTION = 300.0


def _ejection_grows(place: Place, fields: Fields) -> None:
    base = fields.get("base_ejection", _BASE_EJECTION)
    longest = fields.get("max_ejection", _MAX_EJECTION)
    if base > longest:
        at = place["base_ejection" if "base_ejection" in fields else "max_ejection"]
        at.refuse(f"base_ejection ({base:g}s) is at most max_ejection ({longest:g}s)")


def _compares(place: Place, _: Fields) -> None:
    if not place.tree:
        place.refuse("say method, caller or metadata; without match a route takes every call")


def _has_weight(place: Place, targets: tuple[Fields, ...]) -> None:
    if not any(target["weight"] for target in targets):
        place.refuse("at least one weight is more than 0")


def _injects(place: Place, _: Fields) -> None:
    # By what is written: a newer release may know faults that this one was told to skip.
    if isinstance(place.tree, dict) and not place.tree.keys() - {"max_active"}:
        place.refuse("a fault has a delay, an abort or both")


_stream = _plain({"idle": duration, "max": duration})

_match = _plain(
    {
        "method": _any_method,
        "caller": _service,
        "metadata": mapping_of(
            _metadata_key,
            one_of(
                {
                    "exact": _metadata_value,
                    "prefix": _metadata_value,
                    "present": word({"true": "true", "false": "false"}),
                }
            ),
        ),
    },
)

_route = _plain(
    {
        "name": _name,
        "match": checked(_match, _compares),
        "split": checked(
            list_of(
                _plain(
                    {"subset": _name, "weight": integer(0, 1_000_000)},
                    required=("subset", "weight"),
                ),
                distinct=lambda target: target["subset"],
            ),
            _has_weight,
        ),
        "fallback": word({"none": "none", "any": "any"}),
        "mirror": _plain({"subset": _name, "percent": percentage}, required=("subset", "percent")),
        "timeout": duration,
        "stream": _stream,
        "retry": _retry,
        "fault": checked(
            _plain(
                {
                    "delay": _plain(
                        {"percent": percentage, "duration": duration},
                        required=("percent", "duration"),
                    ),
                    "abort": _plain(
                        {"percent": percentage, "code": _code}, required=("percent", "code")
                    ),
                    "max_active": integer(1, 1_000_000),
                },
            ),
            _injects,
        ),
    },
    required=("name",),
)


def _routes(place: Place) -> tuple[Fields, ...]:
    items = list(place)
    for route in items[:-1]:
        if isinstance(route.tree, dict) and "match" not in route.tree:
            route.refuse("a route without match takes every call, so it must be the last")
    return list_of(_route, distinct=lambda route: route["name"])(place)


def _sample() -> Reader[Fields]:
    return _plain({"sample": percentage}, required=("sample",))


ACCEPTED: Mapping[str, Reader[Any]] = {
    "outlier": checked(
        _plain(
            {
                "consecutive_failures": integer(1, 1000),
                "success_rate_below": percentage,
                "base_ejection": duration,
                "max_ejection": duration,
                "max_ejected": percentage,
            },
        ),
        _ejection_grows,
    ),
    "routes": _routes,
    "stream": _stream,
    "concurrency": one_of({"adaptive": _plain({})}),
    "telemetry": _plain({"tracing": _sample(), "access_log": _sample()}),
}

_document = _plain(
    {
        "schema": text(SCHEMA.replace(".", r"\."), f"expected {SCHEMA}"),
        "service": _any_service,
        **CARRIED_OUT,
        **ACCEPTED,
    },
    required=("schema", "service"),
)


def _known_subsets(place: Place) -> None:
    subsets = place["subsets"].tree
    known = sorted(subsets) if isinstance(subsets, dict) else []
    for route in place["routes"]:
        for target in (*route["split"], route["mirror"]):
            name = target["subset"]
            if isinstance(name.tree, str) and name.tree not in known:
                name.refuse(f"no such subset; here are {shown([*known])}")


def document(place: Place) -> Fields:
    """Read a whole document into its fields; what is in `CARRIED_OUT` has the model's types."""
    _known_subsets(place)
    return _document(place)

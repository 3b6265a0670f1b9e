"""The fields of routes: which calls one is for, where it sends them, what it does to them.

They are compiled for each method by `table`.
"""

from __future__ import annotations

import grpc

from meshrpc.policy.failures import FAILURE_FIELDS
from meshrpc.policy.loading import shown
from meshrpc.policy.model import (
    Comparison,
    Fallback,
    Fault,
    Match,
    MetadataMatch,
    Mirror,
    Route,
    StreamBounds,
    Target,
)
from meshrpc.policy.names import (
    any_method,
    code,
    hash_key,
    metadata_key,
    metadata_value,
    name,
    service,
)
from meshrpc.policy.quantities import duration, integer, percentage
from meshrpc.policy.schema import (
    Fields,
    Place,
    Reader,
    checked,
    list_of,
    mapping_of,
    one_of,
    record,
    word,
)

stream = record(StreamBounds, {"idle": duration, "max": duration})


# Which calls.


def _compares(place: Place, _: Match) -> None:
    if not place.tree:
        place.refuse("say method, caller or metadata; without match a route takes every call")


def _comparison(comparison: Comparison, value: Reader[str]) -> Reader[tuple[Comparison, str]]:
    return lambda place: (comparison, value(place))


_comparisons = mapping_of(
    metadata_key,
    one_of(
        {
            "exact": _comparison(Comparison.EXACT, metadata_value),
            "prefix": _comparison(Comparison.PREFIX, metadata_value),
            "present": _comparison(Comparison.PRESENT, word({"true": "true", "false": "false"})),
        }
    ),
)


def _metadata(place: Place) -> tuple[MetadataMatch, ...]:
    # All of them have to hold, so that their order says nothing.
    return tuple(MetadataMatch(key, *said) for key, said in sorted(_comparisons(place).items()))


_match = checked(
    record(Match, {"method": any_method, "caller": service, "metadata": _metadata}), _compares
)


# Where they go.


def _has_weight(place: Place, targets: tuple[Target, ...]) -> None:
    if not any(target.weight for target in targets):
        place.refuse("at least one weight is more than 0")


_split = checked(
    list_of(
        record(
            Target, {"subset": name, "weight": integer(0, 1_000_000)}, required=("subset", "weight")
        ),
        distinct=lambda target: target["subset"],
    ),
    _has_weight,
)

_mirror = record(
    Mirror,
    {"subset": name, "percent": percentage, "max_active": integer(1, 1_000_000)},
    required=("subset", "percent"),
)


# What is done to them.


def _injects(place: Place, _: Fault) -> None:
    # By what is written: a newer release may know faults that this one was told to skip.
    if isinstance(place.tree, dict) and not place.tree.keys() - {"max_active"}:
        place.refuse("a fault has a delay, an abort or both")


def _delay(percent: float, duration: float) -> Fields:
    return {"delay_percent": percent, "delay": duration}


def _abort(percent: float, code: grpc.StatusCode) -> Fields:
    return {"abort_percent": percent, "abort_code": code}


def _one_fault(
    delay: Fields | None = None, abort: Fields | None = None, max_active: int | None = None
) -> Fault:
    return Fault(**(delay or {}), **(abort or {}), max_active=max_active)


_fault = checked(
    record(
        _one_fault,
        {
            "delay": record(
                _delay,
                {"percent": percentage, "duration": duration},
                required=("percent", "duration"),
            ),
            "abort": record(
                _abort, {"percent": percentage, "code": code}, required=("percent", "code")
            ),
            "max_active": integer(1, 1_000_000),
        },
    ),
    _injects,
)


# Routes.


def _falls_back_from_somewhere(place: Place, _: Route) -> None:
    if place["fallback"].tree is not None and place["split"].tree is None:
        place["fallback"].refuse(
            "without split there is nothing to fall back from: add split, or leave fallback out"
        )


_route = checked(
    record(
        Route,
        {
            "name": name,
            "match": _match,
            "split": _split,
            "fallback": word({fallback.value: fallback for fallback in Fallback}),
            "mirror": _mirror,
            "fault": _fault,
            "timeout": duration,
            "stream": stream,
            "retry": FAILURE_FIELDS["retry"],
            "hedge": FAILURE_FIELDS["hedge"],
            "hash_key": hash_key,
        },
        required=("name",),
    ),
    _falls_back_from_somewhere,
)

_routes = list_of(_route, distinct=lambda route: route["name"])


def routes(place: Place) -> tuple[Route, ...]:
    """Read the routes of a document, in the order in which they are tried."""
    items = list(place)
    for route in items[:-1]:
        if isinstance(route.tree, dict) and "match" not in route.tree:
            route.refuse("a route without match takes every call, so it must be the last")
    read = _routes(place)
    return tuple(route for route, at in zip(read, items, strict=True) if not _is_skipped(at))


def _is_skipped(route: Place) -> bool:
    """Return whether the route is for fewer calls than this release can tell.

    Only when loaded leniently: without the condition that was skipped, a newer release's fault for
    a few calls would be one for all of them.
    """
    match = route["match"].path
    return any(path.startswith((f"{match}.", f"{match}[")) for path in route.report.ignored)


def subsets_are_known(document: Place) -> None:
    """Refuse every subset that a route of the document names and the document lacks."""
    subsets = document["subsets"].tree
    known = sorted(subsets) if isinstance(subsets, dict) else []
    for route in document["routes"]:
        for target in (*route["split"], route["mirror"]):
            subset = target["subset"]
            if isinstance(subset.tree, str) and subset.tree not in known:
                here = f"here are {shown([*known])}" if known else "this document has none"
                subset.refuse(f"no such subset: {here}; add it to subsets")

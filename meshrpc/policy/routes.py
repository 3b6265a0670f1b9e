"""The fields of routes: which calls one is for, where it sends them, what it does to them.

Not carried out by this release; checked in full all the same.
"""

from __future__ import annotations

from meshrpc.policy.failures import retry
from meshrpc.policy.loading import shown
from meshrpc.policy.names import any_method, code, metadata_key, metadata_value, name, service
from meshrpc.policy.quantities import duration, integer, percentage
from meshrpc.policy.schema import Fields, Place, checked, list_of, mapping_of, one_of, plain, word


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


stream = plain({"idle": duration, "max": duration})

_match = plain(
    {
        "method": any_method,
        "caller": service,
        "metadata": mapping_of(
            metadata_key,
            one_of(
                {
                    "exact": metadata_value,
                    "prefix": metadata_value,
                    "present": word({"true": "true", "false": "false"}),
                }
            ),
        ),
    },
)

_target = plain({"subset": name, "weight": integer(0, 1_000_000)}, required=("subset", "weight"))

_fault = plain(
    {
        "delay": plain(
            {"percent": percentage, "duration": duration}, required=("percent", "duration")
        ),
        "abort": plain({"percent": percentage, "code": code}, required=("percent", "code")),
        "max_active": integer(1, 1_000_000),
    },
)

_route = plain(
    {
        "name": name,
        "match": checked(_match, _compares),
        "split": checked(
            list_of(_target, distinct=lambda target: target["subset"]),
            _has_weight,
        ),
        "fallback": word({"none": "none", "any": "any"}),
        "mirror": plain({"subset": name, "percent": percentage}, required=("subset", "percent")),
        "timeout": duration,
        "stream": stream,
        "retry": retry,
        "fault": checked(_fault, _injects),
    },
    required=("name",),
)


def routes(place: Place) -> tuple[Fields, ...]:
    """Read the routes of a document, in the order in which they are tried."""
    items = list(place)
    for route in items[:-1]:
        if isinstance(route.tree, dict) and "match" not in route.tree:
            route.refuse("a route without match takes every call, so it must be the last")
    return list_of(_route, distinct=lambda route: route["name"])(place)


def subsets_are_known(document: Place) -> None:
    """Refuse every subset that a route of the document names and the document lacks."""
    subsets = document["subsets"].tree
    known = sorted(subsets) if isinstance(subsets, dict) else []
    for route in document["routes"]:
        for target in (*route["split"], route["mirror"]):
            subset = target["subset"]
            if isinstance(subset.tree, str) and subset.tree not in known:
                subset.refuse(f"no such subset; here are {shown([*known])}")

"""An instance as people write it in a file: a mapping, or an address alone.

Read as strictly as a policy (`policy.loading`, `policy.schema`): scalars are text until a field
types them, an unknown field is an error with the nearest known one, and all that is wrong is
said at once, each with its path. The load is not part of it: it is old before anybody could read
it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from meshrpc.policy.quantities import integer
from meshrpc.policy.schema import Fields, Place, Reader, RefusedError, plain, text, word
from meshrpc.registry.instance import HEAVIEST, Health, Instance, State
from meshrpc.settings import dialable

_LARGEST = 999_999_999_999  # a process id, an incarnation

_RESERVED = ("version", "zone")


def instance_reader(service: str, namespace: str) -> Reader[Instance]:
    """Return the reader of an instance of `service`: an address, or a mapping of its fields."""

    def read(place: Place) -> Instance:
        fields = {"address": _address(place)} if isinstance(place.tree, str) else _fields(place)
        return Instance(**{"id": fields["address"], **fields}, service=service, namespace=namespace)

    return read


def _address(place: Place) -> str:
    """Read `host:port`, the port 1 to 65535."""
    if not isinstance(place.tree, str):
        raise place.refuse("expected an address, such as 10.0.0.5:50051")
    try:
        return dialable(place.tree)
    except ValueError as error:
        raise place.refuse(str(error)) from error


def _labels(place: Place) -> Mapping[str, str]:
    if not isinstance(place.tree, dict):
        raise place.refuse("expected a mapping of labels, such as {tier: gold}")
    labels: dict[str, str] = {}
    for name in place.tree:
        try:
            if name in _RESERVED:
                raise place[name].refuse(f"{name} is a field of its own, not a label")
            _label(Place(name, place[name].path, place.report))
            labels[name] = place[name].read(_value)
        except RefusedError:
            continue
    if len(labels) < len(place.tree):
        raise RefusedError
    return MappingProxyType(labels)


_label = text(r"[^\s,=]{1,128}", "a label has no spaces, '=' or ',', 128 characters at most")
_value = text(r"[^\x00-\x1f\x7f]{0,1024}", "a label's value is a line, 1024 characters at most")
_word = text(r"[^\s,=]{1,128}", "this has no spaces, '=' or ',', 128 characters at most")

_fields: Reader[Fields] = plain(
    {
        "address": _address,
        "id": text(r"[^\x00-\x1f\x7f]{1,512}", "an id is a line, 512 characters at most"),
        "version": _word,
        "zone": _word,
        "weight": integer(1, HEAVIEST),
        "labels": _labels,
        "health": word({each.value: each for each in Health}),
        "state": word({each.value: each for each in (State.ACTIVE, State.DRAINING)}),
        "pid": integer(1, _LARGEST),
        "incarnation": integer(0, _LARGEST),
        "permanent": word({"true": True, "false": False}),
    },
    required=("address",),
)

"""An instance as a mapping: as people write it in a file, and as it is kept on disk.

Read as strictly as a policy (`policy.loading`, `policy.schema`): scalars are text until a field
types them, an unknown field is an error with the nearest known one, and all that is wrong is
said at once, each with its path. An address alone is an instance too. The load is not part of
it: it is old before anybody could read it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from meshrpc.errors import Problem
from meshrpc.policy.loading import Tree, child_path
from meshrpc.policy.quantities import integer
from meshrpc.policy.schema import Fields, Place, Reader, RefusedError, Report, plain, text, word
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.settings import dialable

HEAVIEST = 65_535
"""The greatest weight: what an SRV record, and Consul, can say."""
_LARGEST = 999_999_999_999  # a process id, an incarnation

_RESERVED = ("version", "zone")


class RecordError(ValueError):
    """A mapping is no instance; carries every problem found."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


def instance_from_mapping(
    mapping: Mapping[str, Any] | str, *, service: str, namespace: str = "default", path: str = ""
) -> Instance:
    """Read an instance of `service`; `path` is where it stands, for its errors.

    Numbers and truth values may be themselves or text. The id is by default the address.

    Raises:
        RecordError: it cannot be used; says everything that is wrong.
    """
    report = Report()
    try:
        tree = _tree(mapping, path)
        return Place(tree, path, report).read(instance_reader(service, namespace))
    except RefusedError:
        raise RecordError(tuple(report.problems)) from None


def instance_to_mapping(instance: Instance) -> dict[str, Any]:
    """Return what `instance_from_mapping` reads as the same instance, without its load.

    It has the values of JSON; fields that have their default are left out.
    """
    said = {
        "address": instance.address,
        "id": instance.id,
        "version": instance.version,
        "zone": instance.zone,
        "weight": instance.weight if instance.weight != 1 else None,
        "labels": dict(instance.labels) or None,
        "health": instance.health.value if instance.health is not Health.UNKNOWN else None,
        "state": instance.state.value if instance.state is State.DRAINING else None,
        "pid": instance.pid,
        "incarnation": instance.incarnation or None,
        "permanent": instance.permanent or None,
    }
    return {name: value for name, value in said.items() if value is not None}


def instance_reader(service: str, namespace: str = "default") -> Reader[Instance]:
    """Return the reader of an instance of `service`: an address, or a mapping of its fields."""

    def read(place: Place) -> Instance:
        fields = {"address": address(place)} if isinstance(place.tree, str) else _fields(place)
        return Instance(**{"id": fields["address"], **fields}, service=service, namespace=namespace)

    return read


def address(place: Place) -> str:
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
        "address": address,
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


def _tree(value: Any, path: str) -> Tree:
    """Return a value as the strict loader has it: scalars as text."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case Mapping():
            return {
                str(name): _tree(each, child_path(path, str(name))) for name, each in value.items()
            }
        case list() | tuple():
            return [_tree(each, child_path(path, index)) for index, each in enumerate(value)]
        case _:
            rule = "expected text, a number, a list or a mapping"
            raise RecordError((Problem(path or "document", type(value).__name__, rule),))

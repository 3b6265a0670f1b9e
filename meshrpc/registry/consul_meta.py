"""What Consul has no fields for: an instance's metadata, one key each.

Labels are `label-NAME`, the figures of its load `load-NAME`; the rest has the names it has
everywhere. Consul takes only some characters in keys, and none but text as values. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from meshrpc.load_report import LoadReport
from meshrpc.registry.instance import Instance

_LABEL = "label-"
_LOAD = {
    "load-utilization": "utilization",
    "load-rps": "rps",
    "load-eps": "eps",
    "load-queue-seconds": "queue_time",
    "load-cpu": "cpu",
}


def write(instance: Instance) -> dict[str, str]:
    """Return the metadata of an instance."""
    meta = {
        "id": instance.id,
        "namespace": instance.namespace,
        "version": instance.version,
        "zone": instance.zone,
        "pid": instance.pid,
        "incarnation": instance.incarnation,
        "weight": instance.weight,
        "state": instance.state.value,
        "permanent": "true" if instance.permanent else None,
        **({} if instance.load is None else _load_meta(instance.load)),
        **{_LABEL + _encode(name): text for name, text in instance.labels.items()},
    }
    return {key: str(value) for key, value in meta.items() if value is not None}


def is_ours(meta: Any) -> bool:
    """Whether this was written by meshrpc."""
    return isinstance(meta, Mapping) and "incarnation" in meta


def labels(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels.

    Raises:
        ValueError: one is no text.
    """
    found = {}
    for key, text in meta.items():
        if key.startswith(_LABEL):
            if not isinstance(text, str):
                raise ValueError(f"label {key!r} is no text")
            found[_decode(key.removeprefix(_LABEL))] = text
    return found


def load(meta: Mapping[str, Any]) -> LoadReport | None:
    """Return how busy it is; None also when that cannot be read."""
    if not all(key in meta for key in _LOAD):
        return None
    try:
        return LoadReport(**{name: float(meta[key]) for key, name in _LOAD.items()})
    except (ValueError, TypeError):
        return None  # it can be called all the same


def _load_meta(load: LoadReport) -> dict[str, float]:
    return {key: getattr(load, name) for key, name in _LOAD.items()}


# Consul's metadata keys have letters, digits, '-' and '_'. Any other byte of a label's name
# becomes `_xHH_`; a '_' before an 'x' becomes one too, so that nothing else reads like that.
def _encode(name: str) -> str:
    escaped = re.sub(rb"[^A-Za-z0-9_-]|_(?=x)", lambda m: b"_x%02X_" % ord(m[0]), name.encode())
    return escaped.decode("ascii")


def _decode(key: str) -> str:
    if "_x" not in key:
        return key
    name = re.sub(rb"_x([0-9A-F]{2})_", lambda m: bytes([int(m[1], 16)]), key.encode())
    return name.decode("utf-8")

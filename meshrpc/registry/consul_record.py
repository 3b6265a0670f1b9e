"""An instance as Consul stores it: a service, a little metadata, and a check for the lease.

What Consul has fields for stands there (name, address, weight); the rest is `Meta`, one key
each, labels as `label-NAME`, the figures of its load as `load-NAME`. Consul knows no namespaces (its free edition) and wants ids unique
per agent, so the id it sees is `namespace:service:id`. What others registered, without our
metadata, is an instance of namespace `default` under the id it has.

Pure, and strict: a record that cannot be used is a `ValueError` that says why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from meshrpc.load_report import LoadReport
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.settings import parse_address

FOREIGN_NAMESPACE = "default"
"""Where instances belong that were not registered by meshrpc."""

REAP_AFTER = "1m"
"""How long Consul keeps a record whose lease ran out; a minute is its minimum. Nobody sees it."""

_LABEL = "label-"
_LOAD = {
    "load-utilization": "utilization",
    "load-rps": "rps",
    "load-eps": "eps",
    "load-queue-seconds": "queue_time",
    "load-cpu": "cpu",
}


def service_id(instance: Instance) -> str:
    """Return the id of the instance's service in Consul."""
    return f"{instance.namespace}:{instance.service}:{instance.id}"


def check_id(instance: Instance) -> str:
    """Return the id of the check that is the lease: another one for each incarnation."""
    return f"lease:{service_id(instance)}:{instance.incarnation}"


def registration(instance: Instance, lease: float) -> dict[str, Any]:
    """Return the arguments of `agent.service.register` for the instance."""
    host, port = parse_address(instance.address)
    meta = {
        "id": instance.id,
        "namespace": instance.namespace,
        "version": instance.version,
        "zone": instance.zone,
        "pid": instance.pid,
        "incarnation": instance.incarnation,
        "weight": instance.weight,
        "state": instance.state.value,
        **({} if instance.load is None else _load_meta(instance.load)),
        **{_LABEL + _encode(name): text for name, text in instance.labels.items()},
    }
    check = {
        "CheckID": check_id(instance),
        "Name": "meshrpc lease",
        "TTL": f"{lease:g}s",
        "Status": "passing",  # at once: the default is critical until the first renewal
        "DeregisterCriticalServiceAfter": REAP_AFTER,
    }
    return {
        "name": instance.service,
        "service_id": service_id(instance),
        "address": host.strip("[]"),
        "port": port,
        "meta": {key: str(value) for key, value in meta.items() if value is not None},
        "weights": {"Passing": instance.weight, "Warning": 1},
        "check": check,
        "replace_existing_checks": True,
    }


def read(entry: Any) -> Instance:
    """Read one entry of `/v1/health/service`: a node, a service on it, and their checks.

    Raises:
        ValueError: it cannot be called, or is not what Consul sends.
    """
    try:
        return _read(entry["Service"], (entry.get("Node") or {}).get("Address"))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not an entry of Consul's: {type(error).__name__} {error}") from error


def read_service(service: Any) -> Instance:
    """Read one service of `/v1/agent/services`; raises as `read` does."""
    return read({"Service": service})


def _read(service: Mapping[str, Any], node_address: Any) -> Instance:
    meta: Mapping[str, str] = service.get("Meta") or {}
    weight = meta.get("weight") or (service.get("Weights") or {}).get("Passing")
    return Instance(
        id=_text(meta.get("id") or service["ID"], "id"),
        service=_text(service["Service"], "service"),
        address=_address(service.get("Address") or node_address, service.get("Port")),
        namespace=meta.get("namespace") or FOREIGN_NAMESPACE,
        version=meta.get("version") or None,
        zone=meta.get("zone") or None,
        weight=max(1, int(weight or 1)),
        labels=MappingProxyType(
            {
                _decode(key.removeprefix(_LABEL)): text
                for key, text in meta.items()
                if key.startswith(_LABEL)
            }
        ),
        pid=int(meta["pid"]) if meta.get("pid") else None,
        incarnation=int(meta.get("incarnation") or 0),
        health=Health.SERVING,  # only instances whose checks pass are read
        state=State.DRAINING if meta.get("state") == State.DRAINING.value else State.ACTIVE,
        load=_load(meta),
    )


def _load_meta(load: LoadReport) -> dict[str, float]:
    return {key: getattr(load, name) for key, name in _LOAD.items()}


def _load(meta: Mapping[str, str]) -> LoadReport | None:
    if not all(key in meta for key in _LOAD):
        return None
    try:
        return LoadReport(**{name: float(meta[key]) for key, name in _LOAD.items()})
    except ValueError:
        return None  # it can be called all the same


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no {what}")
    return value


def _address(host: Any, port: Any) -> str:
    host = _text(host, "host")
    if not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"{port!r} is no port")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# Consul's metadata keys have letters, digits, '-' and '_'. Any other byte of a label's name
# becomes `_xHH_`; a '_' before an 'x' becomes one too, so that nothing else reads like that.
def _encode(name: str) -> str:
    escaped = re.sub(rb"[^A-Za-z0-9_-]|_(?=x)", lambda m: b"_x%02X_" % ord(m[0]), name.encode())
    return escaped.decode("ascii")


def _decode(key: str) -> str:
    name = re.sub(rb"_x([0-9A-F]{2})_", lambda m: bytes([int(m[1], 16)]), key.encode())
    return name.decode("utf-8")

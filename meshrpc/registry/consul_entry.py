"""What Consul answers for an instance, read: the record, and what its checks make of it.

What others registered, without our metadata, is an instance of namespace `default` under the id
it has; its tags `key=value` are its labels. Records may hold anything: one that cannot be used is
a `ValueError` that says why. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from meshrpc.excerpt import excerpt
from meshrpc.registry import consul_meta, consul_record
from meshrpc.registry.consul_checks import Standing, judge
from meshrpc.registry.finding import Finding, Problem
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import Snapshot

FOREIGN_NAMESPACE = "default"
"""Where instances belong that were not registered by meshrpc."""
SHOWN = 60
"""Characters that are shown of a value that cannot be used."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record, and what Consul thinks of it."""

    instance: Instance
    """Its health, state and weight are what the checks leave of them."""
    node: str
    """The name of the machine whose agent has it, if Consul said so."""
    standing: Standing


@dataclass(frozen=True, slots=True)
class Listing:
    """The records of one service in one namespace."""

    entries: tuple[Entry, ...]
    """By id, the one that counts last where one id is there twice: its process moved."""
    unusable: tuple[tuple[str, str], ...]
    """For each record that can't be used its id, if it has one, and why."""

    def snapshot(self, service: str) -> Snapshot:
        """Return what callers see."""
        listed = {
            each.instance.id: each.instance for each in self.entries if each.standing.is_listed
        }
        skipped = sorted({f"{id_!r}: {why}" for id_, why in self.unusable})
        return Snapshot(service, tuple(listed.values()), skipped=tuple(skipped))

    def findings(self, service: str) -> tuple[Finding, ...]:
        """Return what is wrong with them."""
        return (
            *(
                Finding(Problem.BAD_RECORD, service, id_, f"{why}: correct or deregister it")
                for id_, why in self.unusable
            ),
            *(
                Finding(each.standing.problem, service, each.instance.id, each.standing.detail)
                for each in self.entries
                if each.standing.problem is not None
            ),
        )


def read_all(entries: Iterable[Any], namespace: str) -> Listing:
    """Read a namespace's entries of an answer, each for itself."""
    usable, unusable = [], []
    for each in entries:
        try:
            entry = read(each)
        except ValueError as error:
            where, id_ = named(each)
            if where == namespace:
                unusable.append((id_, str(error)))
        else:
            if entry.instance.namespace == namespace:
                usable.append(entry)
    usable.sort(key=lambda each: (each.instance.id, each.instance.incarnation, each.node))
    return Listing(tuple(usable), tuple(unusable))


def read(entry: Any) -> Entry:
    """Read one entry of `/v1/health/service`: a node, a service on it, and their checks.

    Raises:
        ValueError: it cannot be called, or is not what Consul sends.
    """
    try:
        return _read(entry)
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"not an entry of Consul's: {type(error).__name__} {error}") from error


def read_service(service: Any) -> Instance:
    """Read one service of `/v1/agent/services`, whatever its checks say; raises as `read` does."""
    return read({"Service": service}).instance


def named(entry: Any) -> tuple[str, str]:
    """Return namespace and id that an entry which cannot be read seems to have, else empty."""
    service = entry.get("Service") if isinstance(entry, Mapping) else None
    service = service if isinstance(service, Mapping) else {}
    meta = service.get("Meta")
    meta = meta if isinstance(meta, Mapping) else {}
    namespace, id_ = meta.get("namespace") or FOREIGN_NAMESPACE, meta.get("id") or service.get("ID")
    return (
        namespace if isinstance(namespace, str) else FOREIGN_NAMESPACE,
        id_ if isinstance(id_, str) else "",
    )


# A service may have thousands of entries, all read anew at each change, so each is made once.
def _read(entry: Mapping[str, Any]) -> Entry:
    service, node = entry["Service"], entry.get("Node") or {}
    meta: Mapping[str, Any] = service.get("Meta") or {}
    is_ours = consul_meta.is_ours(meta)
    tags = {} if is_ours else _tagged(service.get("Tags"))
    tagged_version, tagged_zone = tags.pop("version", None), tags.pop("zone", None)
    id_ = _text(meta.get("id") or service["ID"], "id")
    name = _text(service["Service"], "service")
    namespace = _text(meta.get("namespace") or FOREIGN_NAMESPACE, "namespace")
    address = _address(service.get("Address") or node.get("Address"), service.get("Port"))
    incarnation = _number(meta.get("incarnation") or 0, "incarnation", 63)
    is_permanent = meta.get("permanent") == "true"
    own = f"{namespace}:{name}:{id_}" if is_ours else ""
    standing = judge(
        entry.get("Checks"),
        lease=consul_record.lease_of(own, incarnation) if own and not is_permanent else None,
        health=consul_record.health_of(own, incarnation, address) if own else None,
        is_ours=is_ours,
    )
    weights = service.get("Weights") or {}
    weight = weights.get("Warning") if standing.is_warning else meta.get("weight")
    is_draining = standing.in_maintenance or meta.get("state") == State.DRAINING.value
    at = node.get("Node")
    instance = Instance(
        id=id_,
        service=name,
        address=address,
        namespace=namespace,
        version=_text(meta.get("version") or tagged_version, "version", None),
        zone=_text(meta.get("zone") or tagged_zone, "zone", None),
        weight=max(1, _number(weight or weights.get("Passing") or 1, "weight", 31)),
        labels=MappingProxyType(tags | consul_meta.labels(meta)),
        pid=_number(meta.get("pid") or 0, "pid", 31) or None,
        incarnation=incarnation,
        health=standing.health,
        state=State.DRAINING if is_draining else State.ACTIVE,
        load=consul_meta.load(meta),
        permanent=is_permanent,
    )
    return Entry(instance, at if isinstance(at, str) else "", standing)


def _tagged(tags: Any) -> dict[str, str]:
    """Return those of others' tags that are labels: `key=value`."""
    pairs = (tag.partition("=") for tag in tags or () if isinstance(tag, str))
    return {key.strip(): text.strip() for key, equals, text in pairs if equals and key.strip()}


_REQUIRED: Any = object()
_HOST = re.compile(r"[^\s\[\]/@?#%]+(%[\w.-]+)?")


def _text(value: Any, what: str, empty: Any = _REQUIRED) -> Any:
    """Return a text; `empty` instead of one that is missing or has no characters."""
    if not value and empty is not _REQUIRED:
        return empty
    if not isinstance(value, str) or not value:
        raise ValueError(f"{_short(value)} is no {what}")
    return value


def _number(value: Any, what: str, bits: int) -> int:
    """Return a whole number that fits where records travel."""
    number = -1
    if isinstance(value, str):
        number = int(value) if len(value) < 20 and value.isascii() and value.isdecimal() else -1
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if not 0 <= number < 2**bits:
        raise ValueError(f"{_short(value)} is no {what}")
    return number


def _address(host: Any, port: Any) -> str:
    host = _text(host, "host")
    if len(host) > 255 or not _HOST.fullmatch(host):
        raise ValueError(f"{_short(host)} is no host")
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise ValueError(f"{_short(port)} is no port")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _short(value: Any) -> str:
    return excerpt(repr(value), SHOWN)

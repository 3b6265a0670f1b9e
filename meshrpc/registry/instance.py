"""An instance: one registered process of a service, as a record."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from meshrpc.load_report import LoadReport
from meshrpc.v1 import registry_pb2


class Health(enum.StrEnum):
    """What an instance says of itself."""

    SERVING = "serving"
    NOT_SERVING = "not_serving"
    UNKNOWN = "unknown"


class State(enum.StrEnum):
    """Where an instance is in its life, as far as the one who lists it knows.

    Registries know the first two; the others are what a process that calls makes of it.
    """

    ACTIVE = "active"
    DRAINING = "draining"
    HELD = "held"
    """The registry has it no more, which is doubted: it is called on."""
    EJECTED = "ejected"
    """It failed, and is left out for a while."""


HEAVIEST = 65_535
"""The greatest weight that every registry can say: an SRV record and Consul no greater one."""

_NO_LABELS: Mapping[str, str] = MappingProxyType({})

_HEALTH_TO_WIRE = {
    Health.SERVING: registry_pb2.Instance.HEALTH_SERVING,
    Health.NOT_SERVING: registry_pb2.Instance.HEALTH_NOT_SERVING,
    Health.UNKNOWN: registry_pb2.Instance.HEALTH_UNSPECIFIED,
}
_HEALTH_FROM_WIRE = {wire: health for health, wire in _HEALTH_TO_WIRE.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One process that serves a service: what a registry knows of it.

    `incarnation` grows each time the same process comes back after losing its lease; a record
    is never replaced by one of an older incarnation.
    """

    id: str
    service: str
    address: str
    namespace: str = "default"
    version: str | None = None
    zone: str | None = None
    weight: int = 1
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS, hash=False)
    pid: int | None = None
    incarnation: int = 0
    health: Health = Health.UNKNOWN
    state: State = State.ACTIVE
    load: LoadReport | None = field(default=None, hash=False)
    """How busy it last said it was; None: it reports none."""
    permanent: bool = False
    """Whether it was registered by hand: without a lease, and checked by the registry itself."""

    @property
    def is_ours(self) -> bool:
        """Whether it registered itself through meshrpc: it renews its lease, and knows its id."""
        return self.pid is not None

    @property
    def takes_calls(self) -> bool:
        """Whether it may be chosen for calls, as far as its record goes: it is not leaving."""
        return self.state is not State.DRAINING

    def has_labels(self, labels: Mapping[str, str]) -> bool:
        """Return whether it has all these labels; `version` and `zone` are labels too."""
        # Asked of thousands at each change, so it makes nothing.
        for key, value in labels.items():
            match key:
                case "version":
                    own = self.version
                case "zone":
                    own = self.zone
                case _:
                    own = self.labels.get(key)
            if own != value:
                return False
        return True

    def to_json(self) -> dict[str, Any]:
        """Return the record as every `-o json` and the HTTP interface show it."""
        return {
            "id": self.id,
            "service": self.service,
            "namespace": self.namespace,
            "address": self.address,
            "version": self.version,
            "zone": self.zone,
            "weight": self.weight,
            "labels": dict(self.labels),
            "pid": self.pid,
            "health": self.health.value,
            "state": self.state.value,
            "permanent": self.permanent,
            "load": None if self.load is None else _load_to_json(self.load),
        }

    def to_wire(self) -> registry_pb2.Instance:
        """Return the record as it travels."""
        return registry_pb2.Instance(
            id=self.id,
            service=self.service,
            namespace=self.namespace,
            address=self.address,
            version=self.version or "",
            zone=self.zone or "",
            weight=self.weight,
            labels=dict(self.labels),
            pid=self.pid or 0,
            incarnation=self.incarnation,
            health=_HEALTH_TO_WIRE[self.health],
            draining=self.state is State.DRAINING,
            load=None if self.load is None else _load_to_wire(self.load),
            permanent=self.permanent,
        )

    @classmethod
    def from_wire(cls, wire: registry_pb2.Instance) -> Instance:
        """Read a record that travelled."""
        return cls(
            id=wire.id,
            service=wire.service,
            namespace=wire.namespace,
            address=wire.address,
            version=wire.version or None,
            zone=wire.zone or None,
            weight=wire.weight or 1,
            labels=MappingProxyType(dict(wire.labels)),
            pid=wire.pid or None,
            incarnation=wire.incarnation,
            health=_HEALTH_FROM_WIRE.get(wire.health, Health.UNKNOWN),
            state=State.DRAINING if wire.draining else State.ACTIVE,
            load=_load_from_wire(wire.load) if wire.HasField("load") else None,
            permanent=wire.permanent,
        )


def _load_to_json(load: LoadReport) -> dict[str, float]:
    return {
        "utilization": round(load.utilization, 2),
        "rps": round(load.rps, 1),
        "queue_ms": round(load.queue_time * 1000, 1),
    }


def _load_to_wire(load: LoadReport) -> registry_pb2.Instance.Load:
    return registry_pb2.Instance.Load(
        utilization=load.utilization,
        rps=load.rps,
        eps=load.eps,
        queue_seconds=load.queue_time,
        cpu=load.cpu,
    )


def _load_from_wire(wire: registry_pb2.Instance.Load) -> LoadReport | None:
    try:
        return LoadReport(
            utilization=wire.utilization,
            rps=wire.rps,
            eps=wire.eps,
            queue_time=wire.queue_seconds,
            cpu=wire.cpu,
        )
    except ValueError:
        return None  # a record that says nonsense of its load can be called all the same

"""An instance as Consul is told of it: a service, its metadata, and checks of lease and health.

Consul knows no namespaces (its free edition) and wants ids unique per agent, so the id it sees is
`namespace:service:id`. Pure; `consul_entry` reads what becomes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshrpc.registry import consul_meta
from meshrpc.registry.instance import HEAVIEST, Health, Instance, State
from meshrpc.registry.registry import LEASE
from meshrpc.settings import parse_address

REAP_AFTER = "1m"
"""How long Consul keeps a record whose lease ran out; a minute is its minimum. Nobody sees it."""
CHECK_EVERY = 10.0
"""Seconds between two of the agent's health checks of an instance."""
CHECK_WITHIN = 5.0
"""Seconds until such a check has failed, unless the next one is due sooner."""


def service_id(instance: Instance) -> str:
    """Return the id of the instance's service in Consul."""
    return f"{instance.namespace}:{instance.service}:{instance.id}"


def lease_id(instance: Instance) -> str:
    """Return the id of the check that is the lease: another one for each incarnation."""
    return lease_of(service_id(instance), instance.incarnation)


def lease_of(service_id: str, incarnation: int) -> str:
    """Return the id of the lease of a service that has this id."""
    return f"lease:{service_id}:{incarnation}"


def health_id(instance: Instance) -> str:
    """Return the id of the agent's health check.

    Consul keeps the status of a check that is registered again, so another incarnation, or
    another address, has another check.
    """
    return health_of(service_id(instance), instance.incarnation, instance.address)


def health_of(service_id: str, incarnation: int, address: str) -> str:
    """Return the id of the health check of a service that has this id."""
    return f"health:{service_id}:{incarnation}:{address}"


def checks(
    instance: Instance, lease: float = LEASE, check_every: float = CHECK_EVERY
) -> list[dict[str, Any]]:
    """Return the checks of an instance: of its health, and of its lease.

    The lease alone lets Consul remove the record. An instance that keeps its lease and fails the
    other check, one without a health service for example, would come back at once, and go again.

    A permanent one has no lease. Whether somebody listens at all is a check of its own: Consul
    passes a change of status on at once, and what a check said, which tells a server without a
    health service from a dead one, only within minutes.
    """
    every = {"Interval": f"{check_every:g}s", "Timeout": f"{min(CHECK_WITHIN, check_every):g}s"}
    health = {
        "CheckID": health_id(instance),
        "Name": "meshrpc health",
        "GRPC": instance.address,
        "Status": "critical" if instance.health is Health.NOT_SERVING else "passing",
        **every,
    }
    if instance.permanent:
        # Nobody vouches for it, so until it was looked at it is neither.
        health["Status"] = "warning"
        connects = {
            "CheckID": health_id(instance).replace("health", "connects", 1),
            "Name": "meshrpc connects",
            "TCP": instance.address,
            "Status": "passing",
            **every,
        }
        return [health, connects]
    held = {
        "CheckID": lease_id(instance),
        "Name": "meshrpc lease",
        "TTL": f"{lease:g}s",
        "Status": "passing",  # at once: the default is critical until the first renewal
        "DeregisterCriticalServiceAfter": REAP_AFTER,
    }
    return [held, health]


def check_ids(instance: Instance) -> tuple[str, ...]:
    """Return the ids of all checks of an instance."""
    return tuple(check["CheckID"] for check in checks(instance))


def registration(
    instance: Instance,
    lease: float,
    *,
    tags: tuple[str, ...] = (),
    check_every: float = CHECK_EVERY,
) -> dict[str, Any]:
    """Return the arguments of `agent.service.register` for the instance, with its checks."""
    host, port = parse_address(instance.address)
    first, *more = checks(instance, lease, check_every)
    return {
        "name": instance.service,
        "service_id": service_id(instance),
        "address": host.strip("[]"),
        "port": port,
        "tags": list(tags),
        "meta": consul_meta.write(instance),
        # For Consul's DNS answers; ours, as it is, stands in the metadata.
        "weights": {"Passing": min(instance.weight, HEAVIEST), "Warning": 1},
        "check": first,
        "extra_checks": more,
        "replace_existing_checks": True,
    }


def without_checks(registration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same registration leaving the checks that Consul has alone.

    So it neither revives a lease that ran out nor forgets what the agent found.
    """
    left = ("check", "extra_checks", "replace_existing_checks")
    return {name: value for name, value in registration.items() if name not in left}


def marked(service: Mapping[str, Any], state: State) -> dict[str, Any]:
    """Return the arguments that register a service of the agent's again with another state."""
    return {
        "name": service["Service"],
        "service_id": service["ID"],
        "address": service.get("Address"),
        "port": service.get("Port"),
        "tags": service.get("Tags"),
        "meta": {**(service.get("Meta") or {}), "state": state.value},
        "weights": service.get("Weights"),
    }

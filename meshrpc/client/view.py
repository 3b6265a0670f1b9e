"""A view: what this process makes of the instances of a service, for whoever asks.

`meshrpc registry instances NAME --as-seen-by INSTANCE` shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import Endpoint
from meshrpc.registry.instance import Instance, State
from meshrpc.resilience.health import Admission
from meshrpc.v1 import control_pb2


def view(service: str, destinations: Iterable[Destination]) -> control_pb2.ViewResponse:
    """Return how `service` is seen by those of the destinations that call it."""
    # Channels that dial differently have destinations of their own; they see the same registry.
    seen = next((each for each in destinations if each.service == service), None)
    if seen is None:
        return control_pb2.ViewResponse(is_called=False)
    discovery = seen.discovery
    return control_pb2.ViewResponse(
        is_called=True,
        instances=_instances(discovery.instances, seen.endpoints),
        away=discovery.why_silent() or "",
        age_seconds=discovery.age() or 0.0,
        skipped=discovery.skipped,
    )


def _instances(
    instances: Iterable[Instance], endpoints: Iterable[Endpoint]
) -> Iterator[control_pb2.SeenInstance]:
    connected = {endpoint.id: endpoint for endpoint in endpoints}
    for instance in instances:
        endpoint = connected.get(instance.id)
        state, connectivity, pending = instance.state, "", 0
        if endpoint is not None:
            connectivity, pending = endpoint.state.name.lower(), endpoint.pending
            if state is State.ACTIVE and endpoint.health.admission is not Admission.ADMITTED:
                state = State.EJECTED
        yield control_pb2.SeenInstance(
            instance=instance.to_wire(),
            state=state.value,
            connectivity=connectivity,
            pending=pending,
        )

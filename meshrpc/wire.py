"""What meshrpc adds to a call on the wire, and the words for it.

One place for every metadata key, so that client and server cannot disagree.
"""

from __future__ import annotations

import enum
from typing import Final

# Request metadata.
CALLER: Final = "mesh-caller"
"""The calling service, by its own word; absent means `UNKNOWN_CALLER`."""
TARGET: Final = "mesh-target"
"""The id of the instance the caller means; any other one refuses without executing."""
CRITICALITY: Final = "mesh-criticality"
"""How much the call matters; absent means `Criticality.DEFAULT`."""

# Trailers.
NOT_EXECUTED: Final = "mesh-not-executed"
"""The call was refused before its handler ran: always safe to send elsewhere."""
WRONG_TARGET: Final = "wrong-target"
"""Its value where the call was meant for another instance; otherwise it is `1`."""
OVERLOADED: Final = "overloaded"
"""How the details of a refusal begin that is for the server's load, and for no limit of the caller's."""
RETRY_PUSHBACK: Final = "grpc-retry-pushback-ms"
"""When the caller may try again, in milliseconds; negative means never (gRFC A6)."""
RETRY_AFTER: Final = "retry-after"
"""The same for people and HTTP clients, in whole seconds, rounded up."""
DRAIN: Final = "mesh-drain"
"""This stream ended because the server is leaving."""
LOAD_REPORT: Final = "mesh-load-bin"
"""How busy the server is, as a `LoadReport`."""
ORCA_LOAD_REPORT: Final = "endpoint-load-metrics-bin"
"""The same for gRPC's own balancers (gRFC A51). C-core keeps it to itself: programs that use
grpcio never see it, so meshrpc's callers could not."""

STATUS_DETAILS: Final = "grpc-status-details-bin"
"""A google.rpc.Status beside a call's own: what went wrong, for programs to read."""

UNKNOWN_CALLER: Final = "unknown"


class Criticality(enum.StrEnum):
    """How much a call matters to whoever makes it; the least goes first when there is too much."""

    CRITICAL = "critical"
    DEFAULT = "default"
    SHEDDABLE = "sheddable"


Metadata = tuple[tuple[str, str | bytes], ...]


def split_method(path: str) -> tuple[str, str]:
    """Split `/pkg.Service/Method` into service and method."""
    service, _, method = path.lstrip("/").rpartition("/")
    return service, method

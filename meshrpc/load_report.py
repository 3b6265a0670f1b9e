"""What a server says of its own load: the ORCA report in the trailers of its answers.

The wire format is xds.data.orca.v3.OrcaLoadReport, so that grpc clients in other languages can
balance by our reports (gRFC A58) and we by those of their servers. Reports come from outside:
whatever is none (garbage, figures below zero, infinite or no numbers at all) is refused here, and
a `LoadReport` can be trusted to hold numbers to calculate with.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from google.protobuf.message import DecodeError

from meshrpc.v1 import orca_pb2

LONGEST = 16_384
"""Bytes of a report at most: what gRPC lets through of all metadata of a call."""

_QUEUE_TIME = "queue_time"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The load of one instance. All figures are finite and not negative.

    Raises:
        ValueError: one is not.
    """

    utilization: float
    """The part of what it can do that it does, as a fraction of 1; above 1: more than it should."""
    rps: float
    """Calls per second, of all its callers together."""
    eps: float = 0.0
    """Those of them that failed, per second."""
    queue_time: float = 0.0
    """How long work waits before it is begun, in seconds."""
    cpu: float = 0.0
    """The part of its CPU that it uses, as a fraction of 1."""

    def __post_init__(self) -> None:
        if not (
            0.0 <= self.utilization < inf
            and 0.0 <= self.rps < inf
            and 0.0 <= self.eps < inf
            and 0.0 <= self.queue_time < inf
            and 0.0 <= self.cpu < inf
        ):
            raise ValueError(f"a load report holds finite numbers not below 0, not {self}")

    def to_wire(self) -> bytes:
        """Return the value of the trailer."""
        return orca_pb2.OrcaLoadReport(
            application_utilization=self.utilization,
            cpu_utilization=self.cpu,
            rps_fractional=self.rps,
            eps=self.eps,
            named_metrics={_QUEUE_TIME: self.queue_time} if self.queue_time else {},
        ).SerializeToString(deterministic=True)

    @classmethod
    def from_wire(cls, data: bytes) -> LoadReport:
        """Return the report in a trailer's value.

        The utilization is the application's own where it is set, that of the CPU otherwise.

        Raises:
            ValueError: it is none, or too long for one.
        """
        if len(data) > LONGEST:
            raise ValueError(f"a load report has at most {LONGEST} bytes, not {len(data)}")
        try:
            wire = orca_pb2.OrcaLoadReport.FromString(data)
        except DecodeError as error:
            raise ValueError(f"not a load report: {error}") from error
        application, cpu = wire.application_utilization, wire.cpu_utilization
        metrics = wire.named_metrics
        return cls(
            # Only a 0 means that it is not set: whatever else is wrong with it must be seen.
            utilization=application if application != 0.0 else cpu,
            rps=wire.rps_fractional,
            eps=wire.eps,
            queue_time=metrics.get(_QUEUE_TIME, 0.0),
            cpu=cpu,
        )

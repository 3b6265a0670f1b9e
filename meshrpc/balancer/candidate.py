"""What a balancer chooses among: an endpoint, as far as any of them looks at it."""

from __future__ import annotations

from typing import Protocol

from meshrpc.balancer.capacity import Capacity
from meshrpc.balancer.load import Load


class Candidate(Protocol):
    """An endpoint, as far as a balancer looks at it."""

    @property
    def id(self) -> str:
        """Its instance's id: by this all callers agree which keys are its own."""
        ...

    @property
    def weight(self) -> int:
        """Its share, relative to the others'."""
        ...

    @property
    def load(self) -> Load:
        """What this caller's calls to it have shown."""
        ...

    @property
    def capacity(self) -> Capacity:
        """What it reports of itself."""
        ...

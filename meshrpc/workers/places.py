"""The places of a team, and the lives that fill them.

A place is a worker's number (and with it, where ports are fixed, its port) over all its lives. A
life is one run of a worker process: it starts, is ready, and drains or dies.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from meshrpc.workers.restarts import Restarts


@dataclass(frozen=True, slots=True)
class Load:
    """What a worker says of its event loop."""

    busy: float
    """The part of the time in which the loop was not waiting, as a fraction of 1."""
    queue_time: float
    """How long what was due waited for it on average, in seconds."""


class Stage(enum.Enum):
    """How far a life has come."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """It was told to end: nobody waits for it, and its end is no death."""


@dataclass(slots=True, eq=False)
class Life:
    """One run of a worker process."""

    key: int
    number: int
    generation: int
    """Counts the reloads that were asked for before it began."""
    begun_at: float
    stage: Stage = Stage.STARTING
    pid: int | None = None
    heard_at: float = 0.0
    """When its event loop gave the last sign of life."""
    load: Load | None = None
    instance: str | None = None
    """The id of the instance it is, once it serves."""
    has_free_port: bool = False
    """Whether another life can begin in this place while this one has its port."""
    stop_within: float = 0.0
    """Seconds it needs at most to stop."""
    failure: str | None = None
    """Why it cannot serve, in its own words."""
    kill_at: float | None = None
    is_hung: bool = False

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})" if self.pid else f"worker {self.number}"


@dataclass(slots=True, eq=False)
class Place:
    """A worker's number, and who fills it: at most one life, and one that is to replace it."""

    number: int
    restarts: Restarts
    is_first: bool = False
    """Whether a failure would be the first thing ever heard of this worker."""
    current: Life | None = None
    replacement: Life | None = None
    start_at: float | None = None
    """When the next life is to begin; while the port is taken it begins later."""
    died: str | None = None
    """The id of the instance that died here and was not followed by another one yet."""
    has_died: bool = False
    """Whether a death was told and the return was not."""

"""What the team of workers asks its supervisor to do.

A life is one run of a worker process; the number that stands for it here is never used again.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshrpc.workers.events import EventKind


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process as worker `number`; it takes the place of the instance `replaces`, if any."""

    life: int
    number: int
    replaces: str | None


@dataclass(frozen=True, slots=True)
class Stop:
    """Have it drain and end."""

    life: int


@dataclass(frozen=True, slots=True)
class Dump:
    """Have it write the stacks of all its threads to stderr, even if Python is stuck."""

    life: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End it at once."""

    life: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Log `text`, and report an event with `reason` if it is one of a `kind`.

    `number`, `pid` and `instance`: the worker it is about, if it is about one.
    """

    text: str
    kind: EventKind | None = None
    reason: str = ""
    number: int | None = None
    pid: int | None = None
    instance: str | None = None
    is_bad: bool = True


Action = Start | Stop | Dump | Kill | Tell

"""Faults of the network in front of one instance, and scripts of them.

A fault is what happens to connections; a script says which one holds when. Pure data: `proxy.py`
carries faults out, on real sockets, and asks `timeline` what comes next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Refuse:
    """Connections are refused; those there are, reset."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Connections are accepted, and reset as soon as the caller sends anything."""


@dataclass(frozen=True, slots=True)
class Blackhole:
    """Connections stay, and nothing gets through, either way."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Whatever is sent arrives `seconds` later, either way."""

    seconds: float


Fault: TypeAlias = Refuse | Drop | Blackhole | Delay


@dataclass(frozen=True, slots=True)
class Flap:
    """A fault that comes and goes, `every` so many seconds."""

    fault: Fault
    every: float


Script: TypeAlias = "Fault | Flap | Sequence[tuple[Fault | None, float]]"
"""A fault that stays; or one that comes and goes; or several, None for none, each with the
seconds it holds, and none after the last."""


def refuse() -> Refuse:
    """Return the fault that connections are refused, and those there are, reset."""
    return Refuse()


def drop() -> Drop:
    """Return the fault that a connection is reset as soon as the caller sends anything on it."""
    return Drop()


def blackhole() -> Blackhole:
    """Return the fault that connections stay and nothing gets through."""
    return Blackhole()


def delay(seconds: float) -> Delay:
    """Return the fault that everything arrives `seconds` later, each way.

    Raises:
        ValueError: `seconds` is not above 0.
    """
    return Delay(_positive("a delay", seconds))


def flap(fault: Fault, *, every: float) -> Flap:
    """Return the script in which a fault holds for `every` seconds, then not, and so on.

    Raises:
        TypeError: `fault` is no fault.
        ValueError: `every` is not above 0.
    """
    return Flap(_checked(fault), _positive("every", every))


def timeline(script: Script | None) -> Iterator[tuple[Fault | None, float | None]]:
    """Return which fault holds for how many seconds, in order; None: from then on.

    Raises:
        TypeError: this is no script.
        ValueError: a duration is not above 0.
    """
    if isinstance(script, Flap):
        return itertools.cycle([(script.fault, script.every), (None, script.every)])
    if script is None or isinstance(script, Fault):
        return iter([(script, None)])
    if not isinstance(script, Sequence):
        raise _no_fault(script)
    steps: list[tuple[Fault | None, float | None]] = []
    for step in script:
        if not isinstance(step, tuple) or len(step) != 2:
            raise TypeError(f"a step of a script is (fault or None, seconds), not {step!r}")
        fault, seconds = step
        steps.append((None if fault is None else _checked(fault), _positive("a duration", seconds)))
    return iter([*steps, (None, None)])


def _checked(fault: object) -> Fault:
    if not isinstance(fault, Fault):
        raise _no_fault(fault)
    return fault


def _no_fault(given: object) -> TypeError:
    name = getattr(given, "__name__", None)
    hint = f"; write {name}(...)" if callable(given) and name else ""
    return TypeError(
        f"a fault is refuse(), drop(), blackhole() or delay(seconds), not {given!r}{hint}"
    )


def _positive(what: str, seconds: float) -> float:
    if not seconds > 0:
        raise ValueError(f"{what} is more than 0 seconds, not {seconds!r}")
    return seconds

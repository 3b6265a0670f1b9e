"""A rolling reload: which worker of a team is to be replaced next.

One after the other, the oldest code first. Where each worker takes any free port the new one is
ready before the old one is told to drain, so that capacity never falls; a fixed port has to be
let go of first. A reload that is asked for during another one makes all that has begun before it
old again: nothing waits for a reload that is out of date. Pure: looks at places, changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from meshrpc.workers.places import Life, Place, Stage

DRAINING_AT_ONCE = 2
"""Old workers that may drain while the next one is replaced. All of them would be twice the
memory; only one, and a single long stream would hold up the next reload by its whole grace."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Begin a life beside that of `place`, to follow it once it is ready."""

    place: Place


@dataclass(frozen=True, slots=True)
class Vacate:
    """Let the life of `place` drain; the next one begins when it has left."""

    place: Place


@dataclass(frozen=True, slots=True)
class Finished:
    """Every worker runs the newest code."""


Step = Replace | Vacate | Finished | None


def next_step(places: Iterable[Place], lives: Collection[Life], generation: int) -> Step:
    """Return what brings the `places` closer to `generation` now; None: something is under way.

    `lives` are all of the team, those that drain too.
    """
    filled = [place for place in places if place.current is not None or place.replacement]
    if any(place.replacement is not None for place in filled):
        return None
    currents = [(place, place.current) for place in filled if place.current is not None]
    if any(life.stage is Stage.STARTING for _, life in currents):
        return None
    behind = [(place, life) for place, life in currents if life.generation < generation]
    if not behind:
        return Finished()
    able = [(place, life) for place, life in behind if not life.is_hung]
    if not able:
        return None  # they are about to be killed
    place, life = min(able, key=lambda each: (each[1].generation, each[0].number))
    draining = sum(life.stage is Stage.DRAINING for life in lives)
    if life.has_free_port:
        return Replace(place) if draining < DRAINING_AT_ONCE else None
    return Vacate(place) if draining == 0 else None


def outdated(places: Iterable[Place], generation: int) -> list[Life]:
    """Return the lives that have begun to start with code that is older than `generation`."""
    lives = [life for place in places for life in (place.current, place.replacement) if life]
    return [life for life in lives if life.stage is Stage.STARTING and life.generation < generation]

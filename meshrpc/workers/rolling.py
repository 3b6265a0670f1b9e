"""A rolling reload: every worker of a team is replaced by one that runs the code of now.

One after the other, the oldest code first. Where each worker takes any free port the new one is
ready before the old one is told to drain, so that capacity never falls; a fixed port has to be
let go of first. A new worker that dies before it is ready, or is not ready in time (as with the
`progressDeadlineSeconds` of Kubernetes), ends the reload as failed, and what has not been replaced
yet stays: whether the next one would fare better is for people to say. A reload that is asked for
during another one makes all that has begun before it old again: nothing waits for a reload that is
out of date. Pure: `next_step` and `outdated` look, the `Rollout` makes the moves that follow from it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from meshrpc.workers.events import EventKind
from meshrpc.workers.outbox import workers
from meshrpc.workers.places import Life, Place, Stage
from meshrpc.workers.roster import Roster

DRAINING_AT_ONCE = 2
"""Old workers that may drain while the next one is replaced. All of them would be twice the
memory; only one, and a single long stream would hold up the next reload by its whole grace."""
READY_WITHIN = 300.0
"""Seconds that a new worker has to become ready before its reload has failed. Those that a service
requires it waits for 30 s at most; the rest is for its imports, startup hooks and checks. Half of
what Kubernetes has, which pulls an image within them."""


class Rollout:
    """The reload of the lives of a `roster`, from when it is asked for until it ends or fails.

    `ready_within`: seconds that each new life has to become ready.
    """

    def __init__(self, roster: Roster, *, ready_within: float = READY_WITHIN) -> None:
        self.is_under_way = False
        self._roster = roster
        self._ready_within = ready_within
        self._vacated: Place | None = None
        """The place with a fixed port that was emptied and is not filled again yet."""

    def __repr__(self) -> str:
        state = "under way" if self.is_under_way else "over"
        return f"<Rollout {state} generation={self._roster.generation}>"

    def wakes_at(self) -> float | None:
        """Return when it fails unless something happens."""
        if not self.is_under_way:
            return None
        return min((life.begun_at + self._ready_within for life in self._awaited()), default=None)

    def ask(self, why: str, now: float) -> None:
        """Replace all that has begun until now, with what an earlier reload began."""
        again = ", once more" if self.is_under_way else ""
        count = workers(self._roster.size)
        self._roster.out.tell(f"{why}: {count} to be replaced{again}", is_bad=False)
        self.is_under_way = True
        self._roster.generation += 1
        for place in self._roster.places.values():
            if place.start_at is not None:
                place.start_at = now  # whatever it died of may be mended in the newest code

    def step(self, now: float) -> None:
        """Do what can be done by now."""
        if not self.is_under_way:
            return
        roster = self._roster
        for life in outdated(roster.wanted, roster.generation):
            place = roster.places[life.number]
            roster.drain(life, now)
            if place.current is life:
                place.current, place.start_at = None, now
            else:
                place.replacement = None
                if place.current is None:
                    place.start_at = now
        for life in self._awaited():
            if now >= life.begun_at + self._ready_within:
                self._give_up(life, now)
                return
        if any(p.start_at is not None and p.start_at <= now for p in roster.wanted):
            return  # those begin first
        match next_step(roster.wanted, roster.lives.values(), roster.generation):
            case Replace(place):
                place.replacement = roster.begin(place, now)
            case Vacate(place) if place.current is not None:
                roster.out.tell(f"{place.current} leaves its port to the new one", is_bad=False)
                roster.drain(place.current, now)
                place.current, place.start_at = None, now
                place.restarts.left()
                self._vacated = place
            case Finished():
                self.is_under_way = False
                said = f"every worker is replaced ({workers(roster.size)})"
                text = f"reloaded: {said}"
                roster.out.tell(text, kind=EventKind.RELOADED, reason=said, is_bad=False)

    def has_vacated(self, place: Place) -> bool:
        """Whether what begins in `place` follows one that left for it."""
        return self._vacated is place

    def filled(self, place: Place) -> None:
        """A life in `place` serves."""
        if self._vacated is place:
            self._vacated = None

    def fail(self, why: str, *, remedy: str = "") -> None:
        """End it before every worker is replaced."""
        self._vacated = None
        if self.is_under_way:
            self.is_under_way = False
            said = f"{why}; those not replaced yet stay{remedy}"
            self._roster.out.tell(
                f"reload failed: {said}", kind=EventKind.RELOAD_FAILED, reason=said
            )

    def cancel(self) -> None:
        """End it without a word: all are to stop."""
        self.is_under_way = False

    def _awaited(self) -> list[Life]:
        """The lives that it goes on with only when they are ready."""
        filling = [
            each for place in self._roster.wanted for each in (place.replacement, place.current)
        ]
        return [life for life in filling if life is not None and life.stage is Stage.STARTING]

    def _give_up(self, life: Life, now: float) -> None:
        """Fail because of a life that is not ready in time; it is stopped if another one serves."""
        place = self._roster.places[life.number]
        then = "it goes on starting, for nobody else serves in its place"
        old = place.current
        if place.replacement is life and old is not None and not old.is_hung:
            place.replacement = None
            life.has_free_port = True  # it began beside the old one, and is in nobody's way
            self._roster.drain(life, now)
            then = "it is stopped, and the old one serves on"
        self.fail(
            f"the new {life} was not ready within {self._ready_within:.0f} s; {then}",
            remedy=". See what its startup waits for, or give it longer by --ready-within;"
            " SIGHUP tries again",
        )


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

"""The roster of a team: its places, all the lives there are, and the moves that a life can make.

A life begins in a place, is told to drain, or is killed when its time is over. Each move changes the
roster and puts what is to be done into the outbox. When which of them is made is not decided here:
what happens moves lives (`team.py`), a reload does (`rolling.py`), and time alone ends those that
were told to end.
"""

from __future__ import annotations

import random

from meshrpc.workers.actions import Kill, Start, Stop
from meshrpc.workers.outbox import Outbox, workers
from meshrpc.workers.places import Life, Load, Place, Stage
from meshrpc.workers.restarts import Restarts

KILL_AFTER = 5.0
"""Seconds beyond those a worker says it needs at most to stop, after which it is killed. It ends
itself before that, unless something in it keeps Python from running at all."""


class Roster:
    """The places of a team of `size`, by number, and the lives in them, by key."""

    def __init__(self, size: int, *, rng: random.Random) -> None:
        self.size = size
        self.places: dict[int, Place] = {}
        self.lives: dict[int, Life] = {}
        """All whose processes run, those that drain too."""
        self.generation = 0
        """That of the lives which begin now: how many reloads were asked for."""
        self.out = Outbox()
        self._rng = rng
        self._begun = 0

    def __repr__(self) -> str:
        return f"<Roster ready={len(self.ready)}/{self.size} lives={len(self.lives)}>"

    @property
    def ready(self) -> list[Life]:
        """The lives that serve."""
        return [life for life in self.lives.values() if life.stage is Stage.READY]

    @property
    def wanted(self) -> list[Place]:
        """The places that are to be filled: the others are about to be gone."""
        return [place for place in self.places.values() if place.number <= self.size]

    def loads(self) -> list[Load]:
        """Return what the ready lives said last of their event loops."""
        return [life.load for life in self.ready if life.load is not None and not life.is_hung]

    def wakes_at(self) -> float | None:
        """Return when a life is to begin or to be killed, the earliest."""
        due = [life.kill_at for life in self.lives.values()]
        due += [place.start_at for place in self.places.values() if not self._is_taken(place)]
        return min((time for time in due if time is not None), default=None)

    # Places.

    def open(self, number: int, *, is_first: bool = False) -> Place:
        """Return the place of that number, a new one if there is none."""
        if number not in self.places:
            self.places[number] = Place(number, Restarts(self._rng), is_first=is_first)
        return self.places[number]

    def fill(self, now: float) -> None:
        """Begin a life in every place that is due for one and whose port is free."""
        for place in self.places.values():
            due = place.start_at is not None and place.start_at <= now
            if due and place.replacement is None and not self._is_taken(place):
                place.start_at = None
                place.current = self.begin(place, now)

    def empty(self, place: Place, now: float) -> None:
        """Let whoever is in `place` go; nobody follows."""
        place.start_at = None
        for life in (place.current, place.replacement):
            if life is not None:
                self.drain(life, now)
        place.current = place.replacement = None
        place.restarts.left()

    def forget_places(self) -> None:
        """Forget the places beyond the size that nobody is in any more."""
        alive = {life.number for life in self.lives.values()}
        for number in [n for n in self.places if n > self.size and n not in alive]:
            del self.places[number]

    def _is_taken(self, place: Place) -> bool:
        """Whether a life of `place` still has the port that the next one needs."""
        return any(
            life.number == place.number and not life.has_free_port for life in self.lives.values()
        )

    # Lives.

    def begin(self, place: Place, now: float) -> Life:
        """Begin a life in `place`, and return it."""
        self._begun += 1
        life = Life(self._begun, place.number, self.generation, now)
        self.lives[life.key] = life
        replaces = place.died if place.current is None else None
        self.out.append(Start(life.key, place.number, replaces))
        return life

    def drain(self, life: Life, now: float) -> None:
        """Have a life end, within the time that it needs to stop.

        Also one that was never ready: where nobody is, callers call all the same.
        """
        life.stage = Stage.DRAINING
        if not life.is_hung:
            life.kill_at = now + life.stop_within + KILL_AFTER
        self.out.append(Stop(life.key))

    def drain_all(self, now: float) -> None:
        """Have every life end, all within the longest time that any of them needs."""
        needed = max((life.stop_within for life in self.lives.values()), default=0.0)
        for life in self.lives.values():
            if life.stage is not Stage.DRAINING:
                self.drain(life, now)
                if not life.is_hung:
                    life.kill_at = now + needed + KILL_AFTER

    def kill_all(self) -> None:
        """End every life at once."""
        for life in self.lives.values():
            self._kill(life)

    def kill_overdue(self, now: float) -> None:
        """End those that were told to end and whose time is over."""
        overdue = [x for x in self.lives.values() if x.kill_at is not None and x.kill_at <= now]
        for life in overdue:
            self._kill(life)
        if told := sum(not life.is_hung for life in overdue):
            self.out.tell(f"out of time: {workers(told)} killed")

    def _kill(self, life: Life) -> None:
        life.kill_at = None
        self.out.append(Kill(life.key))

"""A team of workers: who is to start, drain, be killed or be replaced, and when.

A state machine: what happened comes in with the time at which it did, what is to be done comes
out as actions, and `wakes_at` says when to look again though nothing happens. A place whose life
died is filled again after a backoff (`restarts.py`); a reload replaces one life after the other
(`rolling.py`). Pure: the supervisor starts, signals and listens to the processes.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable

from meshrpc.workers.actions import Action, Dump, Kill, Start, Stop
from meshrpc.workers.events import EventKind
from meshrpc.workers.outbox import Outbox
from meshrpc.workers.places import Life, Load, Place, Stage
from meshrpc.workers.restarts import CRASH_LOOP_DEATHS, CRASH_LOOP_WINDOW, Restarts
from meshrpc.workers.rolling import Finished, Replace, Vacate, next_step, outdated

KILL_AFTER = 5.0
"""Seconds beyond those a worker says it needs at most to stop, after which it is killed. It ends
itself before that, unless something in it keeps Python from running at all."""
LIVENESS = 15.0
"""Seconds without a sign of life from its event loop, after which a worker is killed: by then its
lease is over, and to its callers it is gone already."""
DUMP_TIME = 1.0
"""Seconds between asking a hung worker for its stacks and killing it."""


class Team:
    """The workers of one service, `size` of them once they have started.

    `liveness`: seconds without a sign of life that a worker survives; None: any number.
    """

    def __init__(self, size: int, *, rng: random.Random, liveness: float | None = LIVENESS) -> None:
        self.size = size
        self.cannot_start: str | None = None
        """Why the first start of a worker failed, in its own words."""
        self.was_cut_short = False
        """Whether a worker ended before it had drained, while all were to stop."""
        self.is_rolling = False
        self.is_stopping = False
        self._rng = rng
        self._liveness = liveness
        self._places: dict[int, Place] = {}
        self._lives: dict[int, Life] = {}
        self._begun = 0
        self._generation = 0
        self._vacated: Place | None = None
        """The place with a fixed port that the reload has emptied and not filled again yet."""
        self._out = Outbox()

    def __repr__(self) -> str:
        state = "stopping" if self.is_stopping else "reloading" if self.is_rolling else "running"
        loops = sum(place.restarts.is_crash_loop for place in self._places.values())
        also = f" crash_loop={loops}" if loops else ""
        return f"<Team {state} ready={len(self.ready)}/{self.size}{also}>"

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, and nothing is to be started."""
        return not self._lives and all(p.start_at is None for p in self._places.values())

    @property
    def ready(self) -> list[Life]:
        """The lives that serve."""
        return [life for life in self._lives.values() if life.stage is Stage.READY]

    @property
    def lives(self) -> Iterable[Life]:
        """All whose processes run, those that drain too."""
        return self._lives.values()

    @property
    def places(self) -> Iterable[Place]:
        """Every worker there is to be, and those that are not yet gone."""
        return self._places.values()

    def number(self, key: int) -> int:
        """Return the number of the worker whose life is `key`."""
        return self._lives[key].number

    def loads(self) -> list[Load]:
        """Return what the ready workers said last of their event loops."""
        return [life.load for life in self.ready if life.load is not None and not life.is_hung]

    def wakes_at(self) -> float | None:
        """Return when something is due although nothing happens."""
        due: list[float | None] = []
        for life in self._lives.values():
            due.append(life.kill_at)
            if self._liveness is not None and life.stage is Stage.READY and not life.is_hung:
                due.append(life.heard_at + self._liveness)
        for place in self._places.values():
            if not self._is_taken(place):
                due.append(place.start_at)
            due.append(place.restarts.recovers_at)
        return min((time for time in due if time is not None), default=None)

    # What happened. Each returns what is to be done.

    def begin(self, now: float) -> list[Action]:
        """Start the team. To be called once."""
        for number in range(1, self.size + 1):
            self._places[number] = Place(number, Restarts(self._rng), is_first=True, start_at=now)
        return self._settled(now)

    def settle(self, now: float) -> list[Action]:
        """Do what is due by now."""
        return self._settled(now)

    def started(self, key: int, pid: int) -> None:
        """The process of life `key` runs."""
        self._lives[key].pid = pid

    def could_not_start(self, key: int, error: str, now: float) -> list[Action]:
        """The machine is out of processes, memory or file descriptors: that may pass."""
        self._lost(self._lives.pop(key), f"could not be started: {error}", now)
        return self._settled(now)

    def has_loaded(self, key: int, *, stop_within: float) -> None:
        """The worker has its service, and says how long that takes to stop, from here on."""
        self._lives[key].stop_within = stop_within

    def has_become_ready(
        self, key: int, now: float, *, instance: str, has_free_port: bool
    ) -> list[Action]:
        """The worker serves."""
        life = self._lives[key]
        life.instance = instance
        life.has_free_port = has_free_port
        life.heard_at = now
        if life.stage is not Stage.STARTING or life.is_dropped:
            return self._settled(now)
        life.stage = Stage.READY
        place = self._places[life.number]
        if place.replacement is life:
            if place.current is not None:
                self._drain(place.current, now)
            place.current, place.replacement, place.start_at = life, None, None
        if self._vacated is place:
            self._vacated = None
        place.restarts.ready(now)
        place.is_first, place.died = False, None
        if place.has_died and not place.restarts.is_crash_loop:
            self._tell_return(place, life, "serves again")
        return self._settled(now)

    def has_failed(self, key: int, error: str) -> None:
        """The worker says why it cannot serve; its end follows."""
        self._lives[key].failure = error

    def was_heard(self, key: int, load: Load, now: float) -> None:
        """The event loop of the worker gave a sign of life."""
        life = self._lives[key]
        life.heard_at, life.load = now, load

    def overslept(self, now: float) -> None:
        """Nobody listened for a while: what was not heard meanwhile is nobody's fault."""
        for life in self._lives.values():
            life.heard_at = max(life.heard_at, now)

    def has_ended(self, key: int, code: int, how: str, now: float) -> list[Action]:
        """The process ended with exit `code` (the negative signal number), in words: `how`."""
        life = self._lives.pop(key)
        if self.is_stopping:
            place = self._places[life.number]
            place.current = None if place.current is life else place.current
            # SIGTERM ends by itself only one that did not serve yet, nor does a failed one.
            expected = code in (0, -signal.SIGTERM) or life.failure is not None
            if not (expected or life.is_dropped or life.is_hung):
                self.was_cut_short = True
        elif life.stage is Stage.DRAINING:
            if code != 0:
                self._out.tell(f"{_who(life)} ended before it had drained: {how}", life)
        elif not life.is_dropped:
            said = f"cannot start: {life.failure}" if life.failure else f"died: {how}"
            self._lost(life, said, now)
        return self._settled(now)

    def reload(self, why: str, now: float) -> list[Action]:
        """Replace every worker by one that runs the code of now."""
        if self.is_stopping:
            return []
        again = ", once more" if self.is_rolling else ""
        self._out.tell(f"{why}: {_workers(self.size)} to be replaced{again}", is_bad=False)
        self.is_rolling = True
        self._generation += 1
        for place in self._places.values():
            if place.start_at is not None:
                place.start_at = now  # whatever it died of may be mended in the newest code
        return self._settled(now)

    def resize(self, size: int, why: str, now: float) -> list[Action]:
        """Have `size` workers: the highest numbers drain, or new ones start."""
        if self.is_stopping or size == self.size:
            return []
        said = f"{self.size} to {size} workers: {why}"
        self._out.tell(f"scaled from {said}", kind=EventKind.SCALED, reason=said, is_bad=False)
        self.size = size
        for number in range(1, size + 1):
            place = self._places.setdefault(number, Place(number, Restarts(self._rng)))
            if place.current is None and place.start_at is None:
                place.start_at = now
        for place in self._places.values():
            if place.number > size:
                self._empty(place, now)
        return self._settled(now)

    def stop(self, why: str, now: float) -> list[Action]:
        """Let every worker drain and end; again: end them at once."""
        if self.is_stopping:
            return self._kill_all(f"{why} again")
        self._stop_all(why, now)
        return self._settled(now)

    # How it is done.

    def _settled(self, now: float) -> list[Action]:
        """Do what is due, and return it with all that was to be done before."""
        self._kill_overdue(now)
        if not self.is_stopping:
            self._find_hung(now)
            for place in self._places.values():
                if place.restarts.has_recovered(now) and place.current is not None:
                    self._tell_return(place, place.current, "is out of its crash loop")
            if self.is_rolling:
                self._roll(now)
            for place in self._places.values():
                if place.start_at is not None and place.start_at <= now:
                    self._fill(place)
            self._forget_places()
        return self._out.taken()

    def _is_taken(self, place: Place) -> bool:
        """Whether a life of `place` still has the port that the next one needs."""
        return any(
            life.number == place.number and not life.has_free_port for life in self._lives.values()
        )

    def _fill(self, place: Place) -> None:
        if place.replacement is None and not self._is_taken(place):
            place.start_at = None
            place.current = self._begin(place)

    def _begin(self, place: Place) -> Life:
        self._begun += 1
        life = Life(self._begun, place.number, self._generation)
        self._lives[life.key] = life
        replaces = place.died if place.current is None else None
        self._out.append(Start(life.key, place.number, replaces))
        return life

    def _drain(self, life: Life, now: float) -> None:
        life.stage = Stage.DRAINING
        if not life.is_hung:
            life.kill_at = now + life.stop_within + KILL_AFTER
        self._out.append(Stop(life.key))

    def _drop(self, life: Life) -> None:
        """End a life that has not served yet."""
        life.is_dropped = True
        self._out.append(Kill(life.key))

    def _empty(self, place: Place, now: float) -> None:
        place.start_at = None
        for life in (place.current, place.replacement):
            if life is not None and life.stage is Stage.READY:
                self._drain(life, now)
            elif life is not None:
                self._drop(life)
        place.current = place.replacement = None
        place.restarts.left()

    def _forget_places(self) -> None:
        alive = {life.number for life in self._lives.values()}
        for number in [n for n in self._places if n > self.size and n not in alive]:
            del self._places[number]

    def _lost(self, life: Life, what: str, now: float) -> None:
        """A life ended that should not have."""
        place = self._places[life.number]
        if place.current is not life:
            place.replacement = None
            self._abort_roll(f"the new worker {place.number} {what}")
            if place.current is None:
                self._restart_later(place, life, what, now)
            return
        place.current = None
        place.died = life.instance or place.died
        if life.failure is not None and place.is_first:
            self.cannot_start = life.failure
            self._stop_all(f"worker {place.number} cannot start", now)
            return
        self._restart_later(place, life, what, now)
        if self._vacated is place:
            self._abort_roll(f"the new worker {place.number} {what}")

    def _restart_later(self, place: Place, life: Life, what: str, now: float) -> None:
        was_crash_loop = place.restarts.is_crash_loop
        delay = place.restarts.died(now)
        place.is_first, place.has_died = False, True
        if place.replacement is not None:
            then = "the one that was to replace it is starting"
        else:
            place.start_at = now + delay
            then = f"restarting in {delay:.1f} s"
        reason = what.removeprefix("died: ")
        kind = None if life.is_hung else EventKind.DIED
        self._out.tell(f"{_who(life)} {what}; {then}", life, kind=kind, reason=reason)
        if place.restarts.is_crash_loop and not was_crash_loop:
            said = (
                f"{CRASH_LOOP_DEATHS} deaths within {CRASH_LOOP_WINDOW:.0f} s, the last: {reason}"
            )
            text = f"worker {place.number} is in a crash loop: {said}"
            self._out.tell(text, life, kind=EventKind.CRASH_LOOP, reason=said)

    def _tell_return(self, place: Place, life: Life, what: str) -> None:
        place.has_died = False
        text = f"{_who(life)} {what}"
        self._out.tell(text, life, kind=EventKind.RESTARTED, reason=what, is_bad=False)

    def _roll(self, now: float) -> None:
        places = [place for place in self._places.values() if place.number <= self.size]
        for life in outdated(places, self._generation):
            place = self._places[life.number]
            self._drop(life)
            if place.current is life:
                place.current, place.start_at = None, now
            else:
                place.replacement = None
                if place.current is None:
                    place.start_at = now
        if any(p.start_at is not None and p.start_at <= now for p in places):
            return  # those begin first
        step = next_step(places, self._lives.values(), self._generation)
        match step:
            case Replace(place):
                place.replacement = self._begin(place)
            case Vacate(place) if place.current is not None:
                self._out.tell(
                    f"{_who(place.current)} leaves its port to the new one", is_bad=False
                )
                self._drain(place.current, now)
                place.current, place.start_at = None, now
                place.restarts.left()
                self._vacated = place
            case Finished():
                self.is_rolling = False
                said = f"every worker is replaced ({_workers(self.size)})"
                text = f"reloaded: {said}"
                self._out.tell(text, kind=EventKind.RELOADED, reason=said, is_bad=False)

    def _abort_roll(self, why: str) -> None:
        self._vacated = None
        if self.is_rolling and not self.is_stopping:
            self.is_rolling = False
            said = f"{why}; those not replaced yet stay"
            self._out.tell(
                f"reload stopped: {said}", kind=EventKind.RELOADED, reason=f"stopped: {said}"
            )

    def _find_hung(self, now: float) -> None:
        if self._liveness is None:
            return
        for life in self.ready:
            if life.is_hung or now < life.heard_at + self._liveness:
                continue
            life.is_hung = True
            life.kill_at = now + DUMP_TIME
            said = f"no sign of life from its event loop for {self._liveness:.0f} s"
            self._out.tell(
                f"{_who(life)} hangs: {said}; killed", life, kind=EventKind.HUNG, reason=said
            )
            self._out.append(Dump(life.key))

    def _stop_all(self, why: str, now: float) -> None:
        self.is_stopping = True
        self.is_rolling = False
        for place in self._places.values():
            place.start_at = None
        needed = max((life.stop_within for life in self._lives.values()), default=0.0)
        for life in self._lives.values():
            if life.stage is not Stage.DRAINING and not life.is_dropped:
                self._drain(life, now)
                if not life.is_hung:
                    life.kill_at = now + needed + KILL_AFTER
        if self._lives:
            count = _workers(len(self._lives))
            self._out.tell(f"{why}: {count} to drain; once more ends them", is_bad=False)

    def _kill_all(self, why: str) -> list[Action]:
        for life in self._lives.values():
            life.kill_at = None
            self._out.append(Kill(life.key))
        if self._lives:
            self._out.tell(f"{why}: {_workers(len(self._lives))} killed")
        return self._out.taken()

    def _kill_overdue(self, now: float) -> None:
        overdue = [x for x in self._lives.values() if x.kill_at is not None and x.kill_at <= now]
        for life in overdue:
            life.kill_at = None
            self._out.append(Kill(life.key))
        if told := sum(not life.is_hung for life in overdue):
            self._out.tell(f"out of time: {_workers(told)} killed")


def _who(life: Life) -> str:
    return f"worker {life.number} (pid {life.pid})" if life.pid else f"worker {life.number}"


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"

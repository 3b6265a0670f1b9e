"""A team of workers: what follows from what happens to them, and when.

A state machine: what happened comes in with the time at which it did, what is to be done comes
out as actions, and `wakes_at` says when to look again though nothing happens. A place whose life
died is filled again after a backoff (`restarts.py`); a reload replaces one life after the other
(`rolling.py`); who there is, and how a life begins and ends, is the roster (`roster.py`). Pure:
the supervisor starts, signals and listens to the processes.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable

from meshrpc.workers.actions import Action, Dump
from meshrpc.workers.events import EventKind
from meshrpc.workers.outbox import workers
from meshrpc.workers.places import Life, Load, Place, Stage
from meshrpc.workers.restarts import CRASH_LOOP_DEATHS, CRASH_LOOP_WINDOW
from meshrpc.workers.rolling import READY_WITHIN, Rollout
from meshrpc.workers.roster import Roster

LIVENESS = 15.0
"""Seconds without a sign of life from its event loop, after which a worker is killed: by then its
lease is over, and to its callers it is gone already."""
DUMP_TIME = 1.0
"""Seconds between asking a hung worker for its stacks and killing it."""


class Team:
    """The workers of one service, `size` of them once they have started.

    `liveness`: seconds without a sign of life that a worker survives; None: any number.
    `ready_within`: seconds that a new worker of a reload has to become ready.
    """

    def __init__(
        self,
        size: int,
        *,
        rng: random.Random,
        liveness: float | None = LIVENESS,
        ready_within: float = READY_WITHIN,
    ) -> None:
        self.cannot_start: str | None = None
        """Why the first start of a worker failed, in its own words."""
        self.was_cut_short = False
        """Whether a worker ended before it had drained, while all were to stop."""
        self.is_stopping = False
        self._liveness = liveness
        self._roster = Roster(size, rng=rng)
        self._lives = self._roster.lives
        self._places = self._roster.places
        self._out = self._roster.out
        self._rollout = Rollout(self._roster, ready_within=ready_within)

    def __repr__(self) -> str:
        state = "stopping" if self.is_stopping else "reloading" if self.is_rolling else "running"
        loops = sum(place.restarts.is_crash_loop for place in self._places.values())
        also = f" crash_loop={loops}" if loops else ""
        return f"<Team {state} ready={len(self.ready)}/{self.size}{also}>"

    @property
    def size(self) -> int:
        """How many workers there are to be."""
        return self._roster.size

    @property
    def is_rolling(self) -> bool:
        """Whether a reload is under way."""
        return self._rollout.is_under_way

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, and nothing is to be started."""
        return not self._lives and all(p.start_at is None for p in self._places.values())

    @property
    def ready(self) -> list[Life]:
        """The lives that serve."""
        return self._roster.ready

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
        return self._roster.loads()

    def wakes_at(self) -> float | None:
        """Return when something is due although nothing happens."""
        due = [self._roster.wakes_at(), self._rollout.wakes_at()]
        due += [place.restarts.recovers_at for place in self._places.values()]
        if self._liveness is not None:
            due += [life.heard_at + self._liveness for life in self.ready if not life.is_hung]
        return min((time for time in due if time is not None), default=None)

    # What happened. Each returns what is to be done.

    def begin(self, now: float) -> list[Action]:
        """Start the team. To be called once."""
        for number in range(1, self.size + 1):
            self._roster.open(number, is_first=True).start_at = now
        return self.settle(now)

    def started(self, key: int, pid: int) -> None:
        """The process of life `key` runs."""
        self._lives[key].pid = pid

    def could_not_start(self, key: int, error: str, now: float) -> list[Action]:
        """The machine is out of processes, memory or file descriptors: that may pass."""
        self._lost(self._lives.pop(key), f"could not be started: {error}", now)
        return self.settle(now)

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
        if life.stage is not Stage.STARTING:
            return self.settle(now)
        life.stage = Stage.READY
        place = self._places[life.number]
        if place.replacement is life:
            if place.current is not None:
                self._roster.drain(place.current, now)
            place.current, place.replacement, place.start_at = life, None, None
        self._rollout.filled(place)
        place.restarts.ready(now)
        place.is_first, place.died = False, None
        if place.has_died and not place.restarts.is_crash_loop:
            self._tell_return(place, life, "serves again")
        return self.settle(now)

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
            if life.stage is Stage.STARTING:
                life.begun_at = now

    def has_ended(self, key: int, code: int, how: str, now: float) -> list[Action]:
        """The process ended with exit `code` (the negative signal number), in words: `how`."""
        life = self._lives.pop(key)
        if self.is_stopping:
            place = self._places[life.number]
            place.current = None if place.current is life else place.current
            # SIGTERM ends by itself only one that did not serve yet, nor does a failed one.
            expected = code in (0, -signal.SIGTERM) or life.failure is not None
            if not (expected or life.is_hung):
                self.was_cut_short = True
        elif life.stage is Stage.DRAINING:
            was_ready = life.instance is not None
            if code != 0 and (was_ready or code != -signal.SIGTERM):
                self._out.tell(f"{life} ended before it had drained: {how}", life)
        else:
            said = f"cannot start: {life.failure}" if life.failure else f"died: {how}"
            self._lost(life, said, now)
        return self.settle(now)

    def reload(self, why: str, now: float) -> list[Action]:
        """Replace every worker by one that runs the code of now."""
        if self.is_stopping:
            return []
        self._rollout.ask(why, now)
        return self.settle(now)

    def resize(self, size: int, why: str, now: float) -> list[Action]:
        """Have `size` workers: the highest numbers drain, or new ones start."""
        if self.is_stopping or size == self.size:
            return []
        said = f"{self.size} to {size} workers: {why}"
        self._out.tell(f"scaled from {said}", kind=EventKind.SCALED, reason=said, is_bad=False)
        self._roster.size = size
        for number in range(1, size + 1):
            place = self._roster.open(number)
            if place.current is None and place.start_at is None:
                place.start_at = now
        for place in self._places.values():
            if place.number > size:
                self._roster.empty(place, now)
        return self.settle(now)

    def stop(self, why: str, now: float) -> list[Action]:
        """Let every worker drain and end; again: end them at once."""
        if not self.is_stopping:
            self._stop_all(why, now)
            return self.settle(now)
        self._roster.kill_all()
        if self._lives:
            self._out.tell(f"{why} again: {workers(len(self._lives))} killed")
        return self._out.taken()

    def settle(self, now: float) -> list[Action]:
        """Do what is due by now, and return it with all that was to be done before."""
        self._roster.kill_overdue(now)
        if not self.is_stopping:
            self._find_hung(now)
            for place in self._places.values():
                if place.restarts.has_recovered(now) and place.current is not None:
                    self._tell_return(place, place.current, "is out of its crash loop")
            self._rollout.step(now)
            self._roster.fill(now)
            self._roster.forget_places()
        return self._out.taken()

    # How it is done.

    def _lost(self, life: Life, what: str, now: float) -> None:
        """A life ended that should not have."""
        place = self._places[life.number]
        if place.current is not life:
            place.replacement = None
            self._fail_rollout(place, what)
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
        if self._rollout.has_vacated(place):
            self._fail_rollout(place, what)

    def _fail_rollout(self, place: Place, what: str) -> None:
        if not self.is_stopping:
            self._rollout.fail(f"the new worker {place.number} {what}")

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
        self._out.tell(f"{life} {what}; {then}", life, kind=kind, reason=reason)
        if place.restarts.is_crash_loop and not was_crash_loop:
            said = (
                f"{CRASH_LOOP_DEATHS} deaths within {CRASH_LOOP_WINDOW:.0f} s, the last: {reason}"
            )
            text = f"worker {place.number} is in a crash loop: {said}"
            self._out.tell(text, life, kind=EventKind.CRASH_LOOP, reason=said)

    def _tell_return(self, place: Place, life: Life, what: str) -> None:
        place.has_died = False
        text = f"{life} {what}"
        self._out.tell(text, life, kind=EventKind.RESTARTED, reason=what, is_bad=False)

    def _find_hung(self, now: float) -> None:
        if self._liveness is None:
            return
        for life in self.ready:
            if life.is_hung or now < life.heard_at + self._liveness:
                continue
            life.is_hung = True
            life.kill_at = now + DUMP_TIME
            said = f"no sign of life from its event loop for {self._liveness:.0f} s"
            self._out.tell(f"{life} hangs: {said}; killed", life, kind=EventKind.HUNG, reason=said)
            self._out.append(Dump(life.key))

    def _stop_all(self, why: str, now: float) -> None:
        self.is_stopping = True
        self._rollout.cancel()
        for place in self._places.values():
            place.start_at = None
        self._roster.drain_all(now)
        if self._lives:
            count = workers(len(self._lives))
            self._out.tell(f"{why}: {count} to drain; once more ends them", is_bad=False)

"""How many workers a service needs, by how busy their event loops are.

Up quickly and in proportion, down slowly and one at a time, with a band between the two in which
nothing changes (hysteresis, as the Horizontal Pod Autoscaler of Kubernetes has it with its
tolerance and its window for scaling down). The busy share says how much work there is, and the
queue time that it does not fit, whatever the share. A size that was too small for a load is not
tried again before there is less of it. Pure: loads and time come in, the wanted size comes out.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from meshrpc.workers.places import Load

BUSY = 0.75
"""Mean busy share above which there are too few workers. Waiting grows as 1/(1 - busy): four
times that of an idle one here, ten times at 0.9, and a quarter is left for bursts."""
QUEUE_TIME = 0.05
"""Mean queue time, in seconds, above which there are too few, however busy they are: a hundred
times that of an idle loop, and by then a caller feels it."""
IDLE = 0.5
"""Mean busy share that one worker less must stay below. Two thirds of `BUSY`, so that no steady
load is too much for one size and too little for the next."""
UP_AFTER = 5.0
"""Seconds of too much work before there are more workers: longer than a garbage collection, a
burst of a batch or the start of a client."""
DOWN_AFTER = 60.0
"""Seconds of too little work before there is one less: a worker costs memory, one too few calls."""
STEP = 0.25
"""The share by which the team grows at a time, rounded down, at least by one worker: callers have
to find the new ones and to warm them up."""
PAUSE = 10.0
"""Seconds after any change, or a reload, in which nothing is decided: a worker starts, registers, and is found
within them, and what was measured before says nothing about the new size."""
OVER = 10.0
"""Seconds that what workers say is averaged over."""
EVERY = 1.0
"""Seconds between two looks, as often as workers say something."""
LESS = 0.9
"""The part of a load that once was too much for a size, below which the size is tried again."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Another number of workers, and why."""

    size: int
    why: str


class Scaler:
    """Decides between `minimum` and `maximum`; give it a look whenever workers said something."""

    def __init__(self, minimum: int, maximum: int) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self._looks: deque[tuple[float, float, float]] = deque()
        self._next_look = 0.0
        self._pause_until: float | None = None
        self._too_much_since: float | None = None
        self._too_little_since: float | None = None
        self._too_small = (0, 0.0)
        """The size that was grown from last, and the load that was too much for it."""

    def __repr__(self) -> str:
        return f"<Scaler {self.minimum}..{self.maximum}>"

    def pause(self, now: float) -> None:
        """Decide nothing while something else moves calls about, and then from new figures alone.

        What begins or leaves in a reload is busy with itself. A size that was chosen for it would
        be taken back as soon as it is over.
        """
        self._pause_until = now + PAUSE
        self._too_much_since = self._too_little_since = None
        self._looks.clear()

    def look(self, now: float, size: int, loads: Sequence[Load]) -> Wanted | None:
        """Return another size than `size` if one is wanted now; `loads`: of the ready workers."""
        if self._pause_until is None:
            self._pause_until = now + PAUSE  # they have only just been started
        if now < self._pause_until or now < self._next_look or not loads:
            return None
        self._next_look = now + EVERY
        self._looks.append(
            (
                now,
                statistics.fmean(load.busy for load in loads),
                statistics.fmean(load.queue_time for load in loads),
            )
        )
        while self._looks[0][0] < now - OVER:
            self._looks.popleft()
        busy = statistics.fmean(look[1] for look in self._looks)
        queue_time = statistics.fmean(look[2] for look in self._looks)
        if (wanted := self._more(now, size, busy, queue_time)) is not None:
            self._too_small = (size, busy * size)
            return self._changed(now, wanted)
        if (wanted := self._fewer(now, size, busy, queue_time)) is not None:
            return self._changed(now, wanted)
        return None

    def _more(self, now: float, size: int, busy: float, queue_time: float) -> Wanted | None:
        if size >= self.maximum or (busy <= BUSY and queue_time <= QUEUE_TIME):
            self._too_much_since = None
            return None
        if self._too_much_since is None:
            self._too_much_since = now
        if now - self._too_much_since < UP_AFTER:
            return None
        more = min(self.maximum, size + max(1, int(size * STEP)))
        if busy > BUSY:
            return Wanted(more, f"busy {busy:.0%} (above {BUSY:.0%})")
        waits = f"{queue_time * 1e3:.0f} ms"
        return Wanted(more, f"queue time {waits} (above {QUEUE_TIME * 1e3:.0f} ms)")

    def _fewer(self, now: float, size: int, busy: float, queue_time: float) -> Wanted | None:
        load = busy * size
        too_small, too_much = self._too_small
        if (
            size <= self.minimum
            or load / (size - 1) >= IDLE
            or queue_time > QUEUE_TIME
            or (size - 1 <= too_small and load >= LESS * too_much)
        ):
            self._too_little_since = None
            return None
        if self._too_little_since is None:
            self._too_little_since = now
        if now - self._too_little_since < DOWN_AFTER:
            return None
        less = load / (size - 1)
        return Wanted(size - 1, f"busy {busy:.0%}, and {less:.0%} with one less")

    def _changed(self, now: float, wanted: Wanted) -> Wanted:
        self.pause(now)
        return wanted

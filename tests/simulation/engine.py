"""Discrete events under virtual time: what happens next, and when.

A simulation is a heap of events. Running it takes the earliest one, sets the clock to its time and
does what it says, which may schedule more. Nothing waits and nothing is random but by the seed: two
runs are the same to the last bit. Each part draws from a stream of its own, so that switching one
part off (`without ejection`) leaves what the others draw as it was.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable


class Event:
    """Something due; `cancel` it and it never happens."""

    __slots__ = ("action", "args")

    def __init__(self, action: Callable[..., None], args: tuple) -> None:
        self.action: Callable[..., None] | None = action
        self.args = args

    def cancel(self) -> None:
        """Let it not happen; nothing, if it has."""
        self.action = None


class Simulation:
    """Virtual time in seconds from 0, and what is due in it."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self._seed = seed
        self._due: list[tuple[float, int, Event]] = []
        self._number = itertools.count()

    def __repr__(self) -> str:
        return f"<Simulation at {self.now:.3f} s, {len(self._due)} due>"

    def rng(self, name: str) -> random.Random:
        """Return the stream of randomness that belongs to `name`."""
        return random.Random(f"{self._seed}/{name}")

    def at(self, time: float, action: Callable[..., None], *args: object) -> Event:
        """Do `action(*args)` at `time`; what is due at the same time happens in this order."""
        event = Event(action, args)
        heapq.heappush(self._due, (max(time, self.now), next(self._number), event))
        return event

    def after(self, delay: float, action: Callable[..., None], *args: object) -> Event:
        """Do `action(*args)` in `delay` seconds."""
        return self.at(self.now + delay, action, *args)

    def run(self, until: float) -> None:
        """Let everything happen that is due by `until`."""
        due = self._due
        while due and due[0][0] <= until:
            self.now, _, event = heapq.heappop(due)
            if event.action is not None:
                event.action(*event.args)
        self.now = until

    def arrivals(
        self, name: str, rate: float, until: float, action: Callable[[], None], start: float = 0.0
    ) -> None:
        """Do `action()` `rate` times a second on average, as independent people do (Poisson)."""
        rng = self.rng(name)

        def arrive() -> None:
            if self.now < until:
                self.after(rng.expovariate(rate), arrive)
                action()

        self.at(start + rng.expovariate(rate), arrive)

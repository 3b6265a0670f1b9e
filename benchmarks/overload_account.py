"""What overload did, as figures, and whether they are what was promised; pure.

Goodput is what was answered within the deadline, counted from when a call was due. The goals are
those of docs/overload.md: what is possible when refusing a call costs a server about as much as
taking it off the wire does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.overload_load import HELD_BACK, Sent

QUEUE_BOUND = 0.02
"""Seconds that a call may wait for its turn, over what it takes at 0.8 of the capacity."""
RECOVERED = 0.95
"""Of the calls made, those that are good when a server has recovered."""
RECOVERY_GOAL = 5.0
VICTIMS_GOAL = 0.999
VICTIMS_SLOWER = 1.5

GOODPUT_GOALS = {
    # arm: (times the capacity, from this much handler CPU on, of the peak)
    "server": ((2.0, 0.001, 0.85), (10.0, 0.005, 0.70)),
    "mesh": ((10.0, 0.0007, 0.90),),
}
"""What goodput must be; a bare server has no goals."""

_WINDOW, _STEP = 1.0, 0.25
"""Seconds that a recovery is looked at through, and by which the window moves."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What became of some calls; rates are calls a second."""

    offered: float
    good: float
    refused: dict[str, float]
    """What the server refused or failed, by status."""
    held_back: float
    """What the callers refused themselves."""
    expired: float
    p50: float | None
    p99: float | None
    """Seconds of the good ones."""

    @property
    def success(self) -> float:
        """The part of the calls that was good."""
        return self.good / self.offered if self.offered else math.nan


@dataclass(frozen=True, slots=True)
class Step:
    """One load on one arm."""

    arm: str
    times: float
    """Of the capacity, what was meant to be offered."""
    peak: float
    """The capacity, in calls a second."""
    figures: Figures
    skipped: float
    """Calls a second that the callers' process could not send in time."""
    server_cpu: float
    server_missed: float
    """What the server wanted, and other programs had."""
    load_cpu: float
    """These are shares of one core."""

    @property
    def offered(self) -> float:
        """What was really offered, in multiples of the capacity."""
        return self.figures.offered / self.peak

    @property
    def of_peak(self) -> float:
        """Goodput, as a part of the capacity."""
        return self.figures.good / self.peak

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "of_peak": self.of_peak}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One promise: what was found, and whether that is enough."""

    about: str
    found: str
    goal: str
    met: bool


def figures(sent: Iterable[Sent], deadline: float, start: float, end: float) -> Figures:
    """Return what became of the calls that were due between `start` and `end`."""
    calls = [each for each in sent if start <= each.due < end]
    good = sorted(each.took for each in calls if is_good(each, deadline))
    outcomes = Counter(each.outcome for each in calls)
    ok = outcomes.pop("OK", 0)
    expired = outcomes.pop("DEADLINE_EXCEEDED", 0) + ok - len(good)
    held_back = outcomes.pop(HELD_BACK, 0)
    seconds = end - start
    return Figures(
        offered=len(calls) / seconds,
        good=len(good) / seconds,
        refused={name: count / seconds for name, count in sorted(outcomes.items())},
        held_back=held_back / seconds,
        expired=expired / seconds,
        p50=percentile(good, 0.50),
        p99=percentile(good, 0.99),
    )


def is_good(call: Sent, deadline: float) -> bool:
    """Whether it was answered in time."""
    return call.outcome == "OK" and call.took <= deadline


def percentile(ranked: Sequence[float], part: float) -> float | None:
    """Return the value that `part` of them are at most; None if there are none."""
    return ranked[min(len(ranked) - 1, int(part * len(ranked)))] if ranked else None


def recovered_after(
    sent: Sequence[Sent], deadline: float, normal: float, start: float, end: float
) -> float | None:
    """Return the seconds from `start`, when the load went back, until all was well; None: never.

    Well is a second, and the one after it, in which enough calls were good and their p99 was at
    most `normal`.
    """
    count = int((end - start - 2 * _WINDOW) / _STEP) + 1
    for number in range(count):
        at = start + number * _STEP
        if all(
            is_well(figures(sent, deadline, begin, begin + _WINDOW), normal)
            for begin in (at, at + _WINDOW)
        ):
            return at - start
    return None


def is_well(found: Figures, normal: float) -> bool:
    """Whether a second was as it should be."""
    return found.success >= RECOVERED and found.p99 is not None and found.p99 <= normal


def normal_p99(steps: Iterable[Step], arm: str) -> float | None:
    """Return the p99 at 0.8 of the capacity, which is where "bounded" begins."""
    return next((s.figures.p99 for s in steps if s.arm == arm and s.times == 0.8), None)


def verdicts(
    cpu: float, steps: Sequence[Step], recoveries: dict[str, float | None]
) -> list[Verdict]:
    """Return what is to be said of the mesh's arms with a handler of `cpu` seconds."""
    said = []
    for arm, goals in GOODPUT_GOALS.items():
        own = [step for step in steps if step.arm == arm]
        said += [
            Verdict(
                f"{arm}, {times:g}x: goodput of peak",
                f"{step.of_peak:.0%}",
                f">= {goal:.0%}",
                step.of_peak >= goal,
            )
            for times, least_cpu, goal in goals
            for step in own
            if step.times == times and cpu >= least_cpu
        ]
        normal = normal_p99(own, arm)
        for step in own:
            if step.times > 1 and normal is not None:
                p99, bound = step.figures.p99, 2 * normal + QUEUE_BOUND
                said.append(
                    Verdict(
                        f"{arm}, {step.times:g}x: p99 of what was accepted",
                        milliseconds(p99),
                        f"<= {milliseconds(bound)}",
                        p99 is not None and p99 <= bound,
                    )
                )
        if arm in recoveries:
            after = recoveries[arm]
            said.append(
                Verdict(
                    f"{arm}: well again after the most",
                    "never" if after is None else f"{after:.2f} s",
                    f"<= {RECOVERY_GOAL:g} s",
                    after is not None and after <= RECOVERY_GOAL,
                )
            )
    return said


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Nine callers, before and while a tenth one asked for ten times its share."""

    arm: str
    before: Figures
    victims: Figures
    aggressor: Figures

    @property
    def slower(self) -> float:
        """The victims' p99, in multiples of what it was before."""
        if self.before.p99 is None or self.victims.p99 is None:
            return math.inf
        return self.victims.p99 / self.before.p99

    def verdicts(self) -> list[Verdict]:
        """Return what is to be said; of a bare server nothing."""
        if self.arm not in GOODPUT_GOALS:
            return []
        success = self.victims.success
        return [
            Verdict(
                f"{self.arm}: success of the other nine",
                f"{success:.2%}",
                f">= {VICTIMS_GOAL:.1%}",
                success >= VICTIMS_GOAL,
            ),
            Verdict(
                f"{self.arm}: their p99",
                f"{self.slower:.2f}x",
                f"<= {VICTIMS_SLOWER:g}x",
                self.slower <= VICTIMS_SLOWER,
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "victims_success": self.victims.success, "slower": self.slower}


def milliseconds(value: float | None) -> str:
    """Return seconds for people."""
    return "" if value is None else f"{value * 1000:.0f} ms"

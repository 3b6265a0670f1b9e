"""Times of short statements: every case in turn, over and over, so that all see the same noise.

`timeit` measures one case to its end, and whatever ran in a slow second looks slow; here all cases
share it. Times are CPU time, so that waiting for other programs does not count, and include the loop
itself, some 10 ns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import timeit
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_LONG_ENOUGH = 0.01
"""Seconds of one measurement."""


@dataclass(frozen=True, slots=True)
class Time:
    """What one case took, in nanoseconds a time."""

    median: float
    best: float
    worst: float


class Cases:
    """Statements to be compared; the first one added is the peer of all."""

    def __init__(self) -> None:
        self._timers: dict[str, timeit.Timer] = {}

    def add(self, name: str, statement: str, **names: Any) -> None:
        """Add a case: a statement, and what it may name."""
        self._timers[name] = timeit.Timer(statement, timer=time.process_time, globals=names)

    def measure(self, rounds: int) -> dict[str, Time]:
        """Return each case's times over `rounds` rounds through all of them."""
        numbers = {name: _number(timer) for name, timer in self._timers.items()}
        taken: dict[str, list[float]] = {name: [] for name in self._timers}
        for _ in range(rounds):
            for name, timer in self._timers.items():
                taken[name].append(timer.timeit(numbers[name]) / numbers[name] * 1e9)
        return {
            name: Time(statistics.median(times), min(times), max(times))
            for name, times in taken.items()
        }


def _number(timer: timeit.Timer) -> int:
    number = 1
    while (took := timer.timeit(number)) < _LONG_ENOUGH / 4:
        number *= 4
    return max(1, round(number * _LONG_ENOUGH / took))


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def arguments(about: str) -> argparse.Namespace:
    """Return the command line that both of these benchmarks have."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=25, help="through all cases (25)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser.parse_args()


def show(times: Mapping[str, Time], output: str, **more: Any) -> None:
    """Print the times; the first case is the peer that the others are told in."""
    peer = next(iter(times.values())).median
    if output == "json":
        cases = {name: {**asdict(t), "ratio": t.median / peer} for name, t in times.items()}
        print(json.dumps({"machine": machine(), "unit": "ns", "cases": cases, **more}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{'case':<44} {'median':>9} {'best':>9} {'worst':>9} {'x peer':>8}")
    for name, t in times.items():
        figures = f"{t.median:>6.0f} ns {t.best:>6.0f} ns {t.worst:>6.0f} ns"
        print(f"{name:<44} {figures} {t.median / peer:>7.2f}x")
    for what, value in more.items():
        print(f"{what.replace('_', ' ')}: {value}")

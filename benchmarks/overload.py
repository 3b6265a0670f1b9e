"""A server that gets more calls than it can answer, beside bare `grpc.aio`: `make bench-overload`.

Handlers of 1, 5 and 20 ms of CPU, open-loop load of 0.5 to 10 times what the server can do, then back
to half of it. Three arms in the same run, a step of each after the other: `bare` is grpc.aio at both
ends; `server` is a `Service` with the same bare callers, who neither throttle nor retry; `mesh` is a
`Service` and `Mesh.channel`. No control service, no policy: what is on by default.

Then ten callers on connections of their own, 8 % of the capacity each, of whom one asks for ten times
as much.

Where there are two cores, servers get one and callers the other; what becomes of calls is then the
server's doing alone. Capacity is what one server answers in a closed loop, on that one core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc

import meshrpc
from benchmarks import overload_curve
from benchmarks.overhead import Worker
from benchmarks.overload_account import (
    Figures,
    Neighbours,
    Step,
    Verdict,
    figures,
    milliseconds,
    normal_p99,
    recovered_after,
    verdicts,
)
from benchmarks.overload_curve import Recovery
from benchmarks.overload_load import ClosedLoop, Load, OpenLoop, Phase, generate
from benchmarks.overload_server import serve

ARMS = {"bare": ("bare", "bare"), "server": ("mesh", "bare"), "mesh": ("mesh", "mesh")}
"""Each arm's kind of server and of callers."""

CALLERS = 10
SHARE = 0.08
"""Of the capacity, what each of the neighbours asks for."""
NEIGHBOURS_CPU = 0.005
PAUSE = 0.7
"""Seconds between steps, in which a queue of the last one is worked off."""
PEAK_ROUNDS = 3
STARVED = 0.1
"""Of its core, what a server misses when a step says little about it."""


@dataclass(frozen=True, slots=True)
class Length:
    """Seconds of each part of the run."""

    step: float
    settle: float
    """Of a step and of overload, what is left out of its figures at first."""
    overload: float
    after: float
    peak: float
    calm: float
    """Of the neighbours, before one of them wants more."""
    siege: float


FULL = Length(step=4.0, settle=1.5, overload=5.0, after=7.0, peak=1.0, calm=8.0, siege=12.0)
QUICK = Length(step=2.0, settle=0.7, overload=3.0, after=5.0, peak=0.5, calm=4.0, siege=5.0)


@dataclass(slots=True)
class Found:
    """What one handler CPU came to."""

    deadline: float
    peaks: dict[str, float] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    recoveries: dict[str, float | None] = field(default_factory=dict)
    runs: dict[str, Recovery] = field(default_factory=dict)


class Arm:
    """One arm's server and its callers."""

    def __init__(self, name: str, cpu: float, exits: ExitStack) -> None:
        self.name = name
        self._exits = exits
        self._kind, self._callers_kind = ARMS[name]
        with on(0):
            self._server = Worker(serve, self._kind, cpu)
        exits.callback(self._server.close)

    def connect(self, callers: int) -> None:
        """Start the callers; `wait` returns when they are there."""
        address = self._server.answer()
        with on(1):
            self._load = Worker(generate, self._callers_kind, address, callers)
            # Capacity is the server's: whose callers find it out must make no difference.
            self._probe = Worker(generate, "bare", address, 1)
        self._exits.callback(self._load.close)
        self._exits.callback(self._probe.close)

    def wait(self) -> None:
        self._load.answer()
        self._probe.answer()

    def peak(self, cpu: float, seconds: float) -> float:
        """Return the calls a second that the server answers, with no more waiting than it takes."""
        found: float = self._probe.ask(ClosedLoop(max(2, math.ceil(0.004 / cpu)), seconds))
        return found

    def offer(
        self, phases: tuple[Phase, ...], deadline: float, seed: int
    ) -> tuple[Load, float, float]:
        """Return what became of the load, and of the core in the first phase.

        That is the shares that the server used, and that it wanted and others had.
        """
        with ThreadPoolExecutor(1) as pool:
            load: Future[Load] = pool.submit(self._load.ask, OpenLoop(phases, deadline, seed))
            cpu, missed, _ = self._server.ask("usage")
            begun = time.monotonic()
            time.sleep(phases[0].seconds)
            cpu_now, missed_now, _ = self._server.ask("usage")
            elapsed = time.monotonic() - begun
            return load.result(), (cpu_now - cpu) / elapsed, max(0.0, missed_now - missed) / elapsed


def begin(names: Sequence[str], cpu: float, callers: int, exits: ExitStack) -> list[Arm]:
    """Return arms that are ready."""
    arms = [Arm(name, cpu, exits) for name in names]
    for arm in arms:
        arm.connect(callers)
    for arm in arms:
        arm.wait()
    return arms


@contextlib.contextmanager
def on(core: int) -> Iterator[None]:
    """Have processes that are started here run on one core, where there are two."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    all_cores = os.sched_getaffinity(0)
    if len(all_cores) > 1:
        os.sched_setaffinity(0, {sorted(all_cores)[core]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


def measure(cpu: float, given: argparse.Namespace, length: Length) -> Found:
    """Put all arms with a handler of `cpu` seconds under load."""
    found = Found(deadline=deadline_of(cpu))
    with ExitStack() as exits:
        arms = begin(given.arms, cpu, 1, exits)
        rounds: dict[str, list[float]] = {arm.name: [] for arm in arms}
        for _ in range(PEAK_ROUNDS):
            for arm in arms:
                rounds[arm.name].append(arm.peak(cpu, length.peak))
        found.peaks = {name: statistics.median(each) for name, each in rounds.items()}
        for times in sorted(given.times)[:-1]:
            for arm in arms:
                say(f"{cpu * 1000:g} ms, {times:g}x, {arm.name}")
                phases = (Phase(length.step, (times * found.peaks[arm.name],)),)
                load, *core = arm.offer(phases, found.deadline, given.seed)
                found.steps.append(
                    step(arm.name, times, found, load, core, length.settle, length.step)
                )
                time.sleep(PAUSE)
        for arm in arms:
            overload(arm, found, max(given.times), given.seed, length)
    return found


def overload(arm: Arm, found: Found, times: float, seed: int, length: Length) -> None:
    """Offer the most, then half of the capacity: the last step, and how it is recovered from."""
    say(f"{times:g}x, then 0.5x, {arm.name}")
    peak, back = found.peaks[arm.name], length.overload
    end = back + length.after
    phases = (Phase(back, (times * peak,)), Phase(length.after, (0.5 * peak,)))
    load, *core = arm.offer(phases, found.deadline, seed)
    found.steps.append(step(arm.name, times, found, load, core, length.settle, back))
    normal = normal_p99(found.steps, arm.name)
    limit = found.deadline if normal is None else min(found.deadline, 2 * normal)
    found.recoveries[arm.name] = recovered_after(load.sent, found.deadline, limit, back, end)
    found.runs[arm.name] = Recovery(load.sent, back, end)


def step(
    arm: str,
    times: float,
    found: Found,
    load: Load,
    core: Sequence[float],
    start: float,
    end: float,
) -> Step:
    return Step(
        arm=arm,
        times=times,
        peak=found.peaks[arm],
        figures=figures(load.sent, found.deadline, start, end),
        skipped=sum(start <= due < end for due in load.skipped) / (end - start),
        server_cpu=core[0],
        server_missed=core[1],
        load_cpu=load.cpu,
    )


def deadline_of(cpu: float) -> float:
    return 1.0 if cpu >= 0.02 else 0.25


def besiege(given: argparse.Namespace, length: Length) -> list[Neighbours]:
    """Have one of ten callers ask for ten times its share."""
    cpu, found = NEIGHBOURS_CPU, []
    deadline = deadline_of(cpu)
    with ExitStack() as exits:
        arms = begin(given.arms, cpu, CALLERS, exits)
        for arm in arms:
            say(f"neighbours, {arm.name}")
            peak = statistics.median(arm.peak(cpu, length.peak) for _ in range(PEAK_ROUNDS))
            share = SHARE * peak
            calm = Phase(length.calm, (share,) * CALLERS)
            siege = Phase(length.siege, (CALLERS * share, *(share,) * (CALLERS - 1)))
            load, *_ = arm.offer((calm, siege), deadline, given.seed)
            victims = [each for each in load.sent if each.caller]
            aggressor = [each for each in load.sent if not each.caller]
            start, end = length.calm, length.calm + length.siege
            found.append(
                Neighbours(
                    arm.name,
                    before=figures(victims, deadline, 1.0, start),
                    victims=figures(victims, deadline, start, end),
                    aggressor=figures(aggressor, deadline, start, end),
                )
            )
    return found


# The account.

COLUMNS = (
    *("arm", "load", "offered/s", "goodput/s", "of peak", "refused/s", "held back/s"),
    *("expired/s", "p50", "p99", "server CPU", "missed", "callers' CPU"),
)


def row(each: Step) -> tuple[str, ...]:
    short = "" if each.skipped < 0.02 * each.figures.offered else f" ({each.skipped:.0f} not sent)"
    return (
        each.arm,
        f"{each.times:g}x",
        f"{each.figures.offered:.0f}{short}",
        f"{each.figures.good:.0f}",
        f"{each.of_peak:.0%}",
        refusals(each.figures),
        f"{each.figures.held_back:.0f}",
        f"{each.figures.expired:.0f}",
        milliseconds(each.figures.p50),
        milliseconds(each.figures.p99),
        f"{each.server_cpu:.0%}",
        f"{each.server_missed:.0%}",
        f"{each.load_cpu:.0%}",
    )


def refusals(found: Figures) -> str:
    return (
        ", ".join(
            f"{rate:.{0 if rate >= 10 else 1}f} {name}" for name, rate in found.refused.items()
        )
        or "0"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows for people, in Markdown."""
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def verdict_table(said: Sequence[Verdict]) -> str:
    rows = [
        (each.about, each.found, each.goal, "met" if each.met else "**missed**") for each in said
    ]
    return table(("promise", "found", "goal", ""), rows)


def show(loads: dict[float, Found], neighbours: Sequence[Neighbours]) -> None:
    """Print everything for people."""
    for cpu, found in loads.items():
        peaks = ", ".join(f"{name} {peak:.0f}/s" for name, peak in found.peaks.items())
        print(
            f"\nHandler {cpu * 1000:g} ms CPU, deadline {found.deadline * 1000:g} ms; peak {peaks}"
        )
        ordered = sorted(found.steps, key=lambda each: list(ARMS).index(each.arm))
        print(f"\n{table(COLUMNS, [row(each) for each in ordered])}")
        well = ", ".join(
            f"{name} {'never' if after is None else f'after {after:.2f} s'}"
            for name, after in found.recoveries.items()
        )
        print(f"\nWell again: {well}")
        starved = sum(each.server_missed > STARVED for each in found.steps)
        if starved:
            print(
                f"In {starved} of {len(found.steps)} steps other programs had more than "
                f"{STARVED:.0%} of the server's core: those say more about them."
            )
        print()
        print(verdict_table(verdicts(cpu, found.steps, found.recoveries)))
    if neighbours:
        print(f"\nTen callers, {NEIGHBOURS_CPU * 1000:g} ms CPU, one at ten times its share\n")
        columns = (
            *("arm", "success of the nine", "refused/s", "p99 before", "p99", "slower"),
            "the tenth's goodput/s",
        )
        rows = [
            (
                each.arm,
                f"{each.victims.success:.2%}",
                refusals(each.victims),
                milliseconds(each.before.p99),
                milliseconds(each.victims.p99),
                f"{each.slower:.2f}x",
                f"{each.aggressor.good:.0f} of {each.aggressor.offered:.0f}",
            )
            for each in neighbours
        ]
        print(f"{table(columns, rows)}\n")
        print(verdict_table([said for each in neighbours for said in each.verdicts()]))


def to_json(loads: dict[float, Found], neighbours: Sequence[Neighbours]) -> dict[str, Any]:
    return {
        "loads": [
            {
                "handler_cpu": cpu,
                "deadline": found.deadline,
                "peaks": found.peaks,
                "steps": [each.to_json() for each in found.steps],
                "recovered_after": found.recoveries,
                "verdicts": [asdict(v) for v in verdicts(cpu, found.steps, found.recoveries)],
            }
            for cpu, found in loads.items()
        ],
        "neighbours": [each.to_json() for each in neighbours],
        "neighbours_verdicts": [asdict(v) for each in neighbours for v in each.verdicts()],
    }


def machine(load_average: float) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "meshrpc": meshrpc.__version__,
        "cpus": os.cpu_count(),
        "load_average_before": round(load_average, 2),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overload", description="What overload does to goodput."
    )
    parser.add_argument(
        "--quick", action="store_true", help="less of it, and no neighbours, under a minute"
    )
    parser.add_argument(
        "--cpu", type=float, nargs="+", metavar="MS", help="ms of handler CPU (1 5 20; quick: 5)"
    )
    parser.add_argument(
        "--times",
        type=float,
        nargs="+",
        metavar="X",
        help="loads in multiples of the capacity (0.5 0.8 1 2 5 10; quick: 0.8 2 10)",
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--only", choices=("load", "neighbours"), help="one of the two parts")
    parser.add_argument("--draw", action="store_true", help="draw docs/curves/overload*.svg anew")
    parser.add_argument("--seed", type=int, default=7, help="of the arrivals (7)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args()
    given.cpu = given.cpu or ([5.0] if given.quick else [1.0, 5.0, 20.0])
    given.times = given.times or ([0.8, 2.0, 10.0] if given.quick else [0.5, 0.8, 1, 2, 5, 10])
    if min(*given.cpu, *given.times, 1) <= 0:
        parser.error("numbers must be above 0")
    return given


def main() -> None:
    given = parse()
    length = QUICK if given.quick else FULL
    about = machine(os.getloadavg()[0])
    loads: dict[float, Found] = {}
    if given.only != "neighbours":
        loads = {cpu / 1000: measure(cpu / 1000, given, length) for cpu in given.cpu}
    neighbours: list[Neighbours] = []
    if given.only == "neighbours" or not (given.only or given.quick):
        neighbours = besiege(given, length)
    if given.draw and loads:
        overload_curve.draw(charts(loads))
    if given.output == "json":
        print(json.dumps({"machine": about, **to_json(loads, neighbours)}, indent=2))
        return
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items()))
    show(loads, neighbours)


def charts(loads: dict[float, Found]) -> list[overload_curve.Chart]:
    """Return the pictures: all loads, and the recovery of the one in the middle."""
    goodput = overload_curve.goodput({cpu: (f.deadline, f.steps) for cpu, f in loads.items()})
    cpu, found = sorted(loads.items())[len(loads) // 2]
    return [goodput, overload_curve.recovery(cpu, found.deadline, found.runs)]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None

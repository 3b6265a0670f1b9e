"""What calls become when instances break, beside bare `grpc.aio`: `python -m benchmarks.faults`.

Real processes: a control service, four instances, 200 calls a second in each arm, half of them
idempotent, handlers of 20 ms, a deadline of a second. Arm `mesh` is `Mesh.channel` with no policy at
all; arm `bare` is a `grpc.aio` channel to the same instances with round_robin and grpc's defaults
otherwise. Both get the same calls at the same times, from one process, through every fault at once.

The rig is that of `tests/faults/`, where the claims are tests; here are the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import grpc

import meshrpc
from tests.faults import scenarios
from tests.faults.account import FAST, SETTLED, Account, account
from tests.faults.load import DEADLINE, RATE, Run
from tests.faults.methods import GET
from tests.faults.network import LOCAL, Namespace
from tests.faults.rig import Fleet, Rig, RigError


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault: what it is called, whom it hits, and how it comes and goes."""

    name: str
    about: str
    fleet: str
    play: Callable[..., Coroutine[Any, Any, Run]]
    policy: str = ""
    """What the mesh's arm follows; nothing but the defaults unless given."""
    once: bool = True
    """Whether the fault begins once: then it can be told how long calls failed for it."""

    @property
    def apart(self) -> bool:
        """Whether it needs a network namespace."""
        return self.fleet == "apart"


def scenario(
    name: str, about: str, play: Callable[..., Any], *, fleet: str = "direct", **more: Any
) -> Scenario:
    return Scenario(name, about, fleet, play, **more)


def one_by_one(play: Callable[..., Any], rate: float) -> Callable[..., Any]:
    """Return a scenario at a rate of its own."""
    return lambda fleet, _rig, **_: play(fleet, rate=rate)


def on(play: Callable[..., Any], *arguments: Any, **fixed: Any) -> Callable[..., Any]:
    """Return a scenario at the rate that is asked for."""
    return lambda fleet, _rig, rate: play(fleet, *arguments, rate=rate, **fixed)


def losing(lose: str, find: str) -> Callable[..., Any]:
    """Return a scenario in which the kernel loses packets."""

    def play(fleet: Fleet, rig: Rig, rate: float) -> Any:
        network = rig.network
        return scenarios.lose_packets(
            fleet, getattr(network, lose), getattr(network, find), rate=rate
        )

    return play


def failing_leaf(fleet: Any, rig: Rig, rate: float) -> Any:  # noqa: ARG001 - as the others
    front, leaf = fleet
    return scenarios.fail_leaf(front, leaf, rate=rate / 2, methods=(GET,))


SCENARIOS = (
    scenario(
        "killed",
        "kill -9 of one, ten times, one after the other",
        on(scenarios.kill_in_turn),
        once=False,
    ),
    scenario(
        "flapping",
        "one killed and started, 2 s down, 2 s up, three times",
        on(scenarios.flap_one),
        once=False,
    ),
    scenario("frozen", "SIGSTOP of one for 5 s", on(scenarios.freeze_one)),
    scenario(
        "frozen-attempts",
        "the same, with a policy of 200 ms an attempt",
        on(scenarios.freeze_one),
        policy="retry: {per_attempt_timeout: 200ms}",
    ),
    scenario(
        "blackholed",
        "nothing passes to or from one for 5 s (proxy)",
        on(scenarios.blackhole_one),
        fleet="wired",
    ),
    scenario(
        "one-way",
        "the kernel drops all answers of one for 5 s",
        losing("swallow", "pass_on"),
        fleet="apart",
    ),
    scenario("link-down", "the link to one is down for 5 s", losing("cut", "join"), fleet="apart"),
    scenario(
        "refusing",
        "connections to one reset and refused for 3 s",
        on(scenarios.refuse_one),
        fleet="wired",
    ),
    scenario("failing", "one answers UNAVAILABLE for 5 s", on(scenarios.misbehave_one, "fail")),
    scenario(
        "two-failing",
        "two of four answer UNAVAILABLE for 5 s",
        on(scenarios.misbehave_half, "fail"),
    ),
    scenario("slow", "one takes 20 times as long for 10 s", on(scenarios.slow_one)),
    scenario("hanging", "one never answers for 5 s", on(scenarios.misbehave_one, "hang")),
    scenario(
        "blocked",
        "every call to one blocks its event loop for 0.5 s, for 5 s",
        on(scenarios.misbehave_one, "block"),
    ),
    scenario("half", "two of four blackholed for 5 s", on(scenarios.blackhole_half), fleet="wired"),
    *(
        scenario(
            f"all-fail-{rate}",
            f"all answer UNAVAILABLE for 4 s, {rate} calls/s; back one by one",
            one_by_one(scenarios.fail_all, rate),
        )
        for rate in (20, 100, 500)
    ),
    *(
        scenario(
            f"all-killed-{rate}",
            f"all killed for 3 s, {rate} calls/s; back one by one",
            one_by_one(scenarios.kill_all, rate),
        )
        for rate in (20, 100, 500)
    ),
    scenario(
        "chain",
        "three services deep, the last one fails for 4 s, half the rate",
        failing_leaf,
        fleet="chain",
    ),
)


class Fleets:
    """The fleets of a rig, each started when the first scenario needs it."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._fleets: dict[str, list[Fleet]] = {}

    def get(self, name: str) -> Any:
        """Return a fleet in good health; of a chain the first and the last."""
        if name in self._fleets:
            for fleet in self._fleets[name]:
                fleet.heal()
        else:
            self._fleets[name] = list(self._start(name))
        fleets = self._fleets[name]
        return fleets[0] if len(fleets) == 1 else (fleets[-1], fleets[0])

    def _start(self, name: str) -> Any:
        rig = self._rig
        match name:
            case "direct":
                yield rig.fleet(name)
            case "wired":
                yield rig.fleet(name, wired=True)
            case "apart":
                yield rig.fleet(name, apart=1)
            case "chain":
                yield rig.fleet("leaf", 2)
                yield rig.fleet("middle", 2, calls="leaf")
                yield rig.fleet("front", 2, calls="middle")


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario's figures; `leaf` is how many calls arrived at the leaf of a chain for each call."""

    scenario: Scenario
    lag: float
    arms: dict[str, Account]
    leaf: float | None = None


def play(given: argparse.Namespace) -> list[Row]:
    """Play every scenario that is wanted and possible here."""
    rows: list[Row] = []
    why_not = Namespace.why_not()
    chosen = [each for each in SCENARIOS if not given.only or each.name in given.only]
    if why_not:
        for each in chosen:
            if each.apart:
                say(f"{each.name}: left out: {why_not}")
        chosen = [each for each in chosen if not each.apart]
    with Rig(LOCAL if why_not else Namespace()) as rig:
        fleets = Fleets(rig)
        for number, each in enumerate(chosen, 1):
            began = time.monotonic()
            fleet = fleets.get(each.fleet)
            with fleet.following(each.policy) if each.policy else nullcontext():
                run = asyncio.run(each.play(fleet, rig, rate=given.rate))
            rows.append(row(each, run, fleet))
            say(f"{number} of {len(chosen)}: {each.name} ({time.monotonic() - began:.0f} s)")
    return rows


def row(each: Scenario, run: Run, fleet: Any) -> Row:
    leaf = None
    if each.fleet == "chain":
        begun = run.marks["failing"]
        leaf = len(fleet[1].executions(begun)) / len(run.mesh.meant(begun))
    arms = {name: account(run, name) for name in run.loads}
    if not each.once:
        arms = {name: replace(arm, failing_until=None) for name, arm in arms.items()}
    return Row(each, run.lag.worst, arms, leaf)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# The account.

COLUMNS: tuple[tuple[str, Callable[[Account], str]], ...] = (
    ("calls", lambda a: str(a.calls)),
    ("failed, idempotent", lambda a: str(a.failed_idempotent)),
    ("failed, others", lambda a: str(a.failed_other)),
    ("failing for", lambda a: seconds(a.failing_until)),
    ("p99", lambda a: milliseconds(a.p99)),
    ("past its deadline", lambda a: milliseconds(a.overdue)),
    ("attempts a call", lambda a: "" if a.attempts is None else f"{a.attempts:.2f}"),
    ("handlers begun a call", lambda a: f"{a.arrivals:.2f}"),
    ("back after", lambda a: seconds(a.back_after)),
)


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return "never" if math.isinf(value) else f"{value:.1f} s"


def milliseconds(value: float) -> str:
    return f"{value * 1000:.0f} ms"


def table(rows: list[Row]) -> str:
    """Return the table for people, in Markdown: a line for each arm of each fault."""
    names = [name for name, _ in COLUMNS]
    lines = [
        f"| fault | arm | {' | '.join(names)} |",
        f"|---|---|{'---:|' * len(names)}",
    ]
    for each in rows:
        about = each.scenario.about
        if each.leaf is not None:
            about += f": {each.leaf:.2f} arrivals at the leaf a call"
        for name, found in each.arms.items():
            cells = " | ".join(write(found) for _, write in COLUMNS)
            lines.append(f"| {about} | {name} | {cells} |")
            about = ""
    return "\n".join(lines)


def speeds(rows: list[Row]) -> str:
    """Return what the table has no place for: a line for each arm that had a slow instance."""
    lines = []
    for each in rows:
        for name, found in each.arms.items():
            if found.healthy_p99 is None or found.settled_p99 is None:
                continue
            times = found.settled_p99 / found.healthy_p99
            lines.append(
                f"* {each.scenario.about}, {name}: p99 {milliseconds(found.healthy_p99)} while all "
                f"were healthy, {milliseconds(found.settled_p99)} from {SETTLED:.0f} s after that "
                f"on ({times:.1f}x); at most {FAST:.0f}x what calls to the others take after "
                f"{seconds(found.fast_after)}"
            )
    return "\n".join(lines)


def machine(load_average: float) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "meshrpc": meshrpc.__version__,
        "cpus": os.cpu_count(),
        "load_average_before": round(load_average, 2),
    }


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description="What calls become when instances break."
    )
    parser.add_argument("--rate", type=float, default=RATE, help=f"calls/s in each arm ({RATE:g})")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[each.name for each in SCENARIOS],
        metavar="NAME",
        help=f"some of: {', '.join(each.name for each in SCENARIOS)}",
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args()
    if given.rate <= 0:
        parser.error("a rate is above 0")
    return given


def main() -> None:
    given = parse()
    logging.getLogger("meshrpc").addHandler(logging.NullHandler())  # the figures tell it
    about = machine(os.getloadavg()[0])
    try:
        rows = play(given)
    except RigError as error:
        raise SystemExit(f"error: {error}") from None
    if given.output == "json":
        found = [
            {
                "name": each.scenario.name,
                "about": each.scenario.about,
                "loop_lag": each.lag,
                "leaf_arrivals_a_call": each.leaf,
                "arms": {name: arm.to_json() for name, arm in each.arms.items()},
            }
            for each in rows
        ]
        print(json.dumps({"machine": about, "deadline": DEADLINE, "scenarios": found}, indent=2))
        return
    lag = max(each.lag for each in rows)
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items()))
    print(f"the callers' own event loop was late by {milliseconds(lag)} at most\n")
    print(table(rows))
    if about_speed := speeds(rows):
        print(f"\n{about_speed}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None

"""A flapping instance: one of four fails for five seconds of every ten.

Peak EWMA is not enough to tell what ejection does, for it leaves a failing endpoint after one
failure; so the instances take turns (`round_robin`), as under the balancers of most meshes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from meshrpc.policy.model import Balancer, BalancerKind, EffectivePolicy, Outlier, Retry
from tests.simulation.chart import Chart, Panel, Shade, line
from tests.simulation.client import Client, Ejection, Ended
from tests.simulation.engine import Simulation
from tests.simulation.measure import Points, by_stretch, succeeded
from tests.simulation.server import Server, State

RATE = 60.0
"""Calls per second."""
PERIOD = 10.0
"""Seconds up and down: half of it each."""
INSTANCES = 4
SERVICE_TIME = 0.02
TIMEOUT = 1.0

ROUND_ROBIN = replace(EffectivePolicy("flapping"), balancer=Balancer(BalancerKind.ROUND_ROBIN))
NO_RETRY = replace(ROUND_ROBIN, retry=Retry(attempts=1))
NEVER_EJECT = Outlier(consecutive_failures=1_000_000, success_rate_below=0.0)
BARE = replace(NO_RETRY, outlier=NEVER_EJECT)
"""Neither retries nor ejection."""
ONLY_RETRY = replace(ROUND_ROBIN, outlier=NEVER_EJECT)


@dataclass(frozen=True, slots=True)
class Flapping:
    """One run."""

    calls: list[Ended]
    ejections: list[Ejection]
    bad: list[float]
    """When attempts came to the instance while it was failing."""


def run(
    policy: EffectivePolicy, until: float, *, seed: int, fault: State = State.FAILING
) -> Flapping:
    """Let one of four instances flap for `until` seconds, from the first five on."""
    sim = Simulation(seed)
    servers = [Server(sim, f"payment-{n}", SERVICE_TIME, slots=4) for n in range(INSTANCES)]
    flapping = servers[0]
    client = Client(sim, "caller", servers, policy)
    calls: list[Ended] = []
    bad: list[float] = []

    def watch(state: State) -> None:
        if state is State.UP:
            bad.extend([sim.now] * (flapping.arrived - before[0]))
        before[0] = flapping.arrived

    before = [0]
    flapping.on_state.append(watch)
    sim.arrivals("calls", RATE, until, lambda: client.call(TIMEOUT, calls.append))
    for number in range(round(until / PERIOD)):
        sim.at(number * PERIOD + PERIOD / 2, flapping.set_state, fault)
        sim.at((number + 1) * PERIOD, flapping.set_state, State.UP)
    sim.run(until + TIMEOUT)
    return Flapping(calls, client.ejections, bad)


def chart(seed: int = 1, until: float = 230.0) -> Chart:
    """Draw what each of the means does about it."""
    bare, only_retry = run(BARE, until, seed=seed), run(ONLY_RETRY, until, seed=seed)
    ejecting, full = run(NO_RETRY, until, seed=seed), run(ROUND_ROBIN, until, seed=seed)
    return Chart(
        "flapping",
        "A flapping instance is asked ever less often",
        "One of four instances fails every call for 5 of every 10 s. Round robin, 60 calls/s.",
        (
            Panel(
                "Calls that fail",
                "time (s)",
                "% of calls",
                (
                    line("no retries, no ejection", _failed(bare, until), "bare"),
                    line("retries only", _failed(only_retry, until), "more"),
                    line("ejection only", _failed(ejecting, until), "else"),
                    line("both", _failed(full, until)),
                ),
                span=(0.0, until),
            ),
            Panel(
                "Attempts that meet the failing instance",
                "time (s)",
                "attempts per 10 s",
                (
                    line("without ejection", _bad(bare.bad, until), "bare", steps=True),
                    line("with ejection", _bad(full.bad, until), steps=True),
                ),
                span=(0.0, until),
            ),
            Panel(
                "How long each ejection lasts",
                "time (s)",
                "seconds",
                (line("the ejection under way", _lengths(full.ejections, until), steps=True),),
                shades=tuple(
                    Shade(start, min(until, start + PERIOD / 2))
                    for start in (PERIOD * n + PERIOD / 2 for n in range(round(until / PERIOD)))
                ),
                shade_label="failing",
            ),
        ),
    )


def _failed(flapping: Flapping, until: float) -> Points:
    stretches = by_stretch(flapping.calls, PERIOD, until)
    return [(at + PERIOD / 2, 100 * (1 - succeeded(calls))) for at, calls in stretches]


def _bad(times: Sequence[float], until: float) -> Points:
    count = Counter(int((at - PERIOD / 4) / PERIOD) for at in times)
    points = [(number * PERIOD, count[number]) for number in range(round(until / PERIOD))]
    return [*points, (until, points[-1][1])]


def _lengths(ejections: Sequence[Ejection], until: float) -> Points:
    points: Points = [(0.0, 0.0)]
    for each in ejections:
        points += ((each.at, each.until - each.at), (min(until, each.until), 0.0))
    return [*points, (until, 0.0)] if points[-1][0] < until else points

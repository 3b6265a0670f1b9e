"""A flapping instance: one of four fails for five seconds of every ten.

Peak EWMA is not enough to tell what ejection does, for it leaves a failing endpoint after one
failure; so the instances take turns (`round_robin`), as under the balancers of most meshes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshrpc.policy.model import Balancer, BalancerKind, EffectivePolicy, Outlier, Retry
from tests.simulation.client import Client, Ejection, Ended
from tests.simulation.engine import Simulation
from tests.simulation.server import Server, State

RATE = 100.0
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
        watched = flapping.arrived
        if state is State.UP:
            bad.extend([sim.now] * (watched - before[0]))
        before[0] = watched

    before = [0]
    flapping.on_state.append(watch)
    sim.arrivals("calls", RATE, until, lambda: client.call(TIMEOUT, calls.append))
    for number in range(round(until / PERIOD)):
        sim.at(number * PERIOD + PERIOD / 2, flapping.set_state, fault)
        sim.at((number + 1) * PERIOD, flapping.set_state, State.UP)
    sim.run(until + TIMEOUT)
    return Flapping(calls, client.ejections, bad)

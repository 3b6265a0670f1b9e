"""Several of many instances are bad: the cap on ejections, and panic.

Of ten instances, one up to all fail every call at once. A low cap keeps most of them in, for they
may fail together for a reason that is not theirs; a high one buries those that work under everybody's
load, were it not for the panic threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshrpc.policy.model import Balancer, BalancerKind, EffectivePolicy, Outlier, Retry, Throttle
from tests.simulation.chart import Chart, Panel, line
from tests.simulation.client import Client, Ended
from tests.simulation.engine import Simulation
from tests.simulation.measure import succeeded
from tests.simulation.server import Server, State

INSTANCES = 10
RATE = 40.0
"""Calls per second: too few for instances to be compared with each other (A50 asks for 100 outcomes
each in 10 s), so that `NEVER` really never ejects."""
SERVICE_TIME = 0.02
TIMEOUT = 1.0
SETTLED, UNTIL = 10.0, 30.0
"""Seconds between which is measured: the first ejections are over and done."""

DEFAULT = EffectivePolicy("many")
PLAIN = replace(
    DEFAULT,
    balancer=Balancer(BalancerKind.ROUND_ROBIN),
    retry=Retry(attempts=1),
    throttle=Throttle(max_rejected=0.0),
)
"""Nothing but ejection: the instances take turns, no call is tried again or held back."""


def capped(max_ejected: float) -> EffectivePolicy:
    """Return the plain policy with a cap on ejections, as a part of the instances."""
    return replace(PLAIN, outlier=Outlier(max_ejected=max_ejected))


NEVER = replace(PLAIN, outlier=Outlier(consecutive_failures=1_000_000, success_rate_below=0.0))


@dataclass(frozen=True, slots=True)
class ManyBad:
    """One run."""

    failed: float
    """Percentage of calls, once settled."""
    busiest: float
    """Calls that the busiest working instance got, as a multiple of a tenth of all; 0: none works."""
    most_ejected: int
    """Instances that were out at the same time."""


def run(policy: EffectivePolicy, bad: int, *, seed: int) -> ManyBad:
    """Let `bad` of ten instances fail from the beginning."""
    sim = Simulation(seed)
    servers = [Server(sim, f"payment-{n}", SERVICE_TIME, slots=8) for n in range(INSTANCES)]
    for server in servers[:bad]:
        server.set_state(State.FAILING)
    client = Client(sim, "caller", servers, policy)
    calls: list[Ended] = []
    sim.arrivals("calls", RATE, UNTIL, lambda: client.call(TIMEOUT, calls.append))
    sim.run(SETTLED)
    before = [server.arrived for server in servers]
    sim.run(UNTIL + TIMEOUT)
    settled = [call for call in calls if call.start >= SETTLED]
    came = [server.arrived - count for server, count in zip(servers, before, strict=True)]
    return ManyBad(
        failed=100 * (1 - succeeded(settled)),
        busiest=max(came[bad:], default=0) / (len(settled) / INSTANCES),
        most_ejected=client.most_ejected,
    )


def chart(seed: int = 1) -> Chart:
    """Draw what comes of one to nine bad instances, by the cap on ejections."""
    policies = (
        ("no ejection", "bare", NEVER),
        ("at most 10 %", "else", capped(0.1)),
        ("at most 50 %", "more", capped(0.5)),
        ("no cap", "ideal", capped(1.0)),
        ("the defaults", "ours", DEFAULT),
    )
    runs = [
        (label, look, [run(policy, bad, seed=seed) for bad in range(INSTANCES)])
        for label, look, policy in policies
    ]
    return Chart(
        "many_bad",
        "Several of ten instances fail every call",
        "Round robin without retries, by the cap on ejections; and the defaults: peak EWMA, retries, 10 %.",
        (
            Panel(
                "Calls that fail",
                "instances that are bad, of ten",
                "% of calls",
                tuple(
                    line(label, [(bad, each.failed) for bad, each in enumerate(sweep)], look)
                    for label, look, sweep in runs
                ),
            ),
            Panel(
                "Calls of the busiest instance that works",
                "instances that are bad, of ten",
                "times a tenth of all",
                tuple(
                    line(label, [(bad, each.busiest) for bad, each in enumerate(sweep)], look)
                    for label, look, sweep in runs
                ),
            ),
            Panel(
                "Instances that are ejected at the same time",
                "instances that are bad, of ten",
                "instances",
                tuple(
                    line(label, [(bad, each.most_ejected) for bad, each in enumerate(sweep)], look)
                    for label, look, sweep in runs[1:]
                ),
            ),
        ),
    )

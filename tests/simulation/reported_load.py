"""Reported load: ninety-nine servers of three speeds, and callers that go by what these report.

Weighted round robin gives each server what it says that it can carry: calls per second divided by the
part of its time that they take (gRFC A58). A third of the servers is twice, a third four times as fast
as the rest. Ideal is a share of the calls in proportion to the speed, which makes all equally busy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from meshrpc.policy.model import Balancer, BalancerKind
from tests.simulation.chart import Chart, Panel, Shade, line
from tests.simulation.fleet import Fleet
from tests.simulation.fleet_client import subset
from tests.simulation.measure import Points, by_stretch, percentile

CLIENTS, SERVERS, SUBSET = 200, 99, 33
SPEEDS = (1, 2, 4)
SERVICE_TIME = 0.04
"""Seconds of work per call, of the slowest."""
RATE = 2000.0
"""Calls per second of all clients: 35 % of what the servers can do, and with an equal share of them
81 % of what the slowest can."""
UNTIL, WIDTH = 32.0, 2.0

WEIGHTED = Balancer(BalancerKind.WEIGHTED_ROUND_ROBIN)
OTHERS = (
    ("round robin", "bare", Balancer(BalancerKind.ROUND_ROBIN)),
    ("least request", "else", Balancer(BalancerKind.LEAST_REQUEST)),
    ("peak EWMA", "more", Balancer(BalancerKind.PEAK_EWMA)),
)


def ideal(speed: int) -> float:
    """Return the share of the calls that the servers of a speed should have together."""
    return speed / sum(SPEEDS)


@dataclass(frozen=True, slots=True)
class ReportedLoad:
    """One run, by stretches of time."""

    shares: dict[int, Points]
    """For each speed the share of the calls that its servers get, as a multiple of the ideal one."""
    late: Points
    """99th percentile of latency in ms."""


@cache
def run(balancer: Balancer, *, seed: int, clients: int = CLIENTS) -> ReportedLoad:
    """Let all start together and find out."""
    fleet = Fleet(seed, reports=True)
    speeds = {}
    for speed in SPEEDS:
        names = (f"payment-x{speed}-{n}" for n in range(SERVERS // len(SPEEDS)))
        speeds |= dict.fromkeys(fleet.add_servers(names, SERVICE_TIME / speed), speed)
    for client in fleet.add_clients((f"order-{n}" for n in range(clients)), balancer):
        client.connect(subset(fleet.servers, SUBSET, client.name))
    fleet.run(RATE, UNTIL)
    fleet.run(0.0, UNTIL + 10.0)
    shares: dict[int, Points] = {speed: [] for speed in SPEEDS}
    late: Points = []
    for at, calls in by_stretch(fleet.calls, WIDTH, UNTIL):
        middle = at + WIDTH / 2
        for speed, points in shares.items():
            came = sum(speeds[call.server] == speed for call in calls)
            points.append((middle, came / len(calls) / ideal(speed)))
        late.append((middle, 1000 * percentile((call.latency for call in calls), 0.99)))
    return ReportedLoad(shares, late)


def chart(seed: int = 1) -> Chart:
    """Draw the shares and what they mean for the slowest calls."""
    ours = run(WEIGHTED, seed=seed)
    others = [(label, look, run(balancer, seed=seed)) for label, look, balancer in OTHERS]
    blackout = {
        "shades": (Shade(0.0, WEIGHTED.blackout),),
        "shade_label": "no report counts yet",
        "span": (0.0, UNTIL),
    }
    return Chart(
        "reported_load",
        "Servers of three speeds that report their load",
        "33 each do 25, 50 and 100 calls/s. 2,000 calls/s of 200 callers with a subset of 33 each.",
        (
            Panel(
                "Weighted round robin: what servers get of an ideal share",
                "time (s)",
                "times the ideal",
                (
                    line("the slowest third", ours.shares[1], "bare"),
                    line("twice as fast", ours.shares[2], "else"),
                    line("four times as fast", ours.shares[4]),
                    line("ideal", [(0.0, 1.0), (UNTIL, 1.0)], "ideal"),
                ),
                top=2.5,
                **blackout,
            ),
            Panel(
                "What the slowest third gets of its ideal share",
                "time (s)",
                "times the ideal",
                (
                    *(line(label, each.shares[1], look) for label, look, each in others),
                    line("weighted round robin", ours.shares[1]),
                    line("ideal", [(0.0, 1.0), (UNTIL, 1.0)], "ideal"),
                ),
                top=2.5,
                span=(0.0, UNTIL),
            ),
            Panel(
                "Latency of all calls, 99th percentile",
                "time (s)",
                "ms",
                (
                    *(line(label, each.late, look) for label, look, each in others),
                    line("weighted round robin", ours.late),
                ),
                span=(0.0, UNTIL),
            ),
        ),
    )

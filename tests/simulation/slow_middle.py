"""A slow middle: a tenth of a hundred servers is twenty times slower for a while.

A thousand callers, each of which has a subset of the servers and only its own calls to learn from.
Servers have slots to spare, so that being slow is all that is wrong with them: what is looked at is
who is asked, not queues. Finagle's simulation of balancers has a scenario of this name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from meshrpc.balancer.peak_ewma import BETWEEN_PROBES
from meshrpc.policy.model import Balancer, BalancerKind
from tests.simulation.chart import Chart, Panel, Shade, line
from tests.simulation.fleet import Fleet
from tests.simulation.fleet_client import subset
from tests.simulation.measure import Points, by_stretch, percentile

CLIENTS, SERVERS, SUBSET = 1000, 100, 20
SLOW, SLOWNESS = 10, 20.0
RATE = 4000.0
"""Calls per second of all clients together: four of each."""
SERVICE_TIME = 0.01
SLOTS = 32
"""Of a server: its share of 40 calls a second keeps eight of them busy even when each takes 0.2 s."""
TURNS_SLOW, RECOVERS, UNTIL = 5.0, 19.0, 54.0
WIDTH = 1.0

PEAK_EWMA = Balancer(BalancerKind.PEAK_EWMA)
LEAST_REQUEST = Balancer(BalancerKind.LEAST_REQUEST)
ROUND_ROBIN = Balancer(BalancerKind.ROUND_ROBIN)


@dataclass(frozen=True, slots=True)
class SlowMiddle:
    """One run, by stretches of time."""

    share: Points
    """Percentage of the calls that go to the slow servers; a fair one is `SLOW` of `SERVERS`."""
    late: Points
    """99th percentile of latency in ms."""


@cache
def run(
    balancer: Balancer,
    *,
    seed: int,
    clients: int = CLIENTS,
    servers: int = SERVERS,
    slow: int = SLOW,
    rate: float = RATE,
    until: float = UNTIL,
) -> SlowMiddle:
    """Let `slow` of the servers be slow from `TURNS_SLOW` until `RECOVERS`."""
    fleet = Fleet(seed)
    fleet.add_servers((f"payment-{n}" for n in range(servers)), SERVICE_TIME, SLOTS)
    affected = fleet.servers[:slow]
    for client in fleet.add_clients((f"order-{n}" for n in range(clients)), balancer):
        client.connect(subset(fleet.servers, SUBSET, client.name))

    def turn(slowness: float) -> None:
        for server in affected:
            server.slowness = slowness

    fleet.at(TURNS_SLOW, turn, SLOWNESS)
    fleet.at(RECOVERS, turn, 1.0)
    fleet.run(rate, until)
    fleet.run(0.0, until + 5.0)
    share, late = [], []
    for at, calls in by_stretch(fleet.calls, WIDTH, until):
        middle = at + WIDTH / 2
        share.append((middle, 100 * sum(call.server in affected for call in calls) / len(calls)))
        late.append((middle, 1000 * percentile((call.latency for call in calls), 0.99)))
    return SlowMiddle(share, late)


def expected(at: float) -> float:
    """Return what percentage peak EWMA sends to the slow ones, `at` seconds after they turned slow.

    A client learns of an endpoint from its answers, 0.2 times a second once the first can be there, so
    that of all that was to be learned e^(-0.2 t) is left after t seconds. Who knows asks a slow one only
    when all that it draws are slow, which hardly happens, and the worse of two once in 300 times, to
    learn whether it is well again.
    """
    since = max(0.0, at - SLOWNESS * SERVICE_TIME)
    unaware = math.exp(-RATE / CLIENTS / SUBSET * since)
    return 100 * (SLOW / SERVERS * unaware + 1 / BETWEEN_PROBES)


def chart(seed: int = 1) -> Chart:
    """Draw who is asked and how late the last hundredth is, by balancer."""
    runs = (
        ("round robin", "bare", run(ROUND_ROBIN, seed=seed)),
        ("least request", "else", run(LEAST_REQUEST, seed=seed)),
        ("peak EWMA", "ours", run(PEAK_EWMA, seed=seed)),
    )
    middles = [TURNS_SLOW + n + 0.5 for n in range(round(RECOVERS - TURNS_SLOW))]
    derived = [(at, expected(at - TURNS_SLOW)) for at in middles]
    slow = {"shades": (Shade(TURNS_SLOW, RECOVERS),), "shade_label": "they are slow"}
    return Chart(
        "slow_middle",
        "Ten of a hundred servers are 20 times slower for a while",
        f"{CLIENTS:,} callers with four calls a second each, and a subset of {SUBSET} servers.",
        (
            Panel(
                "Calls that go to the ten",
                "time (s)",
                "% of calls",
                (
                    *(line(label, each.share, look) for label, look, each in runs),
                    line("peak EWMA as derived", derived, "ideal"),
                ),
                span=(0.0, UNTIL),
                **slow,
            ),
            Panel(
                "Latency of all calls, 99th percentile",
                "time (s)",
                "ms",
                tuple(line(label, each.late, look) for label, look, each in runs),
                span=(0.0, UNTIL),
                **slow,
            ),
        ),
    )

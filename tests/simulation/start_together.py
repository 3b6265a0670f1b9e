"""Everybody starts together: a thousand callers with nothing known, and servers that join cold.

Callers that begin alike must not choose alike: were all to begin with the first endpoint, or the
heaviest, it would get a thousand calls at once. And an endpoint of which nothing is known looks
better than all others, until its first answer is there.
"""

from __future__ import annotations

import math
from functools import cache

from meshrpc.balancer import create_balancer
from meshrpc.policy.model import Balancer, BalancerKind
from tests.simulation.chart import Chart, Panel, line
from tests.simulation.fleet import Fleet
from tests.simulation.fleet_client import subset
from tests.simulation.measure import Points

CLIENTS = 1000
RATE = 5000.0
"""Calls per second of all clients together."""
SERVICE_TIME = 0.01
SUBSET = 100
"""Servers that a client connects to: the default."""
FIRST = 10_000
"""Calls that are looked at: ten of each client."""

BALANCERS = {
    kind: Balancer(kind)
    for kind in (
        BalancerKind.RANDOM,
        BalancerKind.ROUND_ROBIN,
        BalancerKind.LEAST_REQUEST,
        BalancerKind.PEAK_EWMA,
    )
}
_LOOKS = ("bare", "else", "more", "ours")
_LABELS = ("random", "round robin", "least request", "peak EWMA")

_ROUND_ROBIN, _PEAK_EWMA = BALANCERS[BalancerKind.ROUND_ROBIN], BALANCERS[BalancerKind.PEAK_EWMA]
_TOPS = {100: 3.0, 1000: 8.0}

SERVERS, JOINING, JOIN_SUBSET = 100, 10, 20
JOIN_RATE, JOIN_SERVICE_TIME = 2500.0, 0.02
JOINED, SLOW_START, JOIN_UNTIL = 10.0, 30.0, 46.0
"""When ten servers join a hundred, how long their slow start takes, and the end."""


@cache
def _subsets(servers: int) -> tuple[tuple[int, ...], ...]:
    """Return for each client which servers it knows, the same whatever the balancer."""
    fleet = Fleet(0)
    known = fleet.add_servers((f"payment-{n}" for n in range(servers)), SERVICE_TIME)
    numbers = {server: number for number, server in enumerate(known)}
    return tuple(
        tuple(numbers[server] for server in subset(known, SUBSET, f"order-{n}"))
        for n in range(CLIENTS)
    )


@cache
def start(balancer: Balancer, servers: int, *, seed: int) -> Points:
    """Return the calls of the busiest server as a multiple of the mean, by calls made so far."""
    fleet = Fleet(seed, keeps=False)
    known = fleet.add_servers((f"payment-{n}" for n in range(servers)), SERVICE_TIME)
    # A table of keys is the same for all, and takes long to make.
    table = create_balancer(balancer, fleet.rng("table")) if balancer.is_keyed else None
    names = (f"order-{n}" for n in range(CLIENTS))
    clients = fleet.add_clients(names, balancer, balancer=table)
    for client, chosen in zip(clients, _subsets(servers), strict=True):
        client.connect([known[number] for number in chosen])
    points: Points = []
    steps = 20
    for step in range(1, steps + 1):
        fleet.run(RATE, step * FIRST / RATE / steps)
        arrived = [server.arrived for server in known]
        points.append((sum(arrived), max(arrived) * servers / sum(arrived)))
    return points


def chance(servers: int, calls: float, doubt: float = 1.0) -> float:
    """Return what chance alone gives the busiest server at most, as a multiple of the mean.

    Calls thrown at random are binomial: a count with mean m is m + t or more with a probability
    of exp(-t^2 / (2 (m + t/3))) at most (Bernstein). With t such that this is `doubt` / n, none of
    n servers has so many but with probability `doubt`; with a doubt of 1 it is about what one sees.
    """
    mean, log = calls / servers, math.log(servers / doubt)
    return 1 + (log / 3 + math.sqrt(log * log / 9 + 2 * mean * log)) / mean


@cache
def join(balancer: Balancer, slow_start: float, *, seed: int) -> Points:
    """Let ten servers join a hundred; return what they get, as a multiple of a fair share."""
    fleet = Fleet(seed, keeps=False)
    known = fleet.add_servers((f"payment-{n}" for n in range(SERVERS)), JOIN_SERVICE_TIME)
    clients = fleet.add_clients((f"order-{n}" for n in range(CLIENTS)), balancer)
    for client in clients:
        client.connect(subset(known, JOIN_SUBSET, client.name))
    joining = fleet.add_servers((f"new-{n}" for n in range(JOINING)), JOIN_SERVICE_TIME)

    def register() -> None:
        for client in clients:
            client.connect(subset(fleet.servers, JOIN_SUBSET, client.name), fleet.now, slow_start)

    fleet.at(JOINED, register)
    points: Points = []
    before = [0, 0]
    width = 2
    for end in range(width, int(JOIN_UNTIL) + 1, width):
        fleet.run(JOIN_RATE, end)
        came = [sum(s.arrived for s in joining), sum(s.arrived for s in fleet.servers)]
        new, all_ = came[0] - before[0], came[1] - before[1]
        points.append((end - width / 2, new / all_ * len(fleet.servers) / JOINING))
        before = came
    return points


def chart(seed: int = 2) -> Chart:
    """Draw the first calls of all, and what servers get that join."""
    return Chart(
        "start_together",
        "A thousand callers start at once, and ten servers join a hundred",
        "Nothing is known of any server at first. 5,000 calls/s, ten of each caller; then 2,500 calls/s.",
        (
            _first_calls("The busiest of 100 servers", 100, seed),
            _first_calls(
                "The busiest of 1,000 servers, of which each caller knows 100", 1000, seed
            ),
            Panel(
                "What each of ten new servers gets, with slow start and without",
                "time (s)",
                "times a fair share",
                (
                    line("peak EWMA, no slow start", join(_PEAK_EWMA, 0.0, seed=seed), "bare"),
                    line("round robin", join(_ROUND_ROBIN, SLOW_START, seed=seed), "else"),
                    line("peak EWMA", join(_PEAK_EWMA, SLOW_START, seed=seed)),
                ),
                span=(JOINED - 2, JOIN_UNTIL),
                top=2.0,
            ),
        ),
    )


def _first_calls(title: str, servers: int, seed: int) -> Panel:
    runs = [start(balancer, servers, seed=seed) for balancer in BALANCERS.values()]
    return Panel(
        title,
        "calls made so far",
        "times the mean",
        (
            *(
                line(label, points, look)
                for label, look, points in zip(_LABELS, _LOOKS, runs, strict=True)
            ),
            line("what chance gives", [(x, chance(servers, x)) for x, _ in runs[0]], "ideal"),
        ),
        span=(0, FIRST),
        top=_TOPS[servers],
    )

"""Skewed keys: ten thousand keys, some of which are called far more often than others (Zipf).

A hashing balancer gives each endpoint its part of the keys, which is not its part of the calls. Two
things are looked at: how uneven the calls become, with a bound on the load and without; and how many
keys change their endpoint when servers go.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate

from meshrpc.balancer import create_balancer
from meshrpc.policy.model import Balancer, BalancerKind
from tests.simulation.chart import Chart, Panel, line
from tests.simulation.fleet import Fleet
from tests.simulation.fleet_client import Endpoint
from tests.simulation.measure import Points

SERVERS, KEYS = 100, 10_000
RATE = 20_000.0
SERVICE_TIME = 0.01
"""Two hundred calls are under way on average."""
SLOTS = 1000
"""Of a server: it is looked at who is asked, not how the owner of the hottest key bears it."""
UNTIL = 1.0
MAX_LOAD = 1.25
CALLERS = (1, 5, 10, 20, 50, 200, 1000)
GONE = (1, 2, 5, 10, 20)

RING_HASH, MAGLEV = Balancer(BalancerKind.RING_HASH), Balancer(BalancerKind.MAGLEV)
BOUNDED_RING = Balancer(BalancerKind.RING_HASH, max_load=MAX_LOAD)
BOUNDED_MAGLEV = Balancer(BalancerKind.MAGLEV, max_load=MAX_LOAD)

_FREQUENCIES = list(accumulate(1.0 / n for n in range(1, KEYS + 1)))
_NAMES = [f"customer-{n}" for n in range(KEYS)]

HOTTEST = SERVERS / _FREQUENCIES[-1]
"""What the most frequent key alone is, as a multiple of a server's mean."""


def zipf(fleet: Fleet) -> Callable[[], str]:
    """Return what draws a key: the n-th most frequent one with a probability of 1/n, normed."""
    draw, total = fleet.rng("keys").random, _FREQUENCIES[-1]
    return lambda: _NAMES[bisect(_FREQUENCIES, draw() * total)]


@cache
def run(balancer: Balancer, callers: int, *, seed: int) -> tuple[float, ...]:
    """Return the calls of each server as a multiple of the mean, the busiest first."""
    fleet = Fleet(seed, keeps=False)
    servers = fleet.add_servers((f"payment-{n}" for n in range(SERVERS)), SERVICE_TIME, SLOTS)
    table = create_balancer(balancer, fleet.rng("balancer"))  # one for all: they would be the same
    names = (f"order-{n}" for n in range(callers))
    for client in fleet.add_clients(names, balancer, balancer=table):
        client.connect(servers)
    fleet.run(RATE, UNTIL, key=zipf(fleet))
    arrived = sorted((server.arrived for server in servers), reverse=True)
    return tuple(count * SERVERS / sum(arrived) for count in arrived)


@cache
def moved(balancer: Balancer, gone: int, *, seed: int) -> tuple[float, float]:
    """Return the percentages of keys that change their endpoint when `gone` of the servers go:

    those whose endpoint went, which must, and those of endpoints that stayed.
    """
    fleet = Fleet(seed)
    servers = fleet.add_servers((f"payment-{n}" for n in range(SERVERS)), SERVICE_TIME)
    endpoints = [Endpoint(server, 10.0, 0.0) for server in servers]
    rng = fleet.rng("moved")
    rng.shuffle(endpoints)
    before = _owners(balancer, endpoints, fleet)
    after = _owners(balancer, endpoints[gone:], fleet)
    went = {endpoint.id for endpoint in endpoints[:gone]}
    must = sum(owner in went for owner in before)
    others = sum(one not in went and one != other for one, other in zip(before, after, strict=True))
    return 100 * must / KEYS, 100 * others / KEYS


def _owners(balancer: Balancer, endpoints: Sequence[Endpoint], fleet: Fleet) -> list[str]:
    picker = create_balancer(balancer, fleet.rng("balancer")).picker(endpoints)
    return [picker.pick(0.0, key).id for key in _NAMES]


def chart(seed: int = 1) -> Chart:
    """Draw the busiest server by number of callers, and the keys that move."""
    kinds = (("ring hash", "bare", RING_HASH), ("maglev", "ours", MAGLEV))

    def bounded(balancer: Balancer) -> Points:
        return [(_under_way(callers), run(balancer, callers, seed=seed)[0]) for callers in CALLERS]

    def unbounded(balancer: Balancer) -> Points:
        # The same for any number of callers: only the key decides.
        most = run(balancer, 1, seed=seed)[0]
        return [(0.0, most), (_under_way(1), most)]

    return Chart(
        "skewed_keys",
        "Ten thousand keys over a hundred servers",
        "The n-th most frequent key has 1/n of the first one's calls. 20,000 calls/s, 200 of them under way.",
        (
            Panel(
                "Calls of the busiest server",
                "calls that each caller has under way (200 of one caller, 0.2 of a thousand)",
                "times the mean",
                (
                    *(line(label, unbounded(b), look) for label, look, b in kinds),
                    line("ring hash, max_load 1.25", bounded(BOUNDED_RING), "else"),
                    line("maglev, max_load 1.25", bounded(BOUNDED_MAGLEV), "more"),
                    line("the hottest key", [(0.0, HOTTEST), (_under_way(1), HOTTEST)], "ideal"),
                ),
            ),
            Panel(
                "Keys that move although their server stays",
                "servers that go, of a hundred",
                "% of keys",
                tuple(
                    line(label, [(gone, moved(b, gone, seed=seed)[1]) for gone in GONE], look)
                    for label, look, b in kinds
                ),
                span=(0.0, GONE[-1]),
                top=2.0,
            ),
        ),
    )


def _under_way(callers: int) -> float:
    return RATE * SERVICE_TIME / callers

"""A rolling deploy: a hundred servers are replaced batch by batch, each client with a subset of them.

In each batch ten new servers come, and a moment later ten old ones go. A subset is stable when a
client makes new connections only for what it lost and for the new ones that it prefers. What it must
not do is to put many clients on few servers: how many an instance gets is chance, Binomial(C, k/S).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from meshrpc.policy.model import Balancer, BalancerKind
from tests.simulation.chart import Chart, Panel, Shade, line
from tests.simulation.fleet import Fleet
from tests.simulation.fleet_client import Client, subset
from tests.simulation.fleet_server import Server
from tests.simulation.measure import Points

CLIENTS, SERVERS, SUBSET = 1000, 100, 20
BATCH = 10
BEGINS, EACH, OVERLAP = 2.0, 3.0, 1.5
"""When the first batch comes, the time between two, and how long a batch's old servers stay on."""
ENDS = BEGINS + EACH * SERVERS / BATCH
UNTIL = ENDS + 3.0
RATE = 3000.0
"""Calls per second of all clients: 30 % of what the servers can do."""
SERVICE_TIME = 0.01
SLOW_START = 30.0
PEAK_EWMA = Balancer(BalancerKind.PEAK_EWMA)


@dataclass(frozen=True, slots=True)
class Deploy:
    """One run."""

    connections: list[tuple[float, list[int]]]
    """Connections that each client has made since the deploy began, after each change."""
    callers: list[tuple[float, list[int]]]
    """How many clients each server has, after each change."""
    busiest: Points
    """Calls of the busiest server as a multiple of the mean, by stretches of time."""
    made: int
    """Calls that were made."""
    answered: int
    strays: int
    """Calls that went to a server which was not registered then."""


@cache
def run(*, seed: int) -> Deploy:
    """Replace all servers while calls go on."""
    fleet = Fleet(seed)
    before = fleet.add_servers((f"payment-{n}" for n in range(SERVERS)), SERVICE_TIME)
    clients = fleet.add_clients((f"order-{n}" for n in range(CLIENTS)), PEAK_EWMA)
    active = list(before)
    registered = dict.fromkeys(before, (0.0, UNTIL))
    for client in clients:
        client.connect(subset(active, SUBSET, client.name))
    first = [client.connected for client in clients]
    connections = [(0.0, [0] * CLIENTS)]
    callers = [(0.0, _callers(clients, active))]

    def change() -> None:
        for client in clients:
            client.connect(subset(active, SUBSET, client.name), fleet.now, SLOW_START)
        made = [
            client.connected - at_first for client, at_first in zip(clients, first, strict=True)
        ]
        connections.append((fleet.now, made))
        callers.append((fleet.now, _callers(clients, active)))

    def come(batch: int) -> None:
        names = (f"payment-v2-{batch * BATCH + n}" for n in range(BATCH))
        added = fleet.add_servers(names, SERVICE_TIME)
        registered.update((server, (fleet.now, UNTIL)) for server in added)
        active.extend(added)
        change()

    def go(batch: int) -> None:
        for server in before[batch * BATCH : (batch + 1) * BATCH]:
            active.remove(server)
            registered[server] = (0.0, fleet.now)
        change()

    for batch in range(SERVERS // BATCH):
        fleet.at(BEGINS + EACH * batch, come, batch)
        fleet.at(BEGINS + EACH * batch + OVERLAP, go, batch)
    busiest: Points = []
    arrived: dict[Server, int] = {}
    for stretch in range(round(UNTIL / OVERLAP)):
        fleet.run(RATE, (stretch + 1) * OVERLAP)
        came = [server.arrived - arrived.get(server, 0) for server in fleet.servers]
        arrived = {server: server.arrived for server in fleet.servers}
        busiest.append(((stretch + 0.5) * OVERLAP, max(came) * len(active) / sum(came)))
    made = sum(server.arrived for server in fleet.servers)
    fleet.run(0.0, UNTIL + 1.0)  # the last answers
    strays = 0
    for call in fleet.calls:
        came_at, went_at = registered[call.server]
        strays += not came_at <= call.start <= went_at
    return Deploy(connections, callers, busiest, made, len(fleet.calls), strays)


def _callers(clients: list[Client], servers: list[Server]) -> list[int]:
    counts = dict.fromkeys((server.id for server in servers), 0)
    for client in clients:
        for endpoint in client.endpoints:
            counts[endpoint.id] += 1
    return list(counts.values())


def drawn_anew(*, seed: int) -> Points:
    """Return the connections per client if each change drew subsets anew, at random."""
    rng = Fleet(seed).rng("anew")
    active = list(range(SERVERS))
    now = [set(rng.sample(active, SUBSET)) for _ in range(CLIENTS)]
    made, points = 0, [(0.0, 0.0)]
    for at, active in _memberships():
        for number, before in enumerate(now):
            drawn = set(rng.sample(active, SUBSET))
            made += len(drawn - before)
            now[number] = drawn
        points.append((at, made / CLIENTS))
    return points


def _memberships() -> Iterator[tuple[float, list[int]]]:
    for batch in range(SERVERS // BATCH):
        first, last = batch * BATCH, SERVERS + batch * BATCH
        at = BEGINS + EACH * batch
        yield at, list(range(first, last + BATCH))
        yield at + OVERLAP, list(range(first + BATCH, last + BATCH))


def expected_connections(batches: int = SERVERS // BATCH) -> float:
    """Return the connections that each client makes on average while `batches` are replaced.

    When b servers come to S, they are b of S + b, and so b k / (S + b) of a client's k; when b of
    S + b go, it loses as many, and replaces each. Nothing else changes.
    """
    return batches * 2 * BATCH * SUBSET / (SERVERS + BATCH)


def chart(seed: int = 1) -> Chart:
    """Draw the connections made and how evenly the servers are used."""
    deploy = run(seed=seed)
    going = {"shades": (Shade(BEGINS, ENDS),), "shade_label": "the deploy", "span": (0.0, UNTIL)}
    made = deploy.connections
    return Chart(
        "rolling_deploy",
        "A hundred servers are replaced, ten at a time",
        f"{CLIENTS:,} callers with a subset of {SUBSET} each. Ten new ones come, 1.5 s later ten old ones go.",
        (
            Panel(
                "Connections that a client has made since the deploy began",
                "time (s)",
                "connections",
                (
                    line("subsets drawn anew", _held(drawn_anew(seed=seed)), "bare", steps=True),
                    line("the mean", _held([(at, sum(n) / CLIENTS) for at, n in made]), steps=True),
                    line("the most", _held([(at, max(n)) for at, n in made]), "else", steps=True),
                    line("as derived", _held(_expected()), "ideal", steps=True),
                ),
                **going,
            ),
            Panel(
                "Clients that a server has",
                "time (s)",
                "clients",
                (
                    line(
                        "the most",
                        _held([(at, max(n)) for at, n in deploy.callers]),
                        "bare",
                        steps=True,
                    ),
                    line(
                        "the mean",
                        _held([(at, sum(n) / len(n)) for at, n in deploy.callers]),
                        "ideal",
                        steps=True,
                    ),
                    line(
                        "the fewest",
                        _held([(at, min(n)) for at, n in deploy.callers]),
                        "else",
                        steps=True,
                    ),
                ),
                **going,
            ),
            Panel(
                "Calls of the busiest server",
                "time (s)",
                "times the mean",
                (line("peak EWMA with slow start", deploy.busiest),),
                top=2.0,
                **going,
            ),
        ),
    )


def _expected() -> Points:
    half = expected_connections(1) / 2
    return [(0.0, 0.0), *((at, half * (n + 1)) for n, (at, _) in enumerate(_memberships()))]


def _held(points: Points) -> Points:
    return [*points, (UNTIL, points[-1][1])]

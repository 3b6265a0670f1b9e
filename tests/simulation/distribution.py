"""The distribution of calls: what each balancer makes of a hundred endpoints, for one caller.

Ten thousand calls, once over endpoints that are all alike and once with ten that are five times
slower. Each endpoint's count is drawn, the largest first: a level line is an even distribution.
"""

from __future__ import annotations

from functools import cache

from meshrpc.policy.model import Balancer, BalancerKind
from tests.simulation.chart import Chart, Line, Panel, Shade, line
from tests.simulation.fleet import Fleet

ENDPOINTS, SLOW, SLOWNESS = 100, 10, 5.0
CALLS = 10_000
RATE = 1000.0
"""Calls per second: a fifth of what the slow ones can do with an equal share is left."""
SERVICE_TIME = 0.01
SLOTS = 2
KEYS = 100_000
"""Keys, all equally frequent: nearly every call has one of its own."""

KINDS = tuple(BalancerKind)
_BY_LOAD = (BalancerKind.RANDOM, BalancerKind.LEAST_REQUEST, BalancerKind.PEAK_EWMA)
_BY_TURN = (
    BalancerKind.RANDOM,
    BalancerKind.ROUND_ROBIN,
    BalancerKind.WEIGHTED_ROUND_ROBIN,
    BalancerKind.RING_HASH,
    BalancerKind.MAGLEV,
)
_LOOKS = {
    BalancerKind.RANDOM: "ideal",
    BalancerKind.ROUND_ROBIN: "bare",
    BalancerKind.WEIGHTED_ROUND_ROBIN: "ours",
    BalancerKind.RING_HASH: "else",
    BalancerKind.MAGLEV: "more",
    BalancerKind.LEAST_REQUEST: "bare",
    BalancerKind.PEAK_EWMA: "ours",
}


@cache
def counts(kind: BalancerKind, slow: int, *, seed: int) -> tuple[list[int], list[int]]:
    """Return the calls of the slow endpoints and those of the others, the largest first."""
    fleet = Fleet(seed, reports=True, keeps=False)
    servers = fleet.add_servers((f"payment-{n}" for n in range(ENDPOINTS)), SERVICE_TIME, SLOTS)
    for server in servers[:slow]:
        server.slowness = SLOWNESS
    (client,) = fleet.add_clients(["order"], Balancer(kind))
    client.connect(servers)
    draw = fleet.rng("keys").randrange
    key = None
    if kind in (BalancerKind.RING_HASH, BalancerKind.MAGLEV):
        key = lambda: f"customer-{draw(KEYS)}"  # noqa: E731 - a name for what is passed
    before = [0] * ENDPOINTS
    if kind is BalancerKind.WEIGHTED_ROUND_ROBIN:
        fleet.run(RATE, 2 * Balancer().blackout)  # until what is reported counts
        before = [server.arrived for server in servers]
    fleet.run(RATE, fleet.now + CALLS / RATE, key=key)
    came = [server.arrived - count for server, count in zip(servers, before, strict=True)]
    return sorted(came[:slow], reverse=True), sorted(came[slow:], reverse=True)


def chart(seed: int = 1) -> Chart:
    """Draw calls per endpoint, sorted, for all balancers."""
    about = {"top": 200.0, "span": (1.0, float(ENDPOINTS))}
    slow = {"shades": (Shade(1.0, SLOW + 0.5),), "shade_label": "slow ones", **about}
    return Chart(
        "distribution",
        "Ten thousand calls over a hundred endpoints, by balancer",
        "One caller, 1,000 calls/s. Each endpoint's calls, the largest count first; the mean is 100.",
        (
            Panel(
                "All alike: balancers that choose by load",
                "endpoint",
                "calls",
                _lines(_BY_LOAD, 0, seed),
                **about,
            ),
            Panel(
                "All alike: by turn, and by key",
                "endpoint",
                "calls",
                _lines(_BY_TURN, 0, seed),
                **about,
            ),
            Panel(
                "Ten are five times slower: by load",
                "endpoint, the slow ones first",
                "calls",
                _lines(_BY_LOAD, SLOW, seed),
                **slow,
            ),
            Panel(
                "Ten are five times slower: by turn, and by key",
                "endpoint, the slow ones first",
                "calls",
                _lines(_BY_TURN, SLOW, seed),
                **slow,
            ),
        ),
    )


def _lines(kinds: tuple[BalancerKind, ...], slow: int, seed: int) -> tuple[Line, ...]:
    lines = []
    for kind in kinds:
        came = [count for part in counts(kind, slow, seed=seed) for count in part]
        points = [(rank + 1.0, float(count)) for rank, count in enumerate(came)]
        lines.append(line(str(kind), points, _LOOKS[kind]))
    return tuple(lines)

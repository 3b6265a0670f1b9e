"""A zone is lost: of three zones with thirty servers each, one keeps only five for a while.

Each caller prefers its own zone and sends what that cannot carry to the others, by what they have to
spare (`balancer/zones.py`). Done right, every server has the same load whatever its zone, and no call
leaves its zone that need not. Callers may be spread unlike the servers: they are told how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from meshrpc.balancer import create_balancer
from meshrpc.balancer.zones import ZonePicker, zone_shares
from meshrpc.policy.model import Balancer, BalancerKind
from tests.simulation.chart import Chart, Line, Panel, Shade, line
from tests.simulation.fleet import Fleet
from tests.simulation.fleet_client import Client, subset
from tests.simulation.fleet_server import Server
from tests.simulation.measure import Points, by_stretch

ZONES = ("a", "b", "c")
SERVERS, LEFT = 30, 5
"""In each zone; and in zone a while it is lost."""
EVEN, UNEVEN = (340, 330, 330), (500, 300, 200)
"""Callers in each zone."""
SUBSET = 40
RATE = 2250.0
"""Calls per second of all clients: 25 for each server."""
SERVICE_TIME = 0.015
LOST, BACK, UNTIL = 10.0, 25.0, 35.0
WIDTH = 2.5
POLICY = Balancer(BalancerKind.PEAK_EWMA)


@dataclass(frozen=True, slots=True)
class ZoneLost:
    """One run: points by stretches of time, for each zone."""

    local: dict[str, Points]
    """Percentage of the calls of the zone's callers that stay there."""
    load: dict[str, Points]
    """Calls of a server that works, as a multiple of the mean over all zones."""


class Zoned:
    """A client that prefers its own zone."""

    def __init__(self, client: Client, callers: Mapping[str | None, float] | None) -> None:
        self._client = client
        self._callers = callers
        self._balancers = {zone: create_balancer(POLICY, client.rng) for zone in ZONES}

    def look(self, working: Sequence[Server], *, prefers: bool) -> None:
        """Choose among the servers that work now."""
        client = self._client
        own = client.zone
        client.connect(subset(working, SUBSET, client.name, own if prefers else None))
        if not prefers or own is None:
            return
        shares = zone_shares(own, Counter(server.zone for server in working), self._callers)
        pickers = []
        for zone, part in shares.items():
            there = [each for each in client.endpoints if each.server.zone == zone]
            if there:
                pickers.append((part, self._balancers[zone].picker(there)))
        client.choose(ZonePicker(pickers, client.rng))


@cache
def run(
    callers: tuple[int, ...], *, seed: int, told: bool = True, prefers: bool = True
) -> ZoneLost:
    """Lose most of zone a.

    Args:
        callers: how many there are in each zone.
        seed: of all randomness.
        told: whether they know that; otherwise they take it to be even.
        prefers: whether zones make a difference at all.
    """
    fleet = Fleet(seed)
    for zone in ZONES:
        fleet.add_servers((f"payment-{zone}{n}" for n in range(SERVERS)), SERVICE_TIME, zone=zone)
    counts = dict(zip(ZONES, callers, strict=True))
    for zone, count in counts.items():
        fleet.add_clients((f"order-{zone}{n}" for n in range(count)), POLICY, zone=zone)
    zoned = [Zoned(client, counts if told else None) for client in fleet.clients]
    lost = set([each for each in fleet.servers if each.zone == "a"][LEFT:])

    def change(gone: set[Server]) -> None:
        working = [each for each in fleet.servers if each not in gone]
        for each in zoned:
            each.look(working, prefers=prefers)

    change(set())
    fleet.at(LOST, change, lost)
    fleet.at(BACK, change, set())
    fleet.run(RATE, UNTIL)
    fleet.run(0.0, UNTIL + 5.0)
    out = ZoneLost({zone: [] for zone in ZONES}, {zone: [] for zone in ZONES})
    for at, calls in by_stretch(fleet.calls, WIDTH, UNTIL):
        working = Counter(
            server.zone for server in fleet.servers if server not in lost or not LOST <= at < BACK
        )
        middle, mean = at + WIDTH / 2, len(calls) / working.total()
        made = Counter(call.client.zone for call in calls)
        stayed = Counter(call.server.zone for call in calls if call.server.zone == call.client.zone)
        came = Counter(call.server.zone for call in calls)
        for zone in ZONES:
            out.local[zone].append((middle, 100 * stayed[zone] / made[zone]))
            out.load[zone].append((middle, came[zone] / working[zone] / mean))
    return out


def chart(seed: int = 1) -> Chart:
    """Draw what stays in its zone and how loaded the zones are."""
    even, uneven = run(EVEN, seed=seed), run(UNEVEN, seed=seed)
    untold = run(UNEVEN, seed=seed, told=False)
    gone = {
        "shades": (Shade(LOST, BACK),),
        "shade_label": "zone a has 5 of 30",
        "span": (0.0, UNTIL),
    }
    looks = ("ours", "more", "else")

    def lines(points: dict[str, Points]) -> tuple[Line, ...]:
        return tuple(
            line(f"zone {zone}", points[zone], look)
            for zone, look in zip(ZONES, looks, strict=True)
        )

    return Chart(
        "zone_lost",
        "One of three zones loses 25 of its 30 servers",
        "1,000 callers that prefer their own zone: a third of them in each, or 500, 300 and 200.",
        (
            Panel(
                "Calls that stay in their zone",
                "time (s)",
                "% of calls",
                (
                    line("zone a, even callers", even.local["a"], "ours"),
                    line("zone a, uneven callers", uneven.local["a"], "bare"),
                    line("zones b and c", uneven.local["b"], "more"),
                ),
                **gone,
            ),
            Panel(
                "A third of the callers in each zone: calls of each server that works",
                "time (s)",
                "times the mean",
                lines(even.load),
                top=2.0,
                **gone,
            ),
            Panel(
                "500, 300 and 200 callers: the same",
                "time (s)",
                "times the mean",
                lines(uneven.load),
                top=2.0,
                **gone,
            ),
            Panel(
                "500, 300 and 200 callers that take each other to be even",
                "time (s)",
                "times the mean",
                lines(untold.load),
                top=2.0,
                **gone,
            ),
        ),
    )

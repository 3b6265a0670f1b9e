"""A cold start: an instance comes back with empty caches and is slow at first.

For its first seconds a call costs it ten times as much work. With its full share at once it falls
behind, and what waits in its queue is late long after it has warmed up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from meshrpc.policy.model import Balancer, BalancerKind, EffectivePolicy, SlowStart
from tests.simulation.chart import Chart, Panel, Shade, line
from tests.simulation.client import Client, Ended
from tests.simulation.engine import Simulation
from tests.simulation.measure import Points, by_stretch, percentile
from tests.simulation.server import Server, State

RATE = 240.0
"""Calls per second of all clients: 60 % of what four warm instances can do, 80 % of three."""
CLIENTS = 4
INSTANCES = 4
SLOTS = 2
SERVICE_TIME = 0.02
TIMEOUT = 2.0
GONE, BACK = 10.0, 20.0
"""When the instance dies and when it is there again."""
UNTIL = 55.0
COLDNESS = 9.0
"""How much more a call costs at first, as a multiple of what it costs warm."""
WARMS_UP = 8.0
"""Time constant in seconds."""

PEAK_EWMA = EffectivePolicy("cold")
ROUND_ROBIN = replace(PEAK_EWMA, balancer=Balancer(BalancerKind.ROUND_ROBIN))


def at_once(policy: EffectivePolicy) -> EffectivePolicy:
    """Return the policy without slow start."""
    return replace(policy, slow_start=SlowStart(window=0.0))


@dataclass(frozen=True, slots=True)
class ColdStart:
    """One run."""

    calls: list[Ended]
    queue: Points
    """Calls at the cold instance, waiting or worked on, by time."""
    share: Points
    """Percentage of all calls that came to it, by time."""


def run(policy: EffectivePolicy, *, seed: int) -> ColdStart:
    """Let one of four instances die and come back cold."""
    sim = Simulation(seed)
    servers = [Server(sim, f"payment-{n}", SERVICE_TIME, SLOTS) for n in range(INSTANCES)]
    cold = servers[0]
    cold.slowness = lambda: (
        1.0 + COLDNESS * math.exp((BACK - sim.now) / WARMS_UP) if sim.now >= BACK else 1.0
    )
    calls: list[Ended] = []
    for number in range(CLIENTS):
        client = Client(sim, f"caller-{number}", servers, policy)
        sim.arrivals(
            f"calls-{number}",
            RATE / CLIENTS,
            UNTIL,
            lambda client=client: client.call(TIMEOUT, calls.append),
        )
    sim.at(GONE, cold.set_state, State.DEAD)
    sim.at(BACK, cold.set_state, State.UP)
    queue: Points = []
    share: Points = []
    before = [0, 0]

    def look() -> None:
        queue.append((sim.now, cold.busy + len(cold.queue)))
        came = [cold.arrived, sum(server.arrived for server in servers)]
        share.append((sim.now, 100 * (came[0] - before[0]) / max(1, came[1] - before[1])))
        before[:] = came

    for second in range(1, int(UNTIL) + 1):
        sim.at(second, look)
    sim.run(UNTIL + TIMEOUT)
    return ColdStart(calls, queue, share)


def chart(seed: int = 1) -> Chart:
    """Draw it with slow start and without, for two balancers."""
    slow, fast = run(ROUND_ROBIN, seed=seed), run(at_once(ROUND_ROBIN), seed=seed)
    slow_ewma, fast_ewma = run(PEAK_EWMA, seed=seed), run(at_once(PEAK_EWMA), seed=seed)
    away = {"shades": (Shade(GONE, BACK),), "shade_label": "it is gone"}
    return Chart(
        "cold_start",
        "An instance that comes back cold, with and without slow start",
        "One of four; at first a call costs it ten times as much. 240 calls/s of 4 callers, 2 s deadline.",
        (
            Panel(
                "Round robin: calls that wait at the cold instance",
                "time (s)",
                "calls",
                (
                    line("its full share at once", fast.queue, "bare"),
                    line("slow start", slow.queue),
                ),
                **away,
            ),
            Panel(
                "Round robin: latency of all calls, 99th percentile",
                "time (s)",
                "ms",
                (
                    line("its full share at once", late(fast), "bare"),
                    line("slow start", late(slow)),
                ),
                span=(0.0, UNTIL),
                **away,
            ),
            Panel(
                "Peak EWMA: the same",
                "time (s)",
                "ms",
                (
                    line("its full share at once", late(fast_ewma), "bare"),
                    line("slow start", late(slow_ewma)),
                ),
                span=(0.0, UNTIL),
                **away,
            ),
            Panel(
                "Share of the calls that the cold instance gets",
                "time (s)",
                "% of calls",
                (
                    line("round robin, at once", fast.share, "bare"),
                    line("round robin, slow start", slow.share, "more"),
                    line("peak EWMA, slow start", slow_ewma.share),
                ),
                span=(0.0, UNTIL),
                **away,
            ),
        ),
    )


def late(run: ColdStart, width: float = 2.0) -> Points:
    """Return the 99th percentile of latency in ms, by stretches of time."""
    return [
        (at + width / 2, 1000 * percentile((call.latency for call in calls), 0.99))
        for at, calls in by_stretch(run.calls, width, UNTIL)
    ]

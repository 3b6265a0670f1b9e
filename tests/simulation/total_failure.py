"""Total failure: all instances fail for half a minute and come back one by one.

Two questions: how much more than its calls does a caller send meanwhile, and how soon is all
well again? The second is hard when the instances have little to spare: retries that pile up during the
outage can keep them overloaded long after its cause is gone ("metastable failures", OSDI '22).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import grpc

from meshrpc.policy.model import (
    Balancer,
    BalancerKind,
    CircuitBreaker,
    EffectivePolicy,
    Outlier,
    Retry,
    RetryBudget,
    Throttle,
)
from tests.simulation.chart import Chart, Panel, Shade, line
from tests.simulation.client import Client, Ended
from tests.simulation.engine import Simulation
from tests.simulation.measure import Points, arrivals_by, success_by
from tests.simulation.server import Server, State

INSTANCES = 4
TIMEOUT = 1.0
FAILS, RECOVERS = 10.0, 40.0
"""When all fail, and when the first one is back."""
SERVICE_TIME = 0.02
"""Seconds of work per call, about: slots are whole."""

DEFAULT = EffectivePolicy("down")

_TIMED = Retry(attempts=4, per_attempt_timeout=0.25, codes=frozenset({grpc.StatusCode.UNAVAILABLE}))
"""Attempts that take too long are tried elsewhere, a common setting that asks for a storm."""
TIMED = replace(DEFAULT, retry=_TIMED)
NAIVE = EffectivePolicy(
    "down",
    balancer=Balancer(BalancerKind.ROUND_ROBIN),
    retry=_TIMED,
    retry_budget=RetryBudget(ratio=1000.0, min_per_second=1000.0),
    throttle=Throttle(max_rejected=0.0),
    outlier=Outlier(consecutive_failures=1_000_000, success_rate_below=0.0),
    circuit_breaker=CircuitBreaker(max_requests=1_000_000),
)
"""The same attempts, and nothing that holds them back."""


@dataclass(frozen=True, slots=True)
class TotalFailure:
    """One run."""

    calls: list[Ended]
    arrivals: Points
    """Calls per second that came in at all instances, by second."""


def run(
    policy: EffectivePolicy,
    rate: float,
    *,
    seed: int,
    fault: State = State.FAILING,
    fails: float = FAILS,
    instances: int = INSTANCES,
    capacity: float = 1.4,
    apart: float = 10.0,
    until: float = 80.0,
) -> TotalFailure:
    """Let everything fail.

    Args:
        policy: what the caller goes by.
        rate: calls per second.
        seed: of all randomness.
        fault: what happens to the instances.
        fails: when it does.
        instances: how many there are.
        capacity: what one instance can do, as a part of `rate`.
        apart: seconds between one instance that recovers and the next.
        until: when the last call is made.
    """
    sim = Simulation(seed)
    slots = max(1, round(rate * capacity * SERVICE_TIME))
    servers = [
        Server(sim, f"payment-{n}", slots / (rate * capacity), slots) for n in range(instances)
    ]
    client = Client(sim, "caller", servers, policy)
    calls: list[Ended] = []
    sim.arrivals("calls", rate, until, lambda: client.call(TIMEOUT, calls.append))
    for number, server in enumerate(servers):
        sim.at(fails, server.set_state, fault)
        sim.at(RECOVERS + apart * number, server.set_state, State.UP)
    arrivals = arrivals_by(sim, servers, 1.0, until)
    sim.run(until + TIMEOUT)
    return TotalFailure(calls, arrivals)


MANY, SPARE, APART = 8, 1.2, 2.5
"""What collapses: instances, how much more than the load they can do together, and the seconds between
two that come back. One of eight can be missed (1.2 x 7/8 = 1.05), so an ejection is affordable."""
COLLAPSE_RATE = 300.0
OUTAGE = 30.0
"""When all of them fail: ten seconds are enough."""
SHOWN = 20.0
"""Where the picture begins."""
ALL_BACK = RECOVERS + APART * (MANY - 1)

RATES = (20.0, 100.0, 500.0)
_LOOKS = ("else", "more", "ours")


def chart(seed: int = 1, until: float = 65.0) -> Chart:
    """Draw an outage and its end at three rates."""
    runs = {rate: run(DEFAULT, rate, seed=seed, until=until) for rate in RATES}
    dead = {rate: run(DEFAULT, rate, seed=seed, until=until, fault=State.DEAD) for rate in RATES}
    down = {"shades": (Shade(FAILS, RECOVERS),), "shade_label": "all fail", "span": (0.0, until)}
    return Chart(
        "total_failure",
        "When everything fails, nothing gets worse for that",
        "Four instances fail for 30 s; then one works, and every 10 s one more. Defaults.",
        (
            Panel(
                "They answer UNAVAILABLE: calls that succeed",
                "time (s)",
                "% of calls",
                tuple(
                    line(f"{rate:.0f} calls/s", _success(r, until), look)
                    for (rate, r), look in zip(runs.items(), _LOOKS, strict=True)
                ),
                **down,
            ),
            Panel(
                "What comes to the instances, per call made",
                "time (s)",
                "attempts per call",
                _arriving(runs),
                **down,
            ),
            Panel(
                "They are dead: calls that succeed",
                "time (s)",
                "% of calls",
                tuple(
                    line(f"{rate:.0f} calls/s", _success(r, until), look)
                    for (rate, r), look in zip(dead.items(), _LOOKS, strict=True)
                ),
                **down,
            ),
        ),
    )


def collapse(policy: EffectivePolicy, *, seed: int, until: float) -> TotalFailure:
    """Let eight instances that together do 1.2 times the load fail, and come back one by one."""
    return run(
        policy,
        COLLAPSE_RATE,
        seed=seed,
        fails=OUTAGE,
        instances=MANY,
        capacity=SPARE / MANY,
        apart=APART,
        until=until,
    )


def collapse_chart(seed: int = 1, until: float = 80.0) -> Chart:
    """Draw such an outage with naive retries and with ours."""
    naive, ours = (collapse(policy, seed=seed, until=until) for policy in (NAIVE, TIMED))
    each = COLLAPSE_RATE * SPARE / MANY
    down = {"shades": (Shade(OUTAGE, RECOVERS),), "shade_label": "all fail", "span": (SHOWN, until)}
    return Chart(
        "collapse",
        "Naive retries keep a service down that has long recovered",
        f"{COLLAPSE_RATE:.0f} calls/s. Eight instances, together good for {SPARE} times that, fail "
        f"for 10 s; the last one is back at {ALL_BACK} s.",
        (
            Panel(
                "Calls that succeed",
                "time (s)",
                "% of calls",
                (
                    line(
                        "3 retries of 250 ms, nothing else", _late(_success(naive, until)), "bare"
                    ),
                    line(
                        "the same with budget, throttle and ejection", _late(_success(ours, until))
                    ),
                ),
                **down,
            ),
            Panel(
                "What comes to the instances",
                "time (s)",
                "calls per second",
                (
                    line("nothing else", _late(_middle(naive.arrivals)), "bare"),
                    line("budget, throttle and ejection", _late(_middle(ours.arrivals))),
                    line(
                        "what they can do",
                        (
                            (SHOWN, MANY * each),
                            (OUTAGE, 0.0),
                            *((RECOVERS + APART * n, each * (n + 1)) for n in range(MANY)),
                            (until, MANY * each),
                        ),
                        "ideal",
                        steps=True,
                    ),
                ),
                **down,
            ),
        ),
    )


def _success(run: TotalFailure, until: float) -> Points:
    return _middle(success_by(run.calls, 1.0, until))


def _late(points: Points) -> Points:
    return [(at, value) for at, value in points if at >= SHOWN]


def _middle(points: Points) -> Points:
    return [(at + 0.5, value) for at, value in points]


def _arriving(runs: dict[float, TotalFailure]) -> tuple:
    return tuple(
        line(f"{rate:.0f} calls/s", [(at + 0.5, came / rate) for at, came in run.arrivals], look)
        for (rate, run), look in zip(runs.items(), _LOOKS, strict=True)
    )

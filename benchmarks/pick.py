"""What choosing an endpoint costs, by balancer and number of endpoints.

The peer is `rng.choice` over 10 endpoints, what a program without balancers would write. Endpoints
are what a balancer sees of one: a `load` over real peak-EWMA statistics, each with another latency
and other pending calls.
"""

from __future__ import annotations

import random

import stopwatch

from meshrpc.balancer import create_balancer
from meshrpc.balancer.peak_ewma import PeakEwma
from meshrpc.policy.model import Balancer, BalancerKind

KINDS = (
    BalancerKind.ROUND_ROBIN,
    BalancerKind.RANDOM,
    BalancerKind.PEAK_EWMA,
    BalancerKind.RING_HASH,
)
SIZES = (10, 100, 1_000, 10_000)
NOW = 1_000.0
KEY = "cart-7"


class Candidate:
    """An endpoint without its channel: `load` asks the statistics, as the real one's does."""

    __slots__ = ("_latency", "id", "weight")

    def __init__(self, number: int, rng: random.Random) -> None:
        self.id = f"payment-{number}"
        self.weight = 1
        self._latency = PeakEwma(decay=10.0)
        self._latency.observe(rng.uniform(0.001, 0.1), NOW - rng.uniform(0.0, 10.0))
        self._latency.pending = rng.randrange(8)

    @property
    def is_failing(self):
        return self._latency.is_failing

    def load(self, now: float) -> float:
        return self._latency.load(now)


def main() -> None:
    given = stopwatch.arguments("What choosing an endpoint costs.")
    rng = random.Random(1)
    endpoints = tuple(Candidate(number, rng) for number in range(max(SIZES)))
    cases = stopwatch.Cases()
    cases.add("peer: rng.choice over 10", "choice(some)", choice=rng.choice, some=endpoints[:10])
    for kind in KINDS:
        balancer = create_balancer(Balancer(kind), rng)
        for size in SIZES:
            picker = balancer.picker(endpoints[:size])
            cases.add(f"{kind} over {size}", "pick(now, key)", pick=picker.pick, now=NOW, key=KEY)
    times = cases.measure(given.rounds)
    growth = {
        str(kind): round(
            times[f"{kind} over {SIZES[-1]}"].median / times[f"{kind} over {SIZES[0]}"].median, 2
        )
        for kind in KINDS
    }
    stopwatch.show(times, given.output, growth_from_10_to_10000=growth)


if __name__ == "__main__":
    main()

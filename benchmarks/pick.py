"""What choosing an endpoint costs, by balancer and number of endpoints.

The peer is `rng.choice` over 10 endpoints, what a program without balancers would write. Endpoints
are what a balancer sees of one. Each has another latency and other calls under way, and a past in
which things happened to all of them in random order, so that what is known of one lies scattered in
memory as it does in a client: 10,000 of them are more than a processor's nearest caches hold, and
whatever goes to one at random waits for it. What the choice itself costs more is seen where 10,000
places are those of the same ten endpoints.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import stopwatch

from meshrpc.balancer import create_balancer
from meshrpc.balancer.capacity import Capacity
from meshrpc.balancer.load import Load
from meshrpc.policy.model import Balancer, BalancerKind
from meshrpc.resilience.outcome import Outcome

SIZES = (10, 100, 1_000, 10_000)
NOW = 1_000.0
KEY = "cart-7"
SAME = f"{SIZES[-1]} places of 10"
ANYWHERE = (
    BalancerKind.ROUND_ROBIN,
    BalancerKind.RANDOM,
    BalancerKind.LEAST_REQUEST,
    BalancerKind.PEAK_EWMA,
)
"""Those for which an endpoint may be there several times."""


class Candidate:
    """An endpoint without its channel."""

    __slots__ = ("capacity", "id", "load", "weight")

    def __init__(self, number: int) -> None:
        self.id = f"payment-{number}"
        self.weight = 1
        self.load = Load(decay=10.0)
        self.capacity = Capacity()


def live(endpoints: Sequence[Candidate], rng: random.Random) -> None:
    """Let calls begin and end at all of them, 1 to 100 ms long, until up to 7 are under way."""
    for ended in (NOW - 5.0, NOW - 1.0):
        for endpoint in rng.sample(endpoints, len(endpoints)):
            latency = rng.uniform(0.001, 0.1)
            endpoint.load.start(ended - latency)
            endpoint.load.finish(ended - latency)
            endpoint.load.learn(Outcome.SUCCESS, latency, ended)
    for endpoint in rng.sample(endpoints, len(endpoints)):
        for _ in range(rng.randrange(8)):
            endpoint.load.start(NOW)


def main() -> None:
    given = stopwatch.arguments("What choosing an endpoint costs.")
    rng = random.Random(1)
    endpoints = tuple(Candidate(number) for number in range(max(SIZES)))
    live(endpoints, rng)
    cases = stopwatch.Cases()
    cases.add("peer: rng.choice over 10", "choice(some)", choice=rng.choice, some=endpoints[:10])
    groups = {f"{size}": endpoints[:size] for size in SIZES}
    groups[SAME] = endpoints[: SIZES[0]] * (SIZES[-1] // SIZES[0])
    for kind in BalancerKind:
        for size, group in groups.items():
            if size != SAME or kind in ANYWHERE:
                pick = create_balancer(Balancer(kind), rng).picker(group).pick
                cases.add(f"{kind} over {size}", "pick(now, key)", pick=pick, now=NOW, key=KEY)
    times = cases.measure(given.rounds)

    def growth(size: str, kinds: Iterable[BalancerKind]) -> dict[str, float]:
        few = SIZES[0]
        return {
            str(kind): round(
                times[f"{kind} over {size}"].median / times[f"{kind} over {few}"].median, 2
            )
            for kind in kinds
        }

    stopwatch.show(
        times,
        given.output,
        growth_from_10_to_10000=growth(f"{SIZES[-1]}", BalancerKind),
        growth_where_caches_hold_them=growth(SAME, ANYWHERE),
    )


if __name__ == "__main__":
    main()

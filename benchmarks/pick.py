"""What choosing an endpoint costs, by balancer and number of endpoints.

The peer is `rng.choice` over 10 endpoints, what a program without balancers would write. Endpoints
are what a balancer sees of one. Ten have latencies and calls under way that differ, and each further ten
are like them; all have a past in
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
    """Let calls begin and end at all of them, 5 to 15 ms long, until up to 3 are under way.

    Every ten endpoints are like every other ten, so that groups differ in their size alone.
    """
    latencies = [rng.uniform(0.005, 0.015) for _ in range(SIZES[0])]
    under_way = [rng.randrange(4) for _ in range(SIZES[0])]
    places = range(len(endpoints))
    for ended in (NOW - 5.0, NOW - 1.0):
        for place in rng.sample(places, len(places)):
            load, latency = endpoints[place].load, latencies[place % SIZES[0]]
            load.start(ended - latency)
            load.finish(ended - latency)
            load.learn(Outcome.SUCCESS, latency * rng.uniform(0.999, 1.0), ended)
    for place in rng.sample(places, len(places)):
        for _ in range(under_way[place % SIZES[0]]):
            endpoints[place].load.start(NOW)


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

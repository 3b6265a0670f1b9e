"""Zones: how many calls stay in their caller's zone, and where the others go.

Envoy's zone aware routing. A zone keeps its own callers' calls as far as its part of all instances
goes; what is too much goes to the other zones in proportion to what they can spare. When all
callers do so and are equally busy, every zone gets exactly its part: no instance has more load
than it would have without zones, and no other way to have that keeps more calls at home. Choose it
when calls between zones are slow or cost money. It costs 0.1 us a pick, and unequal load where
callers are few, or some are busier than others.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from meshrpc.balancer.balancer import Picker
from meshrpc.balancer.candidate import Candidate

E = TypeVar("E", bound=Candidate)


def zone_shares(
    own: str,
    instances: Mapping[str | None, float],
    callers: Mapping[str | None, float] | None = None,
) -> dict[str | None, float]:
    """Return what part of its calls a caller in zone `own` sends to each zone.

    Args:
        own: The caller's zone.
        instances: How many instances of the service work in each zone; all of them, not only
            those of this caller's subset, which has more of its own zone than there are.
        callers: How many instances of the calling service are in each zone. None, or none in any
            zone: as many in one as in another, over `own` and all of `instances`. Those without
            a zone do not count: they call instances of all zones alike, and so unbalance nothing.

    Returns:
        Fractions of 1, only of zones that get calls; empty when no instance works at all.
    """
    demand: dict[str | None, float] = {
        zone: n for zone, n in (callers or {}).items() if zone is not None and n > 0
    }
    if not demand:
        demand = dict.fromkeys({own, *instances} - {None}, 1.0)
    capacity = {zone: n for zone, n in instances.items() if n > 0}
    if not capacity:
        return {}
    # Capacity and demand, each a part of its total, are compared times both totals: in counts,
    # that is exact, and no rounding error is taken for something to spare.
    in_all, demand_in_all = sum(capacity.values()), sum(demand.values())
    spare = {zone: n * demand_in_all - demand.get(zone, 0) * in_all for zone, n in capacity.items()}
    shares: dict[str | None, float] = {}
    if own in capacity:
        if spare[own] >= 0:
            return {own: 1.0}
        shares[own] = capacity[own] * demand_in_all / (demand[own] * in_all)
    others = {zone: n for zone, n in spare.items() if zone != own and n > 0}
    if not others:  # only when `own` has callers that `callers` does not tell of
        others = {zone: n for zone, n in capacity.items() if zone != own}
    leaving, spare_in_all = 1.0 - shares.get(own, 0.0), sum(others.values())
    shares |= {zone: leaving * n / spare_in_all for zone, n in others.items()}
    return shares


class ZonePicker(Generic[E]):
    """A zone drawn by its share of the calls, and the endpoint that its own picker chooses."""

    __slots__ = ("_ends", "_pickers", "_rng")

    def __init__(self, pickers: Sequence[tuple[float, Picker[E]]], rng: random.Random) -> None:
        """Make it of each zone's share, above 0, and picker; shares need not sum to 1."""
        in_all = sum(share for share, _ in pickers)
        # The last one's end is left out: rounding might put it just below 1.
        self._ends = [end / in_all for end in accumulate(share for share, _ in pickers[:-1])]
        self._pickers = tuple(picker for _, picker in pickers)
        self._rng = rng

    def pick(self, now: float, key: str | None = None) -> E:  # noqa: ARG002 - no key is kept to
        """Return an endpoint of the zone drawn."""
        return self._pickers[bisect(self._ends, self._rng.random())].pick(now)

"""What all balancers share: the picker they make and the endpoints it chooses from.

As in grpc-go, a balancer is the slow side: whenever the set of ready endpoints or the policy
changes it makes a new, immutable picker. The picker is the fast side: `pick` chooses one of
the endpoints it was made with; it never blocks, and it owns no statistics. Those live on the
endpoints, so that a new picker forgets nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

from meshrpc.balancer.peak_ewma import PeakEwmaBalancer
from meshrpc.balancer.random_choice import RandomBalancer
from meshrpc.balancer.ring_hash import RingHashBalancer
from meshrpc.balancer.round_robin import RoundRobinBalancer
from meshrpc.policy import model


class Candidate(Protocol):
    """An endpoint, as far as a balancer looks at it."""

    @property
    def id(self) -> str:
        """Its instance's id."""
        ...

    @property
    def weight(self) -> int:
        """Its share, relative to the others'."""
        ...

    @property
    def is_failing(self) -> bool:
        """Whether it has failed and not succeeded since."""
        ...

    def load(self, now: float) -> float:
        """Return how loaded it is; less is better, and only the order means anything."""
        ...


E = TypeVar("E", bound=Candidate)
Picked_co = TypeVar("Picked_co", bound=Candidate, covariant=True)


class Picker(Protocol[Picked_co]):
    """An immutable choice among at least one endpoint."""

    def pick(self, now: float, key: str | None = None) -> Picked_co:
        """Return the endpoint for the next attempt; `key` is what hashing balancers go by."""
        ...


class Balancer(Protocol):
    """Makes pickers; keeps what must survive from one picker to the next."""

    def picker(self, endpoints: Sequence[E]) -> Picker[E]:
        """Return a picker over `endpoints`, of which there is at least one."""
        ...


def create_balancer(policy: model.Balancer, rng: random.Random) -> Balancer:
    """Return the balancer that `policy` names.

    Raises:
        ValueError: the language has it, this release does not; the loader refuses it before.
    """
    match policy.kind:
        case model.BalancerKind.ROUND_ROBIN:
            return RoundRobinBalancer(rng)
        case model.BalancerKind.RANDOM:
            return RandomBalancer(rng)
        case model.BalancerKind.PEAK_EWMA:
            return PeakEwmaBalancer(rng)
        case model.BalancerKind.RING_HASH:
            return RingHashBalancer(rng)
        case _:
            raise ValueError(f"no balancer {policy.kind}")

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

from meshrpc.balancer.candidate import Candidate
from meshrpc.balancer.least_request import LeastRequestBalancer
from meshrpc.balancer.maglev import MaglevBalancer
from meshrpc.balancer.peak_ewma import PeakEwmaBalancer
from meshrpc.balancer.random_choice import RandomBalancer
from meshrpc.balancer.ring_hash import RingHashBalancer
from meshrpc.balancer.round_robin import RoundRobinBalancer
from meshrpc.balancer.weighted_round_robin import WeightedRoundRobinBalancer
from meshrpc.policy import model

E = TypeVar("E", bound=Candidate)
Picked_co = TypeVar("Picked_co", bound=Candidate, covariant=True)


class Picker(Protocol[Picked_co]):
    """An immutable choice among at least one endpoint."""

    def pick(self, now: float, key: str | None = None) -> Picked_co:
        """Return the endpoint for the next attempt; `key` is what hashing balancers go by."""
        ...


class Balancer(Protocol):
    """Makes the pickers of one group of endpoints; keeps what must survive from one to the next."""

    def picker(self, ready: Sequence[E], members: Sequence[E] | None = None) -> Picker[E]:
        """Return a picker over those that are ready, at least one.

        `members` are all that it may ever choose among, ready or not; None: the ready ones.
        Balancers that go by a key give each key an owner among them, so that all processes agree.
        """
        ...


def create_balancer(policy: model.Balancer, rng: random.Random) -> Balancer:
    """Return the balancer that `policy` names."""
    match policy.kind:
        case model.BalancerKind.ROUND_ROBIN:
            return RoundRobinBalancer(rng)
        case model.BalancerKind.RANDOM:
            return RandomBalancer(rng)
        case model.BalancerKind.WEIGHTED_ROUND_ROBIN:
            return WeightedRoundRobinBalancer(policy, rng)
        case model.BalancerKind.LEAST_REQUEST:
            return LeastRequestBalancer(rng, policy.choices)
        case model.BalancerKind.PEAK_EWMA:
            return PeakEwmaBalancer(rng)
        case model.BalancerKind.RING_HASH:
            return RingHashBalancer(rng, policy.max_load)
        case model.BalancerKind.MAGLEV:
            return MaglevBalancer(rng, policy.max_load)

"""The roster: which instances of a service this process connects to, and what each subset has.

A service of thousands is not connected to by everybody: each caller draws `subset_size` of its
instances (`balancer/subsetting.py`), and so many of each subset that its policy names, for a canary
of two must be among those of everybody who is to try it. Balancers that go by a key connect to all:
a key has one owner, the same for all callers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from meshrpc.balancer.subsetting import first, rank
from meshrpc.policy.model import EffectivePolicy
from meshrpc.policy.subset import Subset
from meshrpc.registry.instance import Health, Instance


@dataclass(frozen=True, slots=True)
class Group:
    """The instances of one subset."""

    members: frozenset[str] = frozenset()
    """Ids of those that calls from here may go to."""
    zones: Mapping[str | None, int] = field(default_factory=dict)
    """Active instances by zone, whether anybody here connects to them or not."""


@dataclass(frozen=True, slots=True)
class Roster:
    """What one process makes of the instances of a service."""

    groups: Mapping[Subset | None, Group]
    """By subset; None: all instances."""
    connected: frozenset[str]
    """Ids of all that it connects to."""


NOBODY = Roster({None: Group()}, frozenset())
"""Before the registry has answered."""


def draw(
    instances: Sequence[Instance],
    policy: EffectivePolicy,
    subsets: Collection[Subset],
    *,
    seed: str,
    zone: str | None,
) -> Roster:
    """Return who of `instances` a process connects to; the draining ones it has come besides.

    Args:
        instances: all that the registry has, in any state.
        policy: of the service.
        subsets: those that its policy names.
        seed: tells this process from the others, which draw others.
        zone: where this process stands.
    """
    active = [each for each in instances if each.takes_calls]
    # If none says that it serves, somebody may be wrong about that.
    active = [each for each in active if each.health is not Health.NOT_SERVING] or active
    size = len(active) if policy.balancer.is_keyed else policy.subset_size
    prefers = zone if policy.locality.zone else None
    if len(active) > size:
        active = rank(active, seed)  # once for all subsets: of thousands, that takes a while

    def group(members: Sequence[Instance]) -> Group:
        chosen = first(members, size, prefers)
        zones = Counter(each.zone for each in members) if policy.locality.zone else {}
        return Group(frozenset(each.id for each in chosen), zones)

    groups: dict[Subset | None, Group] = {None: group(active)}
    for subset in subsets:
        labels = dict(subset.labels)
        groups[subset] = group([each for each in active if each.has_labels(labels)])
    return Roster(groups, frozenset().union(*(each.members for each in groups.values())))

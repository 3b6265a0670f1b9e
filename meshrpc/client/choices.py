"""Choices: the ready endpoints of a destination, and which of them a call may go to.

For all calls, and for each subset that was ever asked for, there is one picker over those endpoints
that belong to it and are not ejected; where calls keep to their zone, one for each zone besides. All
of them are made anew, off the hot path, when endpoints become ready or cease to be, are ejected or
come back, or the policy changes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from meshrpc.balancer import Balancer, Picker, create_balancer
from meshrpc.balancer.peak_ewma import TwoChoicesPicker
from meshrpc.balancer.zones import ZonePicker, zone_shares
from meshrpc.client.aim import ANYWHERE, Aim
from meshrpc.client.endpoint import READY, Endpoint
from meshrpc.client.roster import NOBODY, Group, Roster
from meshrpc.policy.model import EffectivePolicy
from meshrpc.policy.subset import Subset
from meshrpc.resilience.health import Admission
from meshrpc.resilience.outlier import OutlierDetector
from meshrpc.resilience.slow_start import least_share, share

_PICKS = 3
"""Picks that may hit an endpoint whose connection broke since the picker was made."""


class _Choice(NamedTuple):
    """The endpoints that some calls may go to, and the pickers over them."""

    active: tuple[Endpoint, ...]
    """All that are not draining, ready or not."""
    ready: tuple[Endpoint, ...] = ()
    picker: Picker[Endpoint] | None = None
    settled: Picker[Endpoint] | None = None
    """Over those that had their full share when it was made, where some had it and some not."""
    least_share: float = 1.0
    """What those get at least who had not."""


_NONE = _Choice(())


class _Part(NamedTuple):
    """Endpoints with a balancer of their own: were two to take turns, neither would be even."""

    subset: Subset | None
    zone: str | None
    is_settled: bool


class Choices:
    """What calls may choose among just now."""

    def __init__(
        self, policy: EffectivePolicy, rng: random.Random, *, zone: str | None = None
    ) -> None:
        """`zone`: where this process stands."""
        self.callers: Mapping[str | None, int] = {}
        """Instances of the calling service by zone; empty: not known."""
        self._rng = rng
        self._policy = policy
        self._zone = zone
        self._active: tuple[Endpoint, ...] = ()
        self._roster = NOBODY
        self._balancers: dict[_Part, Balancer] = {}
        self._by_subset: dict[Subset | None, _Choice] = {None: _NONE}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._by_subset[None].ready)

    def configure(self, policy: EffectivePolicy) -> None:
        """Let calls that start from now on follow `policy`; `replace` follows."""
        if policy.balancer != self._policy.balancer:
            self._balancers = {}
        self._policy = policy

    def replace(self, active: tuple[Endpoint, ...], roster: Roster, now: float) -> None:
        """Choose among other endpoints from now on, or among the same that have changed.

        `active` are all that are not draining, ready or not.
        """
        self._active = active
        self._roster = roster
        self._now = now
        before, self._balancers = self._balancers, {}
        self._by_subset = {
            subset: self._choice(subset, before)
            for subset in self._by_subset
            if subset is None or subset in roster.groups
        }

    def pick(self, now: float, aim: Aim = ANYWHERE) -> Endpoint | None:
        """Return a ready endpoint at once; None when there is none just now."""
        choice = self._by_subset.get(aim.subset) or self.among(aim.subset)
        picker = choice.picker
        if picker is None:
            return None
        for _ in range(_PICKS):
            endpoint = picker.pick(now, aim.hash_key)
            if endpoint.warm_at > now and choice.settled is not None:
                part = share(endpoint.warm_at, now, self._policy.slow_start.window)
                if self._rng.random() >= max(part, choice.least_share):
                    other = choice.settled.pick(now)
                    # Never to one that fails: that would take the calls from the one that works.
                    endpoint = endpoint if other.load.is_failing else other
            if endpoint.is_ready():
                return endpoint
        return next((endpoint for endpoint in choice.ready if endpoint.is_ready()), None)

    def pick_untried(self, tried: Collection[Endpoint], now: float, aim: Aim) -> Endpoint | None:
        """Return the less loaded of two untried endpoints, whatever the balancer.

        The balancer itself is left alone: were retries to take turns of a round robin, every
        call after a failed one could begin at the same bad endpoint again.
        """
        if not tried:
            return None
        ready = self.among(aim.subset).ready
        untried = [each for each in ready if each not in tried and each.is_ready()]
        return TwoChoicesPicker(tuple(untried), self._rng).pick(now) if untried else None

    def among(self, subset: Subset | None) -> _Choice:
        """Return what calls to a subset choose from; None: calls to any instance."""
        choice = self._by_subset.get(subset)
        if choice is None:
            if subset is not None and subset.is_unknown:
                return _NONE  # not remembered: there is no end to the names that calls may say
            choice = self._by_subset[subset] = self._choice(subset, self._balancers)
        return choice

    def is_in(self, subset: Subset | None, endpoint: Endpoint) -> bool:
        """Return whether calls to a subset may go to an endpoint; None: calls to any instance."""
        group = self._roster.groups.get(subset)
        if group is not None:
            return endpoint.id in group.members
        # Only calls that began under an older policy have such a subset.
        return subset is None or endpoint.instance.has_labels(dict(subset.labels))

    def _choice(self, subset: Subset | None, balancers: Mapping[_Part, Balancer]) -> _Choice:
        active = tuple(each for each in self._active if self.is_in(subset, each))
        ready = tuple(each for each in active if each.state is READY)
        admitted = tuple(each for each in ready if each.health.admission is Admission.ADMITTED)
        if not OutlierDetector.is_panicking(len(admitted), len(active)):
            ready = admitted
        if not ready:
            return _Choice(active)
        settled = tuple(each for each in ready if each.warm_at <= self._now)
        # Keys keep their owner, cold or not.
        partly = 0 < len(settled) < len(ready) and not self._policy.balancer.is_keyed

        def picker(among: tuple[Endpoint, ...], *, is_settled: bool) -> Picker[Endpoint]:
            return self._picker(subset, active, among, balancers, is_settled=is_settled)

        return _Choice(
            active,
            ready,
            picker(ready, is_settled=False),
            picker(settled, is_settled=True) if partly else None,
            least_share(len(active), len(ready), len(settled)),
        )

    def _picker(
        self,
        subset: Subset | None,
        active: tuple[Endpoint, ...],
        ready: tuple[Endpoint, ...],
        before: Mapping[_Part, Balancer],
        *,
        is_settled: bool,
    ) -> Picker[Endpoint]:
        """Return a picker over `ready`, which keeps to zones where the policy says so."""

        def part(zone: str | None, endpoints: Sequence[Endpoint]) -> Picker[Endpoint]:
            key = _Part(subset, zone, is_settled)
            balancer = before.get(key) or create_balancer(self._policy.balancer, self._rng)
            self._balancers[key] = balancer
            return balancer.picker(endpoints, active)

        shares = self._zone_shares(self._roster.groups.get(subset), active, ready)
        if not shares:
            return part(None, ready)
        pickers = [
            (portion, part(zone, [each for each in ready if each.instance.zone == zone]))
            for zone, portion in shares.items()
        ]
        return ZonePicker(pickers, self._rng)

    def _zone_shares(
        self, group: Group | None, active: Sequence[Endpoint], ready: Sequence[Endpoint]
    ) -> Mapping[str | None, float]:
        """Return what part of the calls goes to which zone; nothing: zones make no difference."""
        locality = self._policy.locality
        if not locality.zone or self._zone is None or group is None:
            return {}
        if self._policy.balancer.is_keyed:
            return {}  # a key has one owner, wherever that is
        if sum(group.zones.values()) < locality.min_instances:
            return {}
        known = Counter(each.instance.zone for each in active)
        well = Counter(each.instance.zone for each in ready)
        # Of those that this process does not connect to, as many work as of those it does.
        capacity = {zone: group.zones[zone] * well[zone] / known[zone] for zone in known}
        return zone_shares(self._zone, capacity, self.callers)

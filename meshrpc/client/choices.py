"""Choices: the ready endpoints of a destination, and which of them a call may go to.

For all calls, and for each subset that was ever asked for, there is one picker over those endpoints
that belong to it and are not ejected. All of them are made anew, off the hot path, when endpoints
become ready or cease to be, are ejected or come back, or the policy changes.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import NamedTuple

from meshrpc.balancer import Picker, create_balancer
from meshrpc.balancer.peak_ewma import TwoChoicesPicker
from meshrpc.client.call_options import NOTHING_SAID, CallOptions
from meshrpc.client.endpoint import READY, Endpoint
from meshrpc.policy.model import EffectivePolicy
from meshrpc.resilience.health import Admission
from meshrpc.resilience.outlier import OutlierDetector
from meshrpc.resilience.slow_start import least_share, share

_PICKS = 3
"""Picks that may hit an endpoint whose connection broke since the picker was made."""


class _Choice(NamedTuple):
    """The endpoints that some calls may go to, and the pickers over them."""

    ready: tuple[Endpoint, ...]
    picker: Picker[Endpoint] | None
    settled: Picker[Endpoint] | None = None
    """Over those that had their full share when it was made, where some had it and some not."""
    least_share: float = 1.0
    """What those get at least who had not."""


_NO_CHOICE = _Choice((), None)


class Choices:
    """What calls may choose among just now."""

    def __init__(self, policy: EffectivePolicy, rng: random.Random) -> None:
        self._rng = rng
        self._policy = policy
        self._balancer = create_balancer(policy.balancer, rng)
        self._active: tuple[Endpoint, ...] = ()
        self._by_subset: dict[str | None, _Choice] = {None: _NO_CHOICE}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._by_subset[None].ready)

    def configure(self, policy: EffectivePolicy, now: float) -> None:
        """Let calls that start from now on follow `policy`."""
        before, self._policy = self._policy, policy
        if policy.balancer != before.balancer:
            self._balancer = create_balancer(policy.balancer, self._rng)
        if policy.balancer != before.balancer or policy.subsets != before.subsets:
            self.replace(self._active, now)

    def replace(self, active: tuple[Endpoint, ...], now: float) -> None:
        """Choose among other endpoints from now on, or among the same that have changed.

        `active` are all that are not draining, ready or not.
        """
        self._active = active
        self._now = now
        self._by_subset = {
            subset: self._choice(subset)
            for subset in self._by_subset
            if subset is None or subset in self._policy.subsets
        }

    def pick(self, now: float, options: CallOptions = NOTHING_SAID) -> Endpoint | None:
        """Return a ready endpoint at once; None when there is none just now."""
        choice = self._by_subset.get(options.subset) or self._among(options.subset)
        picker = choice.picker
        if picker is None:
            return None
        for _ in range(_PICKS):
            endpoint = picker.pick(now, options.hash_key)
            if endpoint.warm_at > now and choice.settled is not None and options.hash_key is None:
                part = share(endpoint.warm_at, now, self._policy.slow_start.window)
                if self._rng.random() >= max(part, choice.least_share):
                    other = choice.settled.pick(now)
                    # Never to one that fails: that would take the calls from the one that works.
                    endpoint = endpoint if other.is_failing else other
            if endpoint.is_ready():
                return endpoint
        return next((endpoint for endpoint in choice.ready if endpoint.is_ready()), None)

    def pick_untried(
        self, tried: Collection[Endpoint], now: float, options: CallOptions
    ) -> Endpoint | None:
        """Return the less loaded of two untried endpoints, whatever the balancer.

        The balancer itself is left alone: were retries to take turns of a round robin, every
        call after a failed one could begin at the same bad endpoint again.
        """
        if not tried:
            return None
        ready = self._among(options.subset).ready
        untried = [each for each in ready if each not in tried and each.is_ready()]
        return TwoChoicesPicker(tuple(untried), self._rng).pick(now) if untried else None

    def is_in(self, subset: str | None, endpoint: Endpoint) -> bool:
        """Return whether an endpoint belongs to a subset; None: all do."""
        if subset is None:
            return True
        labels = self._policy.subsets.get(subset)
        return labels is not None and endpoint.instance.has_labels(labels)

    def why_nobody_in(self, subset: str) -> str:
        """Return, for people, why a subset has no active instance."""
        service, subsets = self._policy.service, self._policy.subsets
        if subset not in subsets:
            known = ", ".join(sorted(subsets)) or "none"
            return f"the policy of service {service!r} has no subset {subset!r}, only: {known}"
        asked = ", ".join(f"{key}={value}" for key, value in subsets[subset].items())
        return f"service {service!r} has no active instance in subset {subset!r} ({asked})"

    def _among(self, subset: str | None) -> _Choice:
        choice = self._by_subset.get(subset)
        if choice is None:
            if subset not in self._policy.subsets:
                return _NO_CHOICE
            choice = self._by_subset[subset] = self._choice(subset)
        return choice

    def _choice(self, subset: str | None) -> _Choice:
        active = [each for each in self._active if self.is_in(subset, each)]
        ready = tuple(each for each in active if each.state is READY)
        admitted = tuple(each for each in ready if each.health.admission is Admission.ADMITTED)
        if not OutlierDetector.is_panicking(len(admitted), len(active)):
            ready = admitted
        if not ready:
            return _NO_CHOICE
        settled = tuple(each for each in ready if each.warm_at <= self._now)
        partly = settled and len(settled) < len(ready)
        return _Choice(
            ready,
            self._balancer.picker(ready),
            self._balancer.picker(settled) if partly else None,
            least_share(len(active), len(ready), len(settled)),
        )

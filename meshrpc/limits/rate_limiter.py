"""All rate limits of one process.

A call passes when every limit has a token for it; otherwise it takes none. How one limit counts is
told in `limit`. Of limits over the fleet, control is told what is wanted here (`claims`), and says
which share of it this process may use (`take_shares`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshrpc.limits.keys import Key, describe
from meshrpc.limits.limit import Limit, LimitCounts
from meshrpc.limits.shares import Claim, Share
from meshrpc.policy.model import RateLimit
from meshrpc.wire import Metadata

_SHARES_MOVE_WITHIN = 1.0
"""Seconds. What a share will have by then, this process cannot know: nobody waits for longer than
that on account of a share that is small."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call was refused, and when it is worth coming back."""

    limit: RateLimit
    key: str
    """What was counted, as `caller=order`; empty for a limit over all calls."""
    wait: float
    """Seconds until the bucket has a token again; of a limit over the fleet, or 1 if that is less."""
    rate: float
    """Of this key, in calls per second."""
    share: float | None = None
    """What this process has of a limit over the fleet, in calls per second."""


class RateLimiter:
    """All rate limits of this process."""

    def __init__(self, limits: tuple[RateLimit, ...] = ()) -> None:
        self._limits: tuple[Limit, ...] = ()
        self.configure(limits, 0.0)

    def __repr__(self) -> str:
        names = ", ".join(limit.spec.name for limit in self._limits)
        return f"<RateLimiter {names or 'no limits'}>"

    @property
    def counts(self) -> dict[str, LimitCounts]:
        """What became of calls, by the name of each limit."""
        return {limit.spec.name: limit.counts for limit in self._limits}

    def configure(self, limits: tuple[RateLimit, ...], now: float) -> None:
        """Replace the limits. One that keeps name and key keeps its buckets, and no tokens come up."""
        if len({spec.name for spec in limits}) < len(limits):
            raise ValueError("two rate limits of one name: what they count could not be told apart")
        known = {limit.spec.name: limit for limit in self._limits}
        configured = []
        for spec in limits:
            limit = known.get(spec.name)
            if limit is None:
                limit = Limit(spec)
            elif limit.spec != spec:
                limit.reconfigure(spec, now)
            configured.append(limit)
        self._limits = tuple(configured)

    def check(self, now: float, caller: str, method: str, metadata: Metadata) -> Refusal | None:
        """Take a token from every limit, or from none and say which one refused for longest.

        `now` is in monotonic seconds; `method` is `/pkg.Service/Method`.
        """
        refusal: Refusal | None = None
        limits = self._limits
        for limit in limits:
            key = limit.key_of(caller, method, metadata)
            bucket = limit.bucket(key, now)
            wait = bucket.take(now)
            if wait == 0.0:
                limit.taken = bucket
                limit.counts.admitted += 1
                continue
            limit.taken = None
            if limit.is_shadow:
                limit.counts.would_refuse += 1
                continue
            limit.counts.refused += 1
            if refusal is None or wait > refusal.wait:
                refusal = _refusal(limit, key, wait)
        if refusal is not None:
            for limit in limits:
                if limit.taken is not None:
                    limit.taken.give_back()
                    limit.counts.admitted -= 1
        return refusal

    # Over the fleet.

    @property
    def has_fleet_limits(self) -> bool:
        """Whether any limit is one over the fleet."""
        return any(limit.fleet is not None for limit in self._limits)

    def look(self, now: float) -> bool:
        """Work out what is wanted of limits over the fleet; return whether that changed a lot."""
        changed = [limit for limit in self._limits if limit.look(now)]  # all are to look
        return bool(changed)

    def claims(self) -> tuple[Claim, ...]:
        """Return what this process wants and uses of all limits over the fleet."""
        return tuple(claim for limit in self._limits for claim in limit.claims())

    def take_shares(self, shares: Iterable[Share], now: float) -> None:
        """Use these shares from now on; those of limits that are not here mean nothing."""
        limits = {limit.spec.name: limit for limit in self._limits}
        for share in shares:
            if (limit := limits.get(share.limit)) is not None:
                limit.take_share(share, now)


def _refusal(limit: Limit, key: Key, wait: float) -> Refusal:
    spec, rate, share = limit.spec, limit.rate_of(key), limit.share_of(key)
    if share is not None:
        wait = min(wait, max(_SHARES_MOVE_WITHIN, 1 / rate))
    return Refusal(spec, describe(spec.key, key), wait, rate, share)

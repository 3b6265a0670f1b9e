"""One rate limit in one process: a token bucket per key, in bounded memory.

A bucket that is full again is like a new one, so only such are forgotten to make room. A change of
size adds no tokens, to buckets nobody has taken from neither: a share of a limit over the fleet that
moves to another process brings no second burst there. Where every
remembered bucket is still in use, newcomers share one more: whoever invents keys shares a bucket
with the others who do, gets no fresh tokens by pushing old keys out, and takes nothing from those
already known. Keys with an override, and those with a share of their own of a limit over the
fleet, always have a bucket.
"""

from __future__ import annotations

from collections import OrderedDict
from fractions import Fraction

from meshrpc.limits.fleet_share import FleetShare
from meshrpc.limits.keys import Key, from_wire, key_function, key_of_override
from meshrpc.limits.shares import EVERY_KEY, WHOLE, Claim, Share, size
from meshrpc.limits.token_bucket import TokenBucket
from meshrpc.policy.model import LimitMode, RateLimit, ShareMode

# Buckets looked at, oldest first, for one that may be forgotten. Each look that fails sends its
# bucket to the end, so the search goes round; a bound keeps one call's cost constant.
_LOOKS_FOR_ROOM = 8


class LimitCounts:
    """What became of the calls that one limit saw."""

    __slots__ = ("admitted", "refused", "would_refuse")

    def __init__(self) -> None:
        self.admitted = 0
        self.refused = 0
        self.would_refuse = 0
        """Calls that a limit in shadow mode had no token for, and let pass."""

    def __repr__(self) -> str:
        return (
            f"<LimitCounts admitted={self.admitted} refused={self.refused}"
            f" would_refuse={self.would_refuse}>"
        )


class Limit:
    """The buckets of one rate limit."""

    __slots__ = (
        "_buckets",
        "_overflow",
        "_own",
        "_sizes",
        "_untouched",
        "counts",
        "fleet",
        "is_shadow",
        "key_of",
        "spec",
        "taken",
    )

    def __init__(self, spec: RateLimit) -> None:
        self.counts = LimitCounts()
        self.taken: TokenBucket | None = None
        """The bucket the call being checked took from; means nothing between calls."""
        self.fleet: FleetShare | None = None
        """What this process has of it; None: the limit is this process's alone."""
        self._start(spec)

    def __repr__(self) -> str:
        return f"<Limit {self.spec.name} buckets={len(self._own) + len(self._buckets)}>"

    def _start(self, spec: RateLimit) -> None:
        self.spec = spec
        self.is_shadow = spec.mode is LimitMode.SHADOW
        self.key_of = key_function(spec.key)
        if spec.share is not ShareMode.FLEET:
            self.fleet = None
        elif self.fleet is None:
            self.fleet = FleetShare()
        self._sizes = {
            key_of_override(spec.key, each): (each.rate, each.burst) for each in spec.overrides
        }
        self._overflow = self._full(None)
        self._untouched = self._overflow.copy()
        """What each key has that is not remembered. Full, but for a while after a change of size."""
        self._buckets: OrderedDict[Key, TokenBucket] = OrderedDict()
        self._own = {key: self._full(key) for key in self._always_known()}

    def reconfigure(self, spec: RateLimit, now: float) -> None:
        """Follow another specification. No bucket that has been counted in gets tokens by it."""
        if spec.key != self.spec.key:
            self.fleet = None  # other keys: what was counted says nothing about them
            self._start(spec)
            return
        overrides = (key_of_override(spec.key, each) for each in spec.overrides)
        known = {key: self._known(key) for key in (*self._own, *self._buckets, *overrides)}
        overflow, untouched = self._overflow, self._untouched
        self._start(spec)
        self._overflow = overflow.resized(self._overflow, now)
        self._untouched = untouched.resized(self._untouched, now)
        for key, bucket in known.items():
            bucket = bucket.reconfigured(*self._size(key), now)  # noqa: PLW2901 - the same, resized
            if key in self._own:
                self._own[key] = bucket
            elif not bucket.is_full(now):
                self._buckets[key] = bucket

    def bucket(self, key: Key, now: float) -> TokenBucket:
        """Return the bucket that calls of this key take from."""
        bucket = self._buckets.get(key) or self._own.get(key)
        if bucket is None:
            if not self._has_room(now):
                return self._overflow
            bucket = self._buckets[key] = self._untouched.copy()
        if self.fleet is not None:
            asked = self.fleet.asked
            asked[key] = asked.get(key, 0) + 1
        return bucket

    def rate_of(self, key: Key) -> float:
        """Return the rate of this key's bucket, over the fleet if the limit is the fleet's."""
        return self._sizes.get(key, (self.spec.rate, 0))[0]

    def share_of(self, key: Key) -> float | None:
        """Return what this process has of it, in calls per second; None: all."""
        if self.fleet is None:
            return None
        return self.rate_of(key) * self.fleet.of(key) / WHOLE

    # Over the fleet.

    def look(self, now: float) -> bool:
        """Work out what is wanted of it here; return whether that has changed a lot."""
        return self.fleet is not None and self.fleet.look(now, self.rate_of)

    def claims(self) -> list[Claim]:
        """Return what to tell control of it."""
        return [] if self.fleet is None else self.fleet.claims(self.spec, self.rate_of)

    def take_share(self, share: Share, now: float) -> None:
        """Use another share of one bucket from now on; no bucket gets tokens by it."""
        fleet = self.fleet
        if fleet is None:
            return
        if share.key == EVERY_KEY:
            if share.share is not None:
                fleet.every, fleet.is_granted = max(1, share.share), True
                self._resize_all(now)
            return
        key = from_wire(share.key, self.spec.key)
        if key is None or not fleet.has_room_for(key):
            return
        bucket = self._known(key)
        if share.share is None:
            fleet.shares.pop(key, None)
        else:
            fleet.shares[key] = max(1, share.share)
        bucket = bucket.reconfigured(*self._size(key), now)
        self._own.pop(key, None)
        self._buckets.pop(key, None)
        if key in fleet.shares or key in self._sizes:
            self._own[key] = bucket
        elif not bucket.is_full(now):
            self._buckets[key] = bucket

    def _resize_all(self, now: float) -> None:
        like = self._full(None)
        self._overflow = self._overflow.resized(like, now)
        self._untouched = self._untouched.resized(like, now)
        for key, bucket in self._buckets.items():
            self._buckets[key] = bucket.resized(like, now)
        for key, bucket in self._own.items():
            self._own[key] = bucket.reconfigured(*self._size(key), now)

    # Buckets.

    def _always_known(self) -> set[Key]:
        return self._sizes.keys() | (self.fleet.shares.keys() if self.fleet else set())

    def _size(self, key: Key | None) -> tuple[Fraction | float, int]:
        rate, burst = self.spec.rate, self.spec.burst
        if key is not None:
            rate, burst = self._sizes.get(key, (rate, burst))
        if self.fleet is None:
            return rate, burst
        return size(rate, burst, self.fleet.of(key))

    def _full(self, key: Key | None) -> TokenBucket:
        return TokenBucket(*self._size(key))

    def _known(self, key: Key) -> TokenBucket:
        return self._buckets.get(key) or self._own.get(key) or self._untouched.copy()

    def _has_room(self, now: float) -> bool:
        buckets = self._buckets
        most = self.spec.max_keys - len(self._own)
        for _ in range(_LOOKS_FOR_ROOM):
            if len(buckets) < most:
                return True
            if not buckets:
                return False
            key = next(iter(buckets))
            if buckets[key].is_full(now):
                del buckets[key]
            else:
                buckets.move_to_end(key)
        return len(buckets) < most

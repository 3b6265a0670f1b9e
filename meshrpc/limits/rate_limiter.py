"""Rate limits of one process: for each limit, a token bucket per key.

A call passes when every limit has a token for it; otherwise it takes none. A bucket that is full
again is like a new one, so only such are forgotten to make room. Where every remembered bucket
is still in use, newcomers share one more: whoever invents keys shares a bucket with the others
who do, gets no fresh tokens by pushing old keys out, and takes nothing from those already known.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from meshrpc.limits.token_bucket import TokenBucket
from meshrpc.policy.model import LimitMode, RateLimit
from meshrpc.wire import Metadata

UNKNOWN_KEY = "unknown"
"""The key of calls that lack the value a limit asks for."""

# Keys come from callers and may be as long as metadata may: longer ones are stored as digests,
# so that max_keys bounds memory too.
_LONGEST_KEY = 64
# Buckets looked at, oldest first, for one that may be forgotten. Each look that fails sends its
# bucket to the end, so the search goes round; a bound keeps one call's cost constant.
_LOOKS_FOR_ROOM = 8

_Key = str | tuple[str, ...]
_KeyOf = Callable[[str, str, Metadata], _Key]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call was refused, and when it is worth coming back."""

    limit: RateLimit
    key: str
    """What was counted, as `caller=order`; empty for a limit over all calls."""
    wait: float
    """Seconds until the bucket has a token again."""


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


class RateLimiter:
    """All rate limits of this process."""

    def __init__(self, limits: tuple[RateLimit, ...] = ()) -> None:
        self._limits: tuple[_Limit, ...] = ()
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
                limit = _Limit(spec)
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
                refusal = Refusal(limit.spec, _describe(limit.spec, key), wait)
        if refusal is not None:
            for limit in limits:
                if limit.taken is not None:
                    limit.taken.give_back()
                    limit.counts.admitted -= 1
        return refusal


class _Limit:
    __slots__ = ("_buckets", "_overflow", "counts", "is_shadow", "key_of", "spec", "taken")

    def __init__(self, spec: RateLimit) -> None:
        self.counts = LimitCounts()
        self.taken: TokenBucket | None = None
        """The bucket the call being checked took from; means nothing between calls."""
        self._start(spec)

    def _start(self, spec: RateLimit) -> None:
        self.spec = spec
        self.is_shadow = spec.mode is LimitMode.SHADOW
        self.key_of = _key_function(spec.key)
        self._overflow = TokenBucket(spec.rate, spec.burst)
        self._buckets: OrderedDict[_Key, TokenBucket] = OrderedDict()

    def reconfigure(self, spec: RateLimit, now: float) -> None:
        overflow, buckets, old = self._overflow, self._buckets, self.spec
        self._start(spec)
        if spec.key != old.key:
            return  # other keys: what was counted says nothing about them
        if (spec.rate, spec.burst) != (old.rate, old.burst):
            overflow = overflow.reconfigured(spec.rate, spec.burst, now)
            for key, bucket in buckets.items():
                buckets[key] = bucket.reconfigured(spec.rate, spec.burst, now)
        self._overflow, self._buckets = overflow, buckets

    def bucket(self, key: _Key, now: float) -> TokenBucket:
        bucket = self._buckets.get(key)
        if bucket is not None:
            return bucket
        if not self._has_room(now):
            return self._overflow
        bucket = self._buckets[key] = self._overflow.fresh()
        return bucket

    def _has_room(self, now: float) -> bool:
        buckets = self._buckets
        for _ in range(_LOOKS_FOR_ROOM):
            if len(buckets) < self.spec.max_keys:
                return True
            key = next(iter(buckets))
            if buckets[key].is_full(now):
                del buckets[key]
            else:
                buckets.move_to_end(key)
        return len(buckets) < self.spec.max_keys


def _key_function(names: tuple[str, ...]) -> _KeyOf:
    if not names:
        return lambda _caller, _method, _metadata: ""
    parts = tuple(_part(name) for name in names)
    if len(parts) == 1:
        return parts[0]
    return lambda caller, method, metadata: tuple(
        [part(caller, method, metadata) for part in parts]
    )


def _part(name: str) -> Callable[[str, str, Metadata], str]:
    if name == "caller":
        return lambda caller, _method, _metadata: _bounded(caller)
    if name == "method":
        return lambda _caller, method, _metadata: _bounded(method)
    kind, _, wanted = name.partition(".")
    if kind != "metadata" or not wanted:
        raise ValueError(f"key {name!r}: caller, method or metadata.<name>")
    wanted = wanted.lower()

    def from_metadata(_caller: str, _method: str, metadata: Metadata) -> str:
        for key, value in metadata:
            if key == wanted and value:
                return _bounded(value if isinstance(value, str) else value.hex())
        return UNKNOWN_KEY

    return from_metadata


def _bounded(value: str) -> str:
    if len(value) <= _LONGEST_KEY:
        return value
    return hashlib.blake2b(value.encode(), digest_size=16).hexdigest()


def _describe(spec: RateLimit, key: _Key) -> str:
    values = (key,) if isinstance(key, str) else key
    return ", ".join(f"{name}={value}" for name, value in zip(spec.key, values, strict=False))

"""The token bucket: `rate` calls a second over time, and `burst` of them at once.

Kept as the generic cell rate algorithm (ITU-T I.371): instead of a token count that has to be
refilled, one number, the time at which the bucket will be full again. Refilling is the passing
of time, so an idle bucket costs nothing. Numbers are whole nanoseconds, because sums of floats
drift: in any window of t seconds no more than rate x t + burst calls are admitted, exactly.
"""

from __future__ import annotations

import math
from fractions import Fraction

_NS = 1_000_000_000


class TokenBucket:
    """One bucket, full at first. `now` is in monotonic seconds and never goes backwards."""

    __slots__ = ("_depth", "_full_at", "_interval")

    def __init__(self, rate: float | Fraction, burst: int) -> None:
        """`rate` is calls per second, above 0; `burst` is at least 1."""
        if not rate > 0 or not math.isfinite(rate):
            raise ValueError(f"rate {rate}: more than 0 calls per second")
        if burst < 1:
            raise ValueError(f"burst {burst}: at least 1 call")
        # Rounded up: the bucket may be slower than asked for by a nanosecond, never faster.
        self._interval = math.ceil(_NS / Fraction(rate))
        self._depth = (burst - 1) * self._interval
        self._full_at = 0

    def __repr__(self) -> str:
        burst = self._depth // self._interval + 1
        return f"<TokenBucket {_NS / self._interval:g}/s burst={burst}>"

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until there will be one."""
        at = int(now * _NS)
        full_at = self._full_at
        if full_at <= at:
            self._full_at = at + self._interval
            return 0.0
        wait = full_at - at - self._depth
        if wait > 0:
            return wait / _NS
        self._full_at = full_at + self._interval
        return 0.0

    def copy(self) -> TokenBucket:
        """Return a bucket of the same size that holds the same."""
        return _made(self._interval, self._depth, self._full_at)

    def give_back(self) -> None:
        """Undo the last `take`, made at this same time."""
        self._full_at -= self._interval

    def is_full(self, now: float) -> bool:
        """Whether this bucket can no longer be told from a new one."""
        return self._full_at <= int(now * _NS)

    def reconfigured(self, rate: float | Fraction, burst: int, now: float) -> TokenBucket:
        """Return a bucket of another size that holds what this one does, or as much as fits.

        A change never adds tokens, so changing to and fro admits nothing extra.
        """
        return self.resized(TokenBucket(rate, burst), now)

    def resized(self, like: TokenBucket, now: float) -> TokenBucket:
        """Return a bucket of the size of `like` that holds what this one does; see `reconfigured`."""
        interval, depth = like._interval, like._depth
        at = int(now * _NS)
        held = self._depth + self._interval - max(0, self._full_at - at)
        kept = held * interval // self._interval
        return _made(interval, depth, at + max(0, depth + interval - kept))


def _made(interval: int, depth: int, full_at: int) -> TokenBucket:
    bucket = TokenBucket.__new__(TokenBucket)
    bucket._interval, bucket._depth, bucket._full_at = interval, depth, full_at  # noqa: SLF001 - its own kind
    return bucket

"""Shares of a limit over the fleet: how one rate is divided among processes, by demand.

Max-min fairness by water filling (Bertsekas and Gallager, Data Networks, 6.5): whoever wants less
than an equal part gets what it wants, and the others have an equal part of what is left. Shares are
whole billionths of a bucket's own rate, and so is demand: sums are exact, and whoever divides
need not know the rate. It does not say who holds what: that is `control.quota`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

WHOLE = 1_000_000_000
"""All of a limit."""
FIRST = WHOLE // 10
"""The share of a process that control has given none yet."""
EVERY_KEY = b"*"
"""Stands for each key that has no share of its own."""
MOST_KEYS = 200
"""Keys of one limit, the busiest ones, whose shares go by demand."""

_HEADROOM = 64  # a sixty-fourth, 1.6 %: demand is an estimate, and may be growing
_FLOOR = 50  # a fiftieth of the whole, for all together


@dataclass(frozen=True, slots=True)
class Claim:
    """What one process says of one bucket."""

    limit: str
    key: bytes
    demand: int
    """Calls, refused ones included, in billionths of the bucket's rate."""
    share: int
    """What it uses now, at most."""
    is_granted: bool
    """Whether control gave it this share of this very key; otherwise it is that of `EVERY_KEY`, or
    the first one."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one process is to use of one bucket; None: what it has of `EVERY_KEY`."""

    limit: str
    key: bytes
    share: int | None


def divide(whole: int, demands: Sequence[int]) -> list[int]:
    """Return the share of each, in the order of `demands`; their sum is never above `whole`.

    Each wants what it demands, 1.6 % more, and its part of a fiftieth of the whole, so that nobody
    begins from nothing. What is left when all have what they want is divided equally.
    """
    if not demands:
        return []
    floor = whole // (_FLOOR * len(demands))
    wants = [demand + demand // _HEADROOM + floor for demand in demands]
    shares = [0] * len(wants)
    left, waiting = whole, len(wants)
    for index in sorted(range(len(wants)), key=wants.__getitem__):
        shares[index] = min(wants[index], left // waiting)
        left -= shares[index]
        waiting -= 1
    each = left // len(shares)
    return [share + each for share in shares]


def size(rate: float, burst: int, share: int) -> tuple[Fraction, int]:
    """Return rate and burst of a bucket of which a process has this share; the burst is at least 1."""
    return Fraction(rate) * max(1, share) / WHOLE, max(1, -(-burst * share // WHOLE))

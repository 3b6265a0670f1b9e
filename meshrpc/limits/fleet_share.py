"""One process's share of one limit over the fleet, and how much of it is wanted here.

Control gives the busiest keys shares of their own; every other key of the limit has the same one.
Until control has given any, that is `FIRST`, and when control is away it is the last one given.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from meshrpc.limits.demand import Demand
from meshrpc.limits.keys import Key, to_wire
from meshrpc.limits.shares import EVERY_KEY, FIRST, MOST_KEYS, WHOLE, Claim
from meshrpc.policy.model import RateLimit

_MOST_SHARES = 2 * MOST_KEYS
_MOST_DEMAND = 1000 * WHOLE
"""What is wanted beyond a thousand times the limit makes no difference."""


class FleetShare:
    """What this process may use of a limit: `of(key)`, in billionths."""

    __slots__ = ("_demands", "_looked", "asked", "every", "is_granted", "shares")

    def __init__(self) -> None:
        self.every = FIRST
        """Of each key that has none of its own."""
        self.is_granted = False
        self.shares: dict[Key, int] = {}
        self.asked: dict[Key, int] = {}
        """Calls since the last look."""
        self._demands: dict[Key, Demand] = {}
        self._looked: float | None = None

    def __repr__(self) -> str:
        return f"<FleetShare every={self.every / WHOLE:.3f} keys={len(self.shares)}>"

    def of(self, key: Key | None) -> int:
        """Return the share of a key; None: of keys in general."""
        return self.every if key is None else self.shares.get(key, self.every)

    def has_room_for(self, key: Key) -> bool:
        """Whether a share for this key can be taken: whatever control sends, memory is bounded."""
        return key in self.shares or len(self.shares) < _MOST_SHARES

    def look(self, now: float, rate_of: Callable[[Key], float]) -> bool:
        """Work out the demand; return whether any has changed a lot.

        `rate_of` is the rate of a key's bucket, over the fleet.
        """
        since, self._looked = self._looked, now
        asked, self.asked = self.asked, {}
        if since is None:
            return False
        demands = self._demands
        has_changed = False
        for key, demand in tuple(demands.items()):
            has_changed = demand.look(asked.pop(key, 0), now) or has_changed
            if demand.is_negligible and key not in self.shares:
                del demands[key]
        elapsed = now - since
        busy = {
            key: calls
            for key, calls in asked.items()
            if key in self.shares or self._is_busy(key, calls, rate_of(key) * elapsed)
        }
        room = max(0, _MOST_SHARES + len(self.shares) - len(demands))
        for key in heapq.nlargest(room, busy, key=busy.__getitem__):
            demands[key] = Demand(since)
            has_changed = demands[key].look(busy[key], now) or has_changed
        return has_changed

    def claims(self, spec: RateLimit, rate_of: Callable[[Key], float]) -> list[Claim]:
        """Return what to tell control: what is held, and the keys that want more than it."""

        def demand(key: Key) -> int:
            known = self._demands.get(key)
            if known is None:
                return 0
            return min(_MOST_DEMAND, int(known.rate / rate_of(key) * WHOLE))

        every = 0 if spec.key else demand("")
        claims = [Claim(spec.name, EVERY_KEY, every, self.every, self.is_granted)]
        claims += [
            Claim(spec.name, to_wire(key), demand(key), share, True)
            for key, share in self.shares.items()
        ]
        if spec.key:
            wanted = {
                key: demand(key)
                for key, known in self._demands.items()
                if key not in self.shares and self._is_busy(key, known.rate, rate_of(key))
            }
            claims += [
                Claim(spec.name, to_wire(key), wanted[key], self.every, False)
                for key in heapq.nlargest(MOST_KEYS, wanted, key=wanted.__getitem__)
            ]
        return claims

    def _is_busy(self, key: Key, calls: float, allowed: float) -> bool:
        """Whether a key wants more than half of what it has, so that its share should go by demand."""
        return 2 * calls * WHOLE > allowed * self.of(key)

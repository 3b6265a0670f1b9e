"""Leases by when they run out, which most of them never do: each is extended long before.

A heap that extensions leave alone: an entry that comes up too early is put back at the lease's real
end. That makes an extension O(1) and a lease that runs out O(log n), as often as one comes up. A
lease that ends early, or sooner than it was to, leaves an entry that counts for nothing; from time
to time these are swept. Pure.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from meshrpc.registry.instance import Instance

SLACK = 64
"""Entries that count for nothing, besides as many as there are leases, before they are swept."""

_GONE = -math.inf


@dataclass(slots=True, eq=False)
class Lease:
    """Until when an instance is registered, in monotonic seconds; infinite: for good."""

    instance: Instance
    length: float
    expires: float = math.inf
    queued: float = math.inf
    """The queue's: the time of the one entry that counts, never after `expires`; infinite: there is
    none."""


_Entry = tuple[float, str, str, str, int, Lease]
"""When it comes up, whose it is, and a number, since one id may have had several leases."""


class LeaseQueue:
    """Which lease runs out next; of those that do together, the first by namespace, service, id."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._number = 0
        self.leases = 0
        """How many there are, those included that never run out."""

    def __repr__(self) -> str:
        return f"<LeaseQueue leases={self.leases} entries={len(self)}>"

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, lease: Lease, expires: float) -> None:
        """Take in a lease that ends then."""
        self.leases += 1
        self.extend(lease, expires)

    def extend(self, lease: Lease, expires: float) -> None:
        """Let a lease end then instead, which may be sooner too."""
        lease.expires = expires
        if expires < lease.queued:
            lease.queued = expires
            heapq.heappush(self._entries, self._entry(lease))
            if len(self._entries) > 2 * self.leases + SLACK:
                self._sweep()

    def remove(self, lease: Lease) -> None:
        """Forget a lease."""
        self.leases -= 1
        lease.queued = _GONE

    def first(self) -> Lease | None:
        """Return the lease that runs out next; None: none ever does."""
        while self._entries:
            time, *_, lease = self._entries[0]
            if lease.queued != time:
                heapq.heappop(self._entries)
            elif lease.expires == math.inf:
                lease.queued = math.inf
                heapq.heappop(self._entries)
            elif lease.expires > time:
                lease.queued = lease.expires
                heapq.heapreplace(self._entries, self._entry(lease))
            else:
                return lease
        return None

    def _entry(self, lease: Lease) -> _Entry:
        self._number += 1
        instance = lease.instance
        name = instance.namespace, instance.service, instance.id
        return lease.queued, *name, self._number, lease

    def _sweep(self) -> None:
        """Drop the entries that count for nothing."""
        counting = {id(entry[-1]): entry for entry in self._entries if entry[-1].queued == entry[0]}
        self._entries = list(counting.values())
        heapq.heapify(self._entries)

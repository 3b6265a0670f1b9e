"""One process that holds shares: what it has said, and what it has been sent since.

Pure. `quota` decides who is sent what.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from meshrpc.limits.shares import EVERY_KEY, Claim, Share

Bucket: TypeAlias = tuple[str, bytes]
"""A limit's name and a key."""


class Holder(NamedTuple):
    """A process, as it says who it is."""

    namespace: str
    service: str
    instance: str


class Connection(Protocol):
    """What a process speaks on: another one each time it connects."""

    @property
    def opened(self) -> int:
        """Greater than that of any that was opened before."""
        ...


@dataclass(frozen=True, slots=True)
class Grant:
    """What one process is to use from now on. It answers with the number."""

    number: int
    shares: tuple[Share, ...]


@dataclass(slots=True)
class Member:
    """One process, as far as control knows."""

    holder: Holder
    stream: Connection | None = None
    """None: it has gone, or cannot be reached; what it held still counts."""
    opened: int = -1
    """The newest stream that it has spoken on."""
    heard: float = 0.0
    claims: dict[Bucket, Claim] = field(default_factory=dict)
    keys: dict[str, dict[bytes, Claim]] = field(default_factory=dict)
    """The same by limit: one process may have many limits with many keys."""
    pending: dict[Bucket, int | None] = field(default_factory=dict)
    """What was sent and not answered; None: to be forgotten."""
    number: int = 0
    """Of the newest grant on this stream."""
    declined: set[Bucket] = field(default_factory=set)
    """What it was sent and did not take: it has no such key."""

    def __repr__(self) -> str:
        waits = f" unanswered={self.number}" if self.pending else ""
        state = "" if self.stream else " away"
        return f"<Member {self.holder.instance} claims={len(self.claims)}{waits}{state}>"

    def says(self, number: int, claims: Iterable[Claim]) -> None:
        """Take in what it wants and uses; `number` is that of the last grant it has taken."""
        self.claims = {(one.limit, one.key): one for one in claims}
        self.keys = {}
        for one in self.claims.values():
            self.keys.setdefault(one.limit, {})[one.key] = one
        if number != self.number:
            return  # said before it had the last one
        for bucket, share in self.pending.items():
            claim = self.claims.get(bucket)
            if share is not None and (claim is None or not claim.is_granted):
                self.declined.add(bucket)
        self.pending = {}

    def send(self, shares: Iterable[Share]) -> Grant:
        """Return these shares as the next grant, and count them as sent."""
        self.number += 1
        grant = Grant(self.number, tuple(shares))
        self.pending = {(one.limit, one.key): one.share for one in grant.shares}
        return grant

    def counts(self, limit: str) -> bool:
        """Whether it has this limit at all."""
        return (limit, EVERY_KEY) in self.claims

    def is_explicit(self, limit: str, key: bytes) -> bool:
        """Whether it has said that it uses a share of this very key."""
        claim = self.claims.get((limit, key))
        return claim is not None and claim.is_granted

    def general(self, limit: str) -> int:
        """Return the most it may be using of each key that has no share of its own."""
        bucket = (limit, EVERY_KEY)
        claim = self.claims.get(bucket)
        return max(0 if claim is None else claim.share, self.pending.get(bucket) or 0)

    def held(self, limit: str, key: bytes) -> int:
        """Return the most that it may be using of a bucket."""
        if key == EVERY_KEY:
            return self.general(limit)
        bucket = (limit, key)
        sent = self.pending.get(bucket)
        if not self.is_explicit(limit, key):
            return max(self.general(limit), sent or 0)
        if bucket in self.pending and sent is None:
            sent = self.general(limit)
        return max(self.claims[bucket].share, sent or 0)

    def demand(self, limit: str, key: bytes) -> int:
        """Return what it wants of a bucket."""
        claim = self.claims.get((limit, key))
        return 0 if claim is None else claim.demand

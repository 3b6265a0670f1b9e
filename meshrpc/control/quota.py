"""Who may use how much of each rate limit over the fleet.

Every process of a service says what it wants and uses of each bucket; `limits.shares` divides the
bucket among them, and `division` carries that out so that what all may be using never adds up to
more than the whole: a share that is lowered counts in full until its process has said that it uses
less. A process that is silent keeps its share for a lease. A control service that has just
started does not know who else holds what: for as long, it gives no more than what those whom it
knows have brought, or given up.

A bucket is one key of one limit. The busiest keys have shares that go by demand; all others have
the same ones, equal for each process (`EVERY_KEY`).

Pure: `now` is an argument. It knows neither rates nor policies: shares and demand are billionths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from meshrpc.control.division import Division
from meshrpc.control.quota_member import Connection, Grant, Holder, Member
from meshrpc.limits.shares import EVERY_KEY, MOST_KEYS, WHOLE, Claim, Share
from meshrpc.registry.registry import LEASE

PAUSE: Final = 0.1
"""Seconds between two divisions of one service's limits, at least."""
_PAUSE_PER_SHARE = 20e-6
"""Seconds of pause per process and key: a large division is made less often."""
_SWEEP_EVERY = 1.0
"""Seconds between two looks for processes that have been silent for too long."""
GATHER: Final = 0.5
"""Seconds from the first word of a limit to its first division: by then all have heard of it."""
_STOOD_STILL = 5.0
"""Seconds late that a look may be, before this process counts as having been stopped itself."""
_COLD_AFTER = 30.0
"""Seconds that nobody has wanted much of a key until it is treated like all others."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What one process holds of one bucket, for people. Fractions of the limit."""

    instance: str
    limit: str
    key: str
    """Its values with a space between them; `*` for every key that is not listed."""
    demand: float
    share: float
    is_away: bool
    """Whether it has no stream: its share counts until its lease is over."""


@dataclass(slots=True)
class _Limit:
    since: float
    """When it was first heard of."""
    keys: dict[bytes, float] = field(default_factory=dict)
    """Those with shares of their own, and when they were last busy."""
    brought: dict[str, dict[bytes, int]] = field(default_factory=dict)
    """What each process held by its own word when it was first heard, while control recovers."""

    def whole(self, key: bytes) -> int:
        """Return how much of a key may be given while control recovers."""
        brought = self.brought.values()
        return min(WHOLE, sum(each.get(key, each.get(EVERY_KEY, 0)) for each in brought))


@dataclass(slots=True)
class _Service:
    members: dict[str, Member] = field(default_factory=dict)
    limits: dict[str, _Limit] = field(default_factory=dict)
    is_due: bool = False
    not_before: float = 0.0


class Quota:
    """The shares of all limits over the fleet, as one control service gives them."""

    def __init__(self, now: float, *, lease: float = LEASE, recovery: float = LEASE) -> None:
        """`lease` and `recovery` in seconds; `now` is when the control service started."""
        self._lease = lease
        self._recovers_until = now + recovery
        self._is_recovering = True
        self._sweep_at = now
        self._services: dict[tuple[str, str], _Service] = {}
        self._streams: dict[Connection, Member] = {}
        self._done: set[Connection] = set()
        """Streams that are to end, because their process was silent for too long."""
        self._overdue: list[Connection] = []

    def __repr__(self) -> str:
        members = sum(len(service.members) for service in self._services.values())
        state = " recovering" if self._is_recovering else ""
        return f"<Quota services={len(self._services)} processes={members}{state}>"

    def report(
        self,
        holder: Holder,
        stream: Connection,
        number: int,
        claims: Iterable[Claim],
        now: float,
    ) -> None:
        """Take in what a process wants and uses of all its limits.

        `number` is that of the last grant it has taken from this stream, 0 if none.
        """
        if stream in self._done:
            return
        service = self._services.setdefault((holder.namespace, holder.service), _Service())
        member = service.members.get(holder.instance)
        if member is None:
            member = service.members[holder.instance] = Member(holder)
        if stream.opened < member.opened:
            return  # late words on a stream that another has replaced
        if member.stream is not stream:
            if member.stream is not None:
                self._streams.pop(member.stream, None)
            # It says what it holds; what was under way to it before is lost.
            member.stream, member.opened = stream, stream.opened
            member.number, member.pending = number, {}
            member.declined.clear()
            self._streams[stream] = member
            service.is_due = True
        before, waited = member.claims, bool(member.pending)
        member.heard = now
        member.says(number, claims)
        if member.claims != before or waited != bool(member.pending):
            service.is_due = True
        for limit in member.keys:
            service.limits.setdefault(limit, _Limit(now))
            if self._is_recovering:
                _note_what_is_brought(limit, service.limits[limit], member)
        if not member.claims:
            self._remove(service, member)

    def leave(self, stream: Connection) -> None:
        """Note that a stream has ended; what its process holds counts until its lease is over."""
        self._done.discard(stream)
        member = self._streams.pop(stream, None)
        if member is not None:
            member.stream = None

    def next_due(self) -> float | None:
        """Return when `grants` will next have something to do; None: nothing waits."""
        if not self._services:
            return None
        due = [one.not_before for one in self._services.values() if one.is_due]
        return min(self._sweep_at, *due) if due else self._sweep_at

    def grants(self, now: float) -> list[tuple[Connection, Grant]]:
        """Return what to send on which stream now, and count it as sent."""
        if not self._services:
            self._sweep_at = now
        if self._sweep_at <= now:
            self._sweep(now)
        made: list[tuple[Connection, Grant]] = []
        for service in self._services.values():
            if service.is_due and service.not_before <= now:
                made += self._divide(service, now)
        return made

    def overdue(self) -> tuple[Connection, ...]:
        """Return streams on which nothing came for a lease, once: they are to be ended."""
        overdue, self._overdue = tuple(self._overdue), []
        return overdue

    def rows(self, namespace: str, service: str) -> list[Holding]:
        """Return who holds what of the service's limits, by limit, key and process."""
        known = self._services.get((namespace, service), _Service())
        rows = [
            Holding(
                instance=member.holder.instance,
                limit=limit,
                key=key.removeprefix(b"=").replace(b"\0", b" ").decode(errors="replace"),
                demand=member.demand(limit, key) / WHOLE,
                share=member.held(limit, key) / WHOLE,
                is_away=member.stream is None,
            )
            for member in known.members.values()
            for limit, key in member.claims
        ]
        return sorted(rows, key=lambda row: (row.limit, row.key, row.instance))

    def _sweep(self, now: float) -> None:
        """Let go of who has been silent for a lease, and of the caution of the beginning."""
        stood_still = now - self._sweep_at > _STOOD_STILL
        self._sweep_at = now + _SWEEP_EVERY
        if self._is_recovering and self._recovers_until <= now:
            self._is_recovering = False
            for service in self._services.values():
                service.is_due = True
                for limit in service.limits.values():
                    limit.brought.clear()
        for name, service in tuple(self._services.items()):
            for member in tuple(service.members.values()):
                if stood_still:
                    member.heard = now  # what they said meanwhile is still to be read
                elif member.heard + self._lease <= now:
                    if member.stream is not None:
                        # What it was sent and did not answer it may still take, unheard.
                        self._done.add(member.stream)
                        self._overdue.append(member.stream)
                    self._remove(service, member)
            if not service.members:
                del self._services[name]

    def _remove(self, service: _Service, member: Member) -> None:
        service.members.pop(member.holder.instance, None)
        if member.stream is not None:
            self._streams.pop(member.stream, None)
        service.is_due = True

    def _divide(self, service: _Service, now: float) -> list[tuple[Connection, Grant]]:
        service.is_due = False
        members = service.members
        for name, limit in tuple(service.limits.items()):
            if not any(member.counts(name) for member in members.values()):
                del service.limits[name]
            else:
                _follow_demand(name, limit, members.values(), now)
                if not self._is_recovering:  # until then, others may have shares of it
                    _forget_cold_keys(name, limit, members.values(), now)
        shares: dict[str, list[Share]] = {}
        count = 0
        for name, limit in service.limits.items():
            if now < limit.since + GATHER:
                service.is_due = True
                continue
            cold = [key for key, busy in limit.keys.items() if busy + _COLD_AFTER <= now]
            keys = (*limit.keys, EVERY_KEY)
            whole = {key: limit.whole(key) if self._is_recovering else WHOLE for key in keys}
            division = Division(name, members.values(), whole)
            for instance, made in division.carry_out(cold).items():
                shares.setdefault(instance, []).extend(made)
            count += len(members) * (1 + len(limit.keys))
        service.not_before = now + max(PAUSE, count * _PAUSE_PER_SHARE)
        return [
            (member.stream, member.send(made))
            for instance, made in shares.items()
            if (member := members[instance]).stream is not None
        ]


def _note_what_is_brought(name: str, limit: _Limit, member: Member) -> None:
    if member.holder.instance not in limit.brought:
        limit.brought[member.holder.instance] = {
            key: claim.share for key, claim in member.keys[name].items()
        }


def _follow_demand(name: str, limit: _Limit, members: Iterable[Member], now: float) -> None:
    """Give the busiest keys shares of their own, as many as there is room for."""
    wanted: dict[bytes, int] = {}
    members = tuple(members)
    for member in members:
        general = member.general(name)
        for key, claim in member.keys.get(name, {}).items():
            if key != EVERY_KEY and 2 * claim.demand > general:
                wanted[key] = wanted.get(key, 0) + claim.demand
    for key in sorted(wanted, key=wanted.__getitem__, reverse=True):
        if key in limit.keys or len(limit.keys) < MOST_KEYS:
            limit.keys[key] = now
    for member in members:
        for key, claim in member.keys.get(name, {}).items():
            if key != EVERY_KEY and claim.is_granted:
                # Given by the control service before, and not wanted: it is to be given up.
                limit.keys.setdefault(key, -math.inf)


def _forget_cold_keys(name: str, limit: _Limit, members: Iterable[Member], now: float) -> None:
    """Forget those that nobody has a share of any more."""
    for key in [key for key, busy in limit.keys.items() if busy + _COLD_AFTER <= now]:
        if not any(
            member.is_explicit(name, key) or (name, key) in member.pending for member in members
        ):
            del limit.keys[key]
            for member in members:
                member.declined.discard((name, key))

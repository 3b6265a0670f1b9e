"""One division of one limit: what each process is sent, given what all of them may be using.

Whoever is to have less is told at once. Whoever is to have more gets it out of what is free: the
whole, less the most that anybody may be using. Changes that are hardly any are left for later.

Pure: it changes nothing but its own sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from meshrpc.control.quota_member import Member
from meshrpc.limits.shares import EVERY_KEY, Share, divide

_SLACK = 200
"""A share that would change by less than a two-hundredth of itself stays."""
_LEAST = 1000
"""Billionths that are not worth a message."""


class Division:
    """The shares of one limit among the processes that have it."""

    def __init__(self, limit: str, members: Iterable[Member], whole: Mapping[bytes, int]) -> None:
        """`whole` is how much may be given of each key that has shares of its own, and in general."""
        self._limit = limit
        self._members = [member for member in members if member.counts(limit)]
        # One grant at a time: what a process has not answered, it may use or not.
        self._ready = [one for one in self._members if one.stream is not None and not one.pending]
        self._whole = whole
        self._own = [key for key in whole if key != EVERY_KEY]
        self._free = {
            key: given - sum(member.held(limit, key) for member in self._members)
            for key, given in whole.items()
        }
        self._made: dict[str, list[Share]] = {}

    def carry_out(self, cold: Iterable[bytes] = ()) -> dict[str, list[Share]]:
        """Return what to send, by process; shares of `cold` keys are given up for the general one."""
        given_up = frozenset(cold)
        for key in self._own:
            if key in given_up:
                self._give_up(key)
            else:
                self._divide(key)
        self._divide(EVERY_KEY)
        return self._made

    def _targets(self, key: bytes) -> dict[str, int]:
        """Return what each process that can be reached is to have, in the end."""
        limit = self._limit
        present = [member for member in self._members if member.stream is not None]
        away = sum(one.held(limit, key) for one in self._members if one.stream is None)
        shares = divide(
            max(0, self._whole[key] - away), [member.demand(limit, key) for member in present]
        )
        return {
            member.holder.instance: share for member, share in zip(present, shares, strict=True)
        }

    def _divide(self, key: bytes) -> None:
        targets = self._targets(key)
        is_too_much = self._free[key] < 0
        raises: list[tuple[Member, int]] = []
        for member in self._ready:
            if (self._limit, key) in member.declined:
                continue
            held = member.held(self._limit, key)
            more = targets[member.holder.instance] - held
            if not is_too_much and abs(more) < max(_LEAST, held // _SLACK):
                more = 0
            if more < 0:
                self._send(member, key, held + more)
            elif more > 0 or not self._is_told(member, key):
                raises.append((member, more))
        self._raise(key, raises)

    def _raise(self, key: bytes, raises: Sequence[tuple[Member, int]]) -> None:
        """Share out what is free among those who are to have more, in proportion to that."""
        free = max(0, self._free[key])
        wanted = sum(more for _, more in raises)
        for member, more in raises:
            added = more if wanted <= free else more * free // wanted
            if key == EVERY_KEY:
                general = self._used_by_general(member)
                added = max(0, min([added, *(self._free[one] for one in general)]))
                for one in general:
                    self._free[one] -= added
            if added >= _LEAST or not self._is_told(member, key):
                self._free[key] -= added
                self._send(member, key, member.held(self._limit, key) + added)

    def _is_told(self, member: Member, key: bytes) -> bool:
        """Whether it has a share of this key that was given to it as such."""
        return key == EVERY_KEY or member.is_explicit(self._limit, key)

    def _give_up(self, key: bytes) -> None:
        for member in self._ready:
            if not member.is_explicit(self._limit, key):
                continue
            more = member.general(self._limit) - member.held(self._limit, key)
            if more <= max(0, self._free[key]):
                self._free[key] -= max(0, more)
                self._send(member, key, None)

    def _used_by_general(self, member: Member) -> list[bytes]:
        """Return the keys that this process uses by its general share, or is about to."""
        limit = self._limit
        made = self._made.get(member.holder.instance, ())
        leaving = {share.key for share in made if share.share is None}
        return [key for key in self._own if key in leaving or not member.is_explicit(limit, key)]

    def _send(self, member: Member, key: bytes, share: int | None) -> None:
        self._made.setdefault(member.holder.instance, []).append(Share(self._limit, key, share))

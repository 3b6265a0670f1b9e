"""Doubt: which instances a caller goes on believing in although its registry lists them no more.

A registry that was restarted empty, or that hears of nobody, looks like a service that went away.
So those that vanish without a word are counted: while more of them vanished within `WINDOW` than
are left, all of them are held, called on until they fail by themselves or `HOLD` is over. Who
deregistered, or was marked as draining before, is believed to be gone at once, and so are a few of
many. When a hold is over, those of ours that are alive are held on while more are held than listed:
they would have registered again if they could. (Envoy keeps a host until its health check fails;
Finagle puts it on probation; Eureka stops expiring anybody when too few renew.)

Pure: `now` is an argument. It does not notice failures by itself: `failed` tells it.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass, replace

from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import LEASE, Snapshot

WINDOW = LEASE
"""Seconds within which instances vanish together. Leases that nobody renews run out one by one,
within the time between two renewals; those that went first come back to be held with the others."""
HOLD = 2 * LEASE
"""Seconds that they are held: whoever is alive has registered again by then, twice over."""


@dataclass(slots=True)
class _Missing:
    """An instance that vanished without a word."""

    instance: Instance
    """As it is shown while it is held; made once, for of thousands that takes a while."""
    since: float
    held_until: float | None = None
    """None: it is not held, only counted."""


class Doubt:
    """What is believed of the instances of one service."""

    def __init__(self) -> None:
        self.instances: tuple[Instance, ...] = ()
        """Those that are believed in, ordered by id; who is held says so in its `state`."""
        self._listed: dict[str, Instance] = {}
        self._missing: dict[str, _Missing] = {}
        self._is_recovering = False

    def __repr__(self) -> str:
        return f"<Doubt listed={len(self._listed)} held={len(self._held())}>"

    def take_in(self, snapshot: Snapshot, now: float) -> None:
        """Believe what the registry says now, as far as that goes."""
        listed = {instance.id: instance for instance in snapshot.instances}
        vanished = [id_ for id_ in self._listed if id_ not in listed]
        if vanished or self._missing:
            self._note_missing(vanished, listed, snapshot.departed, now)
            self._hold(listed, snapshot, now)
        self._listed = listed
        self._is_recovering = snapshot.is_recovering
        self._believe(snapshot.instances)

    def failed(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Note that instances do not answer; return those that were held, and are no more."""
        held = {one.instance.id for one in self._held()}
        ended = tuple(id_ for id_ in ids if id_ in held)
        self._end(ended)
        return ended

    def next_change(self) -> float | None:
        """Return when the next hold is over; None: nobody is held."""
        return min((until for one in self._held() if (until := one.held_until)), default=None)

    def advance(self, now: float, alive: Container[str] = ()) -> bool:
        """End the holds that are over; return whether there were any.

        `alive` has the ids of those that can be seen to be.
        """
        held = self._held()
        over = [one for one in held if (one.held_until or now) <= now]
        if len(held) > sum(instance.takes_calls for instance in self._listed.values()):
            for one in over:
                # Processes of others register nobody again, so their absence means more.
                if one.instance.is_ours and one.instance.id in alive:
                    one.held_until = now + LEASE
        ended = [one.instance.id for one in over if (one.held_until or now) <= now]
        self._end(ended)
        return bool(ended)

    def postpone(self, until: float) -> None:
        """Hold those who are held until then at least: the registry could not tell meanwhile."""
        for one in self._held():
            one.held_until = max(until, one.held_until or until)

    def _note_missing(
        self,
        vanished: Iterable[str],
        listed: dict[str, Instance],
        departed: frozenset[str],
        now: float,
    ) -> None:
        for id_ in vanished:
            if self._listed[id_].takes_calls:
                self._missing[id_] = _Missing(replace(self._listed[id_], state=State.HELD), now)
        self._missing = {
            id_: one
            for id_, one in self._missing.items()
            if id_ not in listed
            and id_ not in departed
            and (one.held_until is not None or now - one.since < WINDOW)
        }

    def _hold(self, listed: dict[str, Instance], snapshot: Snapshot, now: float) -> None:
        if self._is_recovering and not snapshot.is_recovering:
            # Until now they were merely late. That they do not come is known from here on.
            for one in self._missing.values():
                one.since, one.held_until = now, None
        if snapshot.is_recovering:
            for one in self._missing.values():
                one.held_until = now + HOLD
            return
        together = [one for one in self._missing.values() if now - one.since < WINDOW]
        left = sum(instance.takes_calls for instance in listed.values())
        if len(together) > left:
            for one in together:
                if one.held_until is None:
                    one.held_until = now + HOLD

    def _held(self) -> list[_Missing]:
        return [one for one in self._missing.values() if one.held_until is not None]

    def _end(self, ids: Collection[str]) -> None:
        for id_ in ids:
            del self._missing[id_]
        if ids:
            self._believe(tuple(self._listed.values()))

    def _believe(self, listed: tuple[Instance, ...]) -> None:
        if held := [one.instance for one in self._held()]:
            listed = tuple(sorted((*listed, *held), key=lambda instance: instance.id))
        self.instances = listed

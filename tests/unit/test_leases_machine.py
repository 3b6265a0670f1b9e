"""The lease table beside a list that is searched from end to end, in any order of events."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meshrpc.errors import StaleIncarnation
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.registry import LEASE, Snapshot

Key = tuple[str, str, str]

SERVICES = [("default", "order"), ("default", "payment"), ("staging", "payment")]
KEYS = st.sampled_from(
    [(*SERVICES[0], "1"), (*SERVICES[1], "1"), (*SERVICES[1], "2"), (*SERVICES[2], "1")]
)


@dataclass
class Held:
    """A record and its lease, as plainly as can be."""

    instance: Instance
    length: float
    expires: float


class LeaseTableMachine(RuleBasedStateMachine):
    """What watchers are told, in any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.live: dict[Key, Held] = {}

    @initialize(is_first=st.booleans())
    def begin(self, is_first):
        self.start(-math.inf if is_first else self.now + LEASE)

    def start(self, recovers_until: float) -> None:
        """A table knows nothing of the one before it but the records."""
        self.table = LeaseTable(recovers_until)
        self.until = recovers_until
        self.is_recovering = recovers_until > -math.inf
        self.newest = {key: held.instance.incarnation for key, held in self.live.items()}
        self.departed: set[Key] = set()
        self.told: dict[tuple[str, str], tuple[Snapshot, frozenset[str], int]] = {}
        self.left: set[Key] = set()
        """Who may be missed in the next snapshot."""

    def lease(self, length: float) -> float:
        """When a lease that starts now ends."""
        return max(self.now + length, self.until if self.is_recovering else -math.inf)

    @rule(
        key=KEYS,
        later=st.sampled_from([0, 0, 0, 1, -1]),
        weight=st.integers(1, 2),
        port=st.integers(1, 2),
        permanent=st.sampled_from([False, False, True]),
        length=st.sampled_from([1.0, LEASE, 40.0]),
    )
    def register(self, key, later, weight, port, permanent, length):
        """As the incarnation that was last heard of, mostly."""
        incarnation = max(self.newest.get(key, 0) + later, 0)
        namespace, service, id_ = key
        instance = Instance(
            id=id_,
            service=service,
            namespace=namespace,
            address=f"127.0.0.1:{port}",
            incarnation=incarnation,
            weight=weight,
            permanent=permanent,
        )
        if incarnation < self.newest.get(key, 0):
            for refused in (self.table.as_registered, lambda it: self.table.register(it, self.now)):
                with pytest.raises(StaleIncarnation):
                    refused(instance)
            return
        before = self.live.get(key)
        record = instance
        if before is not None and before.instance.incarnation == incarnation:
            record = replace(record, state=before.instance.state)
            if (
                permanent
                and before.instance.permanent
                and before.instance.address.endswith(str(port))
            ):
                record = replace(record, health=before.instance.health)
        assert self.table.as_registered(instance) == record
        is_new = before is None or before.instance != record
        assert self.table.register(instance, self.now, length) == is_new
        length = math.inf if permanent else length
        self.live[key] = Held(record, length, self.lease(length))
        self.newest[key] = incarnation
        self.departed.discard(key)

    @rule(key=KEYS)
    def renew_as_each_incarnation(self, key):
        """One of them holds the lease at most, and none that ran out is brought back."""
        newest = self.newest.get(key, 0)
        renewed = [each for each in range(newest + 2) if self.table.renew(*key, each, self.now)]
        held = self.live.get(key)
        is_live = held is not None and held.expires > self.now
        assert renewed == ([held.instance.incarnation] if is_live else [])
        if is_live:
            held.expires = self.lease(held.length)

    @rule()
    def stand_still(self):
        """As the control service does that was stopped: every lease starts anew."""
        self.table.renew_all(self.now)
        if self.is_recovering:
            self.until = max(self.until, self.now + LEASE)
        for held in self.live.values():
            held.expires = self.lease(held.length)

    @rule(key=KEYS, state=st.sampled_from([State.ACTIVE, State.DRAINING]))
    def drain_or_undrain(self, key, state):
        change = self.table.drain if state is State.DRAINING else self.table.undrain
        held = self.live.get(key)
        is_new = held is not None and held.instance.state is not state
        assert change(*key) == is_new
        if is_new:
            held.instance = replace(held.instance, state=state)

    @rule(key=KEYS, health=st.sampled_from(Health))
    def set_health(self, key, health):
        held = self.live.get(key)
        is_new = held is not None and held.instance.health is not health
        assert self.table.set_health(*key, health) == is_new
        if is_new:
            held.instance = replace(held.instance, health=health)

    @rule(key=KEYS)
    def deregister(self, key):
        is_new = key in self.live or key not in self.departed
        assert self.table.deregister(*key) == is_new
        self.live.pop(key, None)
        self.departed.add(key)
        self.left.add(key)

    @rule(seconds=st.sampled_from([1.0, 2.0, 20.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def look(self):
        """End the window and the leases that are over."""
        is_over = self.is_recovering and self.now >= self.until
        assert self.table.recover(self.now) == is_over
        self.is_recovering = self.is_recovering and not is_over
        self.expire()

    @rule()
    def expire(self):
        gone = []
        if not self.is_recovering:
            gone = [key for key, held in self.live.items() if held.expires <= self.now]
            gone.sort(key=lambda key: (self.live[key].expires, key))
        expected = tuple(self.live.pop(key).instance for key in gone)
        assert self.table.expire(self.now) == expected
        self.left.update(gone)

    @rule()
    def restart(self):
        """Into a recovery window, with what was on disk."""
        self.start(self.now + LEASE)
        self.table.restore(self.all(), self.now)
        for held in self.live.values():
            held.length = math.inf if held.instance.permanent else LEASE
            held.expires = self.lease(held.length)

    def all(self) -> list[Instance]:
        """Every record, in order."""
        return [self.live[key].instance for key in sorted(self.live)]

    @invariant()
    def watchers_are_told_what_there_is(self):
        for service in SERVICES:
            snapshot = self.table.snapshot(*service)
            instances = tuple(
                each for each in self.all() if (each.namespace, each.service) == service
            )
            assert snapshot == Snapshot(service[1], instances, is_recovering=self.is_recovering)
            assert snapshot.departed == {
                id_ for *names, id_ in self.departed if (*names,) == service
            }

    @invariant()
    def a_version_grows_with_what_watchers_see_and_only_then(self):
        for service in SERVICES:
            snapshot, version = self.table.snapshot(*service), self.table.version(*service)
            seen, departed, before = self.told.get(service, (None, None, -1))
            is_same = (seen, departed) == (snapshot, snapshot.departed)
            assert version == before if is_same else version > before
            if seen is not None:
                missing = {each.id for each in seen.instances} - {
                    each.id for each in snapshot.instances
                }
                assert {(*service, id_) for id_ in missing} <= self.left
            self.told[service] = snapshot, snapshot.departed, version
        self.left.clear()

    @invariant()
    def nothing_is_missed_elsewhere(self):
        assert self.table.all() == tuple(self.all())
        permanent = {each for each in self.all() if each.permanent}
        assert set(self.table.permanent()) == permanent
        for namespace in ("default", "staging"):
            names = {service for space, service, _ in self.live if space == namespace}
            assert self.table.services(namespace) == tuple(sorted(names))
        ends = [held.expires for held in self.live.values() if held.expires < math.inf]
        due = self.until if self.is_recovering else min(ends, default=None)
        assert self.table.next_expiry() == due


LeaseTableMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None, derandomize=True
)
TestLeaseTable = LeaseTableMachine.TestCase

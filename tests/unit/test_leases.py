"""The lease table."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from meshrpc.errors import StaleIncarnation
from meshrpc.registry import leases
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.registry import LEASE, Snapshot

ONE = Instance(id="1", service="payment", address="127.0.0.1:5001")
KEY = ("default", "payment")
NOW = 100.0


def renew(table: LeaseTable, instance: Instance, now: float) -> bool:
    return table.renew(instance.namespace, instance.service, instance.id, instance.incarnation, now)


def test_a_registered_instance_is_listed():
    """Snapshot, services and all show it, and the version says that something changed."""
    table = LeaseTable()
    assert table.version(*KEY) == 0
    assert table.register(ONE, NOW)
    assert table.snapshot(*KEY) == Snapshot("payment", (ONE,))
    assert table.services("default") == ("payment",)
    assert table.services("staging") == ()
    assert table.all() == (ONE,)
    assert table.version(*KEY) == 1


def test_the_same_record_again_only_renews():
    """A retried registration is no change to watchers, but a whole new lease."""
    table = LeaseTable()
    table.register(ONE, NOW)
    assert not table.register(replace(ONE), NOW + 10)
    assert table.version(*KEY) == 1
    assert table.next_expiry() == NOW + 10 + LEASE


def test_another_record_of_the_same_incarnation_replaces():
    """An instance may change what it says of itself without a new incarnation."""
    table = LeaseTable()
    table.register(ONE, NOW)
    sick = replace(ONE, health=Health.NOT_SERVING)
    assert table.register(sick, NOW)
    assert table.snapshot(*KEY).instances == (sick,)


def test_an_older_incarnation_is_refused():
    """The newer record stays as it was."""
    table = LeaseTable()
    table.register(replace(ONE, incarnation=2), NOW)
    with pytest.raises(StaleIncarnation, match="incarnation 1 comes after 2"):
        table.register(replace(ONE, incarnation=1), NOW)
    assert table.snapshot(*KEY).instances[0].incarnation == 2


@pytest.mark.parametrize("leave", ["deregister", "expire"])
def test_an_incarnation_is_remembered_after_it_is_gone(leave):
    """A late registration of an older incarnation does not bring it back; an equal one may."""
    table = LeaseTable()
    newer = replace(ONE, incarnation=2)
    table.register(newer, NOW)
    if leave == "deregister":
        assert table.deregister("default", "payment", "1")
    else:
        assert table.expire(NOW + LEASE) == {KEY}
    with pytest.raises(StaleIncarnation):
        table.register(ONE, NOW + LEASE)
    assert table.register(newer, NOW + LEASE)


def test_the_memory_of_those_gone_is_bounded(monkeypatch):
    """The one gone longest is forgotten first."""
    monkeypatch.setattr(leases, "REMEMBERED", 2)
    table = LeaseTable()
    for id_ in "abc":
        table.register(replace(ONE, id=id_, incarnation=1), NOW)
        table.deregister("default", "payment", id_)
    assert table.register(replace(ONE, id="a"), NOW)
    with pytest.raises(StaleIncarnation):
        table.register(replace(ONE, id="b"), NOW)


def test_who_came_back_is_remembered_from_its_last_end(monkeypatch):
    """Not from its first, or it would be forgotten too soon."""
    monkeypatch.setattr(leases, "REMEMBERED", 2)
    table = LeaseTable()
    for id_ in "abac":
        table.register(replace(ONE, id=id_, incarnation=1), NOW)
        table.deregister("default", "payment", id_)
    with pytest.raises(StaleIncarnation):
        table.register(replace(ONE, id="a"), NOW)


def test_a_renewed_lease_lives_on():
    """Each renewal counts from its own time."""
    table = LeaseTable()
    table.register(ONE, NOW)
    assert renew(table, ONE, NOW + 10)
    assert table.expire(NOW + LEASE) == frozenset()
    assert table.expire(NOW + 10 + LEASE) == {KEY}
    assert table.snapshot(*KEY).instances == ()


def test_a_renewal_never_brings_back_a_lease_that_ran_out():
    """Not even before `expire` has come round to removing it."""
    table = LeaseTable()
    table.register(ONE, NOW)
    assert not renew(table, ONE, NOW + LEASE)
    assert table.expire(NOW + LEASE) == {KEY}
    assert not renew(table, ONE, NOW + LEASE)


@pytest.mark.parametrize("incarnation", [0, 2])
def test_another_incarnation_does_not_renew(incarnation):
    """Neither one that came before nor one that has yet to register."""
    table = LeaseTable()
    table.register(replace(ONE, incarnation=1), NOW)
    assert not renew(table, replace(ONE, incarnation=incarnation), NOW)


def test_draining_is_seen_once():
    """Draining again, or draining nobody, changes nothing."""
    table = LeaseTable()
    assert not table.drain("default", "payment", "1")
    table.register(ONE, NOW)
    assert table.drain("default", "payment", "1")
    assert not table.drain("default", "payment", "1")
    assert table.snapshot(*KEY).instances == (replace(ONE, state=State.DRAINING),)
    assert renew(table, ONE, NOW + 1)


def test_versions_grow_over_the_end_of_a_service():
    """A watcher who saw the last instance go is behind when the next one comes."""
    table = LeaseTable()
    table.register(ONE, NOW)
    table.deregister("default", "payment", "1")
    assert table.version(*KEY) == 2
    table.register(ONE, NOW)
    assert table.version(*KEY) == 3


def test_a_shorter_lease_runs_out_sooner():
    """Registering again with another length replaces the length, for renewals too."""
    table = LeaseTable()
    table.register(ONE, NOW, lease=60)
    table.register(ONE, NOW, lease=5)
    assert table.next_expiry() == NOW + 5
    assert renew(table, ONE, NOW + 4)
    assert table.expire(NOW + 9) == {KEY}


@pytest.mark.parametrize("lease", [0, -1, math.inf, math.nan])
def test_a_lease_has_a_length(lease):
    """A lease that never begins or never ends is refused."""
    with pytest.raises(ValueError, match="positive number of seconds"):
        LeaseTable().register(ONE, NOW, lease)


def test_after_a_restart_everyone_has_one_whole_lease():
    """Restored records need no renewal before it ends, and never replace one that came since."""
    table = LeaseTable()
    moved = replace(ONE, address="127.0.0.1:6001")
    other = replace(ONE, id="2")
    table.register(moved, NOW)
    table.restore([ONE, other], NOW + 1)
    assert table.all() == (moved, other)
    assert table.expire(NOW + LEASE) == {KEY}
    assert table.all() == (other,)
    assert table.next_expiry() == NOW + 1 + LEASE


def test_all_leases_start_anew_each_with_its_own_length():
    """Nobody has to come back sooner than agreed."""
    table = LeaseTable()
    other = replace(ONE, id="2")
    table.register(ONE, NOW)
    table.register(other, NOW, lease=60.0)
    table.renew_all(NOW + 100)
    assert table.expire(NOW + 100 + LEASE) == {KEY}
    assert table.all() == (other,)
    assert table.next_expiry() == NOW + 160


def test_what_is_held_is_known_before_it_is_registered():
    """Only the very same record is; an older incarnation is refused as by `register`."""
    table = LeaseTable()
    newer = replace(ONE, incarnation=ONE.incarnation + 1)
    assert not table.holds(newer)
    table.register(newer, NOW)
    assert table.holds(newer)
    assert not table.holds(replace(newer, weight=5))
    with pytest.raises(StaleIncarnation):
        table.holds(ONE)


def test_renewals_leave_the_queue_alone():
    """Ten thousand instances renewed a hundred times keep one queue entry each."""
    table = LeaseTable()
    fleet = [replace(ONE, id=str(number)) for number in range(10_000)]
    for instance in fleet:
        table.register(instance, NOW)
    for turn in range(100):
        assert renew(table, fleet[turn], NOW + turn / 10)
        table.expire(NOW + turn / 10)
    assert len(table._queue) == len(fleet)


def test_repr_is_a_status_line():
    """It says how much is in it."""
    table = LeaseTable()
    table.register(ONE, NOW)
    assert repr(table) == "<LeaseTable services=1 instances=1>"


class LeaseTableModel(RuleBasedStateMachine):
    """Any order of events leaves the table as a list that is searched from end to end would be."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable()
        self.now = NOW
        self.live: dict[tuple[str, str, str], tuple[Instance, float, float]] = {}
        self.newest: dict[tuple[str, str, str], int] = {}
        self.versions: dict[tuple[str, str], int] = {}

    def changed(self, key: tuple[str, str, str]) -> None:
        self.versions[key[:2]] = self.versions.get(key[:2], 0) + 1

    @rule(
        target=keys,
        namespace=st.sampled_from(["default", "staging"]),
        service=st.sampled_from(["order", "payment"]),
        id_=st.sampled_from("123"),
    )
    def name(self, namespace, service, id_):
        return namespace, service, id_

    @rule(
        key=keys,
        incarnation=st.integers(0, 3),
        weight=st.integers(1, 2),
        lease=st.sampled_from([1.0, 3.0, LEASE]),
    )
    def register(self, key, incarnation, weight, lease):
        namespace, service, id_ = key
        instance = Instance(
            id=id_,
            service=service,
            namespace=namespace,
            address="127.0.0.1:5001",
            incarnation=incarnation,
            weight=weight,
        )
        if incarnation < self.newest.get(key, 0):
            with pytest.raises(StaleIncarnation):
                self.table.register(instance, self.now, lease)
            return
        differs = key not in self.live or self.live[key][0] != instance
        assert self.table.register(instance, self.now, lease) == differs
        self.live[key] = instance, self.now + lease, lease
        self.newest[key] = incarnation
        if differs:
            self.changed(key)

    @rule(key=keys, incarnation=st.integers(0, 3))
    def renew(self, key, incarnation):
        instance, expires, lease = self.live.get(key, (None, 0.0, 0.0))
        may = instance is not None and instance.incarnation == incarnation and expires > self.now
        assert self.table.renew(*key, incarnation, self.now) == may
        if may:
            self.live[key] = instance, self.now + lease, lease

    @rule(key=keys)
    def drain(self, key):
        known = key in self.live and self.live[key][0].state is State.ACTIVE
        assert self.table.drain(*key) == known
        if known:
            instance, *lease = self.live[key]
            self.live[key] = replace(instance, state=State.DRAINING), *lease
            self.changed(key)

    @rule(key=keys)
    def deregister(self, key):
        assert self.table.deregister(*key) == (key in self.live)
        if self.live.pop(key, None):
            self.changed(key)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 20.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def expire(self):
        gone = [key for key, (_, expires, _) in self.live.items() if expires <= self.now]
        assert self.table.expire(self.now) == {key[:2] for key in gone}
        for key in gone:
            del self.live[key]
            self.changed(key)

    @invariant()
    def agrees(self):
        expiries = [expires for _, expires, _ in self.live.values()]
        assert self.table.next_expiry() == min(expiries, default=None)
        assert self.table.all() == tuple(self.live[key][0] for key in sorted(self.live))
        for namespace in ("default", "staging"):
            names = sorted({key[1] for key in self.live if key[0] == namespace})
            assert self.table.services(namespace) == tuple(names)
            for service in ("order", "payment"):
                keys = sorted(key for key in self.live if key[:2] == (namespace, service))
                instances = tuple(self.live[key][0] for key in keys)
                assert self.table.snapshot(namespace, service) == Snapshot(service, instances)
                version = self.table.version(namespace, service)
                assert version == self.versions.get((namespace, service), 0)


LeaseTableModel.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
TestLeaseTableModel = LeaseTableModel.TestCase

"""The lease table."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from meshrpc.errors import StaleIncarnation
from meshrpc.registry import departures, lease_queue, leases
from meshrpc.registry.finding import Problem
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
        assert table.expire(NOW + LEASE) == (newer,)
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
    assert table.expire(NOW + LEASE) == ()
    assert table.expire(NOW + 10 + LEASE) == (ONE,)
    assert table.snapshot(*KEY).instances == ()


def test_a_renewal_never_brings_back_a_lease_that_ran_out():
    """Not even before `expire` has come round to removing it."""
    table = LeaseTable()
    table.register(ONE, NOW)
    assert not renew(table, ONE, NOW + LEASE)
    assert table.expire(NOW + LEASE) == (ONE,)
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
    assert table.expire(NOW + 9) == (ONE,)


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
    assert table.expire(NOW + LEASE) == (moved,)
    assert table.all() == (other,)
    assert table.next_expiry() == NOW + 1 + LEASE


def test_all_leases_start_anew_each_with_its_own_length():
    """Nobody has to come back sooner than agreed."""
    table = LeaseTable()
    other = replace(ONE, id="2")
    table.register(ONE, NOW)
    table.register(other, NOW, lease=60.0)
    table.renew_all(NOW + 100)
    assert table.expire(NOW + 100 + LEASE) == (ONE,)
    assert table.all() == (other,)
    assert table.next_expiry() == NOW + 160


def test_what_a_registration_leaves_is_known_before_it_is_made():
    """The record as it comes; an older incarnation is refused as by `register`."""
    table = LeaseTable()
    newer = replace(ONE, incarnation=ONE.incarnation + 1)
    assert table.as_registered(newer) == newer
    table.register(newer, NOW)
    assert table.as_registered(replace(newer, weight=5)) == replace(newer, weight=5)
    with pytest.raises(StaleIncarnation):
        table.as_registered(ONE)


def test_a_drain_mark_outlives_what_its_instance_says_of_itself():
    """Until it is taken back; the next incarnation is another process, and begins without."""
    table = LeaseTable()
    table.register(ONE, NOW)
    table.drain(*KEY, "1")
    heavier = replace(ONE, weight=9)
    assert table.register(heavier, NOW)
    assert table.get(*KEY, "1") == replace(heavier, state=State.DRAINING)
    assert table.undrain(*KEY, "1")
    assert not table.undrain(*KEY, "1")
    assert table.get(*KEY, "1") == heavier
    table.drain(*KEY, "1")
    table.register(replace(ONE, incarnation=1), NOW)
    assert table.get(*KEY, "1") == replace(ONE, incarnation=1)


# Permanent records

BY_HAND = replace(ONE, id="2", permanent=True)


def test_a_permanent_record_has_no_lease():
    """It stays without any renewal, until somebody deregisters it."""
    table = LeaseTable()
    table.register(BY_HAND, NOW)
    assert table.next_expiry() is None
    assert table.expire(NOW + 1e9) == ()
    assert table.permanent() == (BY_HAND,)
    table.deregister(*KEY, "2")
    assert table.permanent() == ()


def test_what_was_found_of_a_permanent_one_outlives_its_registration_anew():
    """At the same address: at another one it is not known yet whether anybody answers."""
    table = LeaseTable()
    table.register(BY_HAND, NOW)
    assert table.set_health(*KEY, "2", Health.NOT_SERVING)
    assert not table.set_health(*KEY, "2", Health.NOT_SERVING)
    assert not table.register(BY_HAND, NOW)
    moved = replace(BY_HAND, address="127.0.0.1:6001")
    assert table.register(moved, NOW)
    assert table.permanent() == (moved,)


def test_a_lease_may_become_permanent_and_end_again():
    """Whichever was registered last counts."""
    table = LeaseTable()
    leased = replace(BY_HAND, permanent=False)
    table.register(leased, NOW)
    table.register(BY_HAND, NOW + 1)
    assert table.expire(NOW + 100) == ()
    assert table.next_expiry() is None
    assert table.register(leased, NOW + 100)
    assert table.permanent() == ()
    assert table.expire(NOW + 100 + LEASE) == (leased,)


# Those who left


def test_who_deregisters_is_told_as_departed_and_who_runs_out_is_not():
    """The absence of the one is certain; the other may only be cut off."""
    table = LeaseTable()
    table.register(ONE, NOW)
    table.register(replace(ONE, id="2"), NOW)
    table.deregister(*KEY, "1")
    table.expire(NOW + LEASE)
    assert table.snapshot(*KEY).departed == {"1"}
    table.register(replace(ONE, incarnation=1), NOW + LEASE)
    assert table.snapshot(*KEY).departed == frozenset()


def test_who_deregisters_without_being_known_is_told_too():
    """After a restart without memory, callers still count on instances that then leave."""
    table = LeaseTable()
    assert table.deregister(*KEY, "1")
    assert table.snapshot(*KEY).departed == {"1"}
    assert table.version(*KEY) == 1
    assert not table.deregister(*KEY, "1")
    assert table.version(*KEY) == 1


@pytest.mark.parametrize("bound", ["REMEMBERED", "OF_ONE_SERVICE"])
def test_departures_are_remembered_within_bounds(bound, monkeypatch):
    """Whoever left longest ago is forgotten first."""
    monkeypatch.setattr(departures, bound, 2)
    table = LeaseTable()
    for id_ in "abc":
        table.deregister(*KEY, id_)
    assert table.snapshot(*KEY).departed == {"b", "c"}
    assert repr(table._departures) == "<Departures services=1 ids=2>"


# The recovery window


def test_in_the_recovery_window_nothing_runs_out():
    """Not a lease that is shorter than the window either; at its end what was not renewed goes."""
    table = LeaseTable(recovers_until=NOW + LEASE)
    table.register(ONE, NOW, lease=1.0)
    assert renew(table, ONE, NOW + 5.0)
    table.restore([replace(ONE, id="2"), replace(ONE, id="3")], NOW)
    assert table.next_expiry() == NOW + LEASE
    assert table.expire(NOW + LEASE - 0.1) == ()
    assert renew(table, replace(ONE, id="3"), NOW + LEASE - 0.1)
    assert not table.recover(NOW + LEASE - 0.1)
    assert table.expire(NOW + LEASE) == ()
    assert table.recover(NOW + LEASE)
    assert table.expire(NOW + LEASE) == (ONE, replace(ONE, id="2"))
    assert not table.recover(NOW + LEASE)


def test_watchers_are_told_of_the_window_and_of_its_end():
    """Also those of a service that nobody has come back to."""
    table = LeaseTable(recovers_until=NOW + LEASE)
    table.register(ONE, NOW)
    before = [table.version("default", service) for service in ("payment", "order")]
    assert table.snapshot(*KEY).is_recovering
    assert table.snapshot("default", "order").is_recovering
    table.recover(NOW + LEASE)
    after = [table.version("default", service) for service in ("payment", "order")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]
    assert not table.snapshot(*KEY).is_recovering
    assert not table.snapshot("default", "order").is_recovering


def test_a_table_that_stood_still_recovers_longer():
    """Those who would have come back in the window could not be heard."""
    table = LeaseTable(recovers_until=NOW + LEASE)
    table.register(ONE, NOW)
    table.renew_all(NOW + 60)
    assert not table.recover(NOW + 60)
    assert table.recover(NOW + 60 + LEASE)
    assert table.expire(NOW + 60 + LEASE) == (ONE,)


# What should be looked at


def test_a_lease_that_is_about_to_run_out_is_a_finding():
    """Less than a third of it is left; a permanent record has none to run out."""
    table = LeaseTable()
    table.register(ONE, NOW)
    table.register(BY_HAND, NOW)
    assert table.findings(*KEY, NOW + 10.0) == ()
    (finding,) = table.findings(*KEY, NOW + 11.5)
    assert (finding.problem, finding.id) == (Problem.LEASE_NEAR_EXPIRY, "1")
    assert finding.detail.startswith("3.5 s of its lease of 15 s are left")
    assert table.findings("default", "order", NOW) == ()


# What it costs


def test_the_queue_of_those_who_come_and_go_is_bounded():
    """Entries of long leases that ended early do not pile up."""
    table = LeaseTable()
    for number in range(1000):
        table.register(replace(ONE, id=str(number)), NOW, lease=3600.0)
        table.deregister(*KEY, str(number))
    table.register(ONE, NOW)
    for turn in range(1000):
        table.register(ONE, NOW, lease=3000.0 - turn)
    assert len(table._queue) <= lease_queue.SLACK + 2
    assert table.next_expiry() == NOW + 2001


def test_a_snapshot_is_in_order_whatever_the_order_of_events():
    """Instances come in any order, and some go again."""
    table = LeaseTable()
    rng = random.Random(1)
    numbers = list(range(300))
    rng.shuffle(numbers)
    for number in numbers:
        table.register(replace(ONE, id=f"{number:04}"), NOW)
        if number % 3 == 0:
            table.deregister(*KEY, f"{number:04}")
    ids = [instance.id for instance in table.snapshot(*KEY).instances]
    assert ids == sorted(ids)
    assert len(ids) == 200


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
    assert repr(LeaseTable(NOW)) == "<LeaseTable services=0 instances=0 recovering>"

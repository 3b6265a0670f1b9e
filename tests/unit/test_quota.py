"""Who holds what of a limit over the fleet, step by step."""

import itertools

import pytest

from meshrpc.control.quota import GATHER, PAUSE, Quota
from meshrpc.control.quota_member import Holder
from meshrpc.limits.shares import EVERY_KEY, FIRST, WHOLE, Claim

LEASE = 15.0


class Stream:
    count = itertools.count()

    def __init__(self):
        self.opened = next(Stream.count)


class Process:
    """A process that wants a part of the limit, and takes what it is given when told to."""

    def __init__(self, quota, name, wants=0.0, service="shop", namespace="default"):
        self.quota = quota
        self.holder = Holder(namespace, service, name)
        self.stream = Stream()
        self.wants, self.share, self.number = wants, FIRST, 0
        self.is_granted = False

    def say(self, now):
        claim = Claim("all", EVERY_KEY, int(self.wants * WHOLE), self.share, self.is_granted)
        self.quota.report(self.holder, self.stream, self.number, [claim], now)

    def take(self, grant):
        self.number, self.is_granted = grant.number, True
        (share,) = grant.shares
        self.share = share.share


def recovered(now=0.0):
    """A quota whose recovery is over at 100."""
    quota = Quota(now)
    quota.grants(100.0)
    return quota


def settle(quota, processes, start, seconds=3.0):
    """Let everything be said and taken at once, for a while."""
    by_stream = {process.stream: process for process in processes}
    now = start
    while now < start + seconds:
        for process in processes:
            process.say(now)
        for stream, grant in quota.grants(now):
            by_stream[stream].take(grant)
            by_stream[stream].say(now)
        now += PAUSE
    return now


def test_the_first_division_waits_until_all_have_heard_of_the_limit():
    """Or the first to report would be given everything, while others begin with first shares."""
    quota = recovered()
    one = Process(quota, "a", 1.0)
    one.say(100.0)
    assert quota.grants(100.0) == []
    assert quota.grants(100.0 + GATHER - 0.01) == []
    ((stream, grant),) = quota.grants(100.0 + GATHER + PAUSE)
    assert stream is one.stream
    assert grant.shares[0].share > 0.99 * WHOLE


def test_a_process_that_dies_is_missed_for_a_lease_and_no_longer():
    """Its share counts until then; then those who are left have it."""
    quota = recovered()
    dying, living = Process(quota, "a", 1.0), Process(quota, "b", 1.0)
    now = settle(quota, [dying, living], 100.0)
    quota.leave(dying.stream)
    now = settle(quota, [living], now, LEASE - 1.0)
    assert living.share == pytest.approx(WHOLE / 2, rel=0.01)
    (row, _) = quota.rows("default", "shop")
    assert (row.instance, row.is_away) == ("a", True)
    settle(quota, [living], now, 4.0)
    assert living.share > 0.99 * WHOLE
    assert [row.instance for row in quota.rows("default", "shop")] == ["b"]


def test_a_process_that_comes_back_in_time_goes_on_where_it_was():
    """On a new stream it says what it holds; late words on the old one count for nothing."""
    quota = recovered()
    process = Process(quota, "a", 1.0)
    now = settle(quota, [process], 100.0)
    old, number = process.stream, process.number
    process.stream, process.number = Stream(), 0
    process.say(now)
    quota.report(process.holder, old, number, [], now)
    quota.leave(old)
    (row,) = quota.rows("default", "shop")
    assert (row.share, row.is_away) == (pytest.approx(1.0, rel=0.01), False)


def test_what_was_lost_with_a_stream_is_given_again():
    """Although the process says the same as before: it never heard of the grant."""
    quota = recovered()
    one = Process(quota, "a")
    one.say(100.0)
    quota.grants(100.0)
    ((_, lost),) = quota.grants(100.0 + GATHER)
    quota.leave(one.stream)
    one.stream = Stream()
    one.say(101.0)
    ((stream, grant),) = quota.grants(101.0)
    assert stream is one.stream
    assert grant.shares == lost.shares


def test_a_stream_on_which_nothing_is_said_is_ended():
    """What it was sent it might take at any time: its process is to connect anew and say what it has."""
    quota = recovered()
    silent, other = Process(quota, "a", 1.0), Process(quota, "b", 1.0)
    now = settle(quota, [silent, other], 100.0)
    settle(quota, [other], now, LEASE + 2.0)
    assert quota.overdue() == (silent.stream,)
    assert quota.overdue() == ()
    silent.say(now + LEASE + 3.0)  # too late
    assert [row.instance for row in quota.rows("default", "shop")] == ["b"]


def test_control_that_stood_still_itself_takes_nothing_from_anybody():
    """What the processes said meanwhile has not been read yet."""
    quota = recovered()
    processes = [Process(quota, "a", 1.0), Process(quota, "b", 1.0)]
    now = settle(quota, processes, 100.0)
    assert quota.grants(now + 60.0) == []
    assert quota.overdue() == ()
    assert len(quota.rows("default", "shop")) == 2


def test_a_control_service_that_starts_gives_no_more_than_was_brought():
    """Two who hold a third each may share these two thirds, and for a lease no more."""
    quota = Quota(100.0)
    processes = [Process(quota, "a", 3.0), Process(quota, "b", 0.0)]
    for process in processes:
        process.share, process.is_granted = WHOLE // 3, True
    now = settle(quota, processes, 100.0, LEASE - 0.5)
    assert sum(process.share for process in processes) <= 2 * (WHOLE // 3)
    assert processes[0].share > 0.64 * WHOLE
    settle(quota, processes, now, 4.0)
    assert sum(process.share for process in processes) > 0.98 * WHOLE


def test_services_and_namespaces_have_nothing_to_do_with_each_other():
    """Limits of one name are many."""
    quota = recovered()
    processes = [
        Process(quota, "a", 1.0),
        Process(quota, "a", 1.0, service="cart"),
        Process(quota, "a", 1.0, namespace="staging"),
    ]
    settle(quota, processes, 100.0)
    assert all(process.share > 0.99 * WHOLE for process in processes)
    assert repr(quota) == "<Quota services=3 processes=3>"


def test_a_process_that_has_no_such_limit_any_more_lets_go_at_once():
    """Its report is empty; the others have what it had."""
    quota = recovered()
    leaving, other = Process(quota, "a", 1.0), Process(quota, "b", 1.0)
    now = settle(quota, [leaving, other], 100.0)
    quota.report(leaving.holder, leaving.stream, leaving.number, [], now)
    settle(quota, [other], now, 1.0)
    assert other.share > 0.99 * WHOLE


def test_nothing_waits_where_nobody_has_such_limits():
    """Control without fleet limits has nothing to do for them."""
    quota = Quota(0.0)
    assert quota.next_due() is None
    assert quota.grants(1000.0) == []
    process = Process(quota, "a")
    process.say(1000.0)
    assert quota.next_due() is not None

"""The order in which leases run out."""

import random

from meshrpc.registry.instance import Instance
from meshrpc.registry.lease_queue import SLACK, Lease, LeaseQueue


def lease(name="1"):
    return Lease(Instance(id=name, service="payment", address="127.0.0.1:5001"), 15.0)


def test_the_first_is_the_one_that_runs_out_next():
    """Whether leases were extended, shortened or given up, and in whatever order they were added."""
    rng = random.Random(1)
    queue, leases = LeaseQueue(), [lease(str(number)) for number in range(50)]
    for each in leases:
        queue.add(each, rng.random())
    alive = set(leases)
    for _ in range(2_000):
        each = rng.choice(leases)
        if each in alive and rng.random() < 0.01:
            alive.remove(each)
            queue.remove(each)
        elif each in alive:
            queue.extend(each, rng.random() * 10)
        expected = min(alive, key=lambda one: (one.expires, one.instance.id), default=None)
        assert queue.first() is expected


def test_a_lease_that_is_shortened_runs_out_sooner():
    """Before the time for which it stood in the queue."""
    queue, one, other = LeaseQueue(), lease("1"), lease("2")
    queue.add(one, 20.0)
    queue.add(other, 15.0)
    queue.extend(one, 10.0)
    assert queue.first() is one
    assert one.expires == 10.0


def test_renewals_take_no_memory():
    """Neither those that lengthen a lease nor those that shorten it."""
    queue, one = LeaseQueue(), lease()
    queue.add(one, 0.0)
    for now in range(10_000):
        queue.extend(one, now + 15.0 - now % 7)
    assert len(queue) <= 2 + SLACK

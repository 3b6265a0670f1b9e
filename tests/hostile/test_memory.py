"""What attacks cost a server, seen from outside: its memory, its log, and that it is still there."""

import grpc
import pytest

from tests.hostile.attacks import CORPUS
from tests.hostile.measure import GoodCaller, Process, measure

MOST = 128
"""MB that attacks may cost, one or all."""
CREEP = 32
"""MB that twenty times the same attacks may cost more than ten times."""


def assert_good(failures, calls):
    """Of calls that are not repeated a few may be let go of, where a burst fills the queue."""
    assert set(failures) <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(failures) <= max(5, calls * 0.05)


def attack_all(rounds):
    """Run the whole corpus so often beside a good caller; returns the MB that each round left."""
    with Process() as server, GoodCaller(server.address) as good:
        good.wait(50)
        before = server.memory()
        used = []
        for _ in range(rounds):
            for attack, size, _ in CORPUS.values():
                attack(server.address, size).close()
            good.wait(50)
            used.append(server.memory() - before)
        assert server.is_alive
    assert_good(good.failures, len(good.times))
    return used


@pytest.mark.process
def test_all_attacks_one_after_the_other_are_borne():
    """On one process, twice over: it lives, a good caller goes on, and its memory is bounded."""
    assert max(attack_all(2)) < MOST


@pytest.mark.soak
def test_the_same_attacks_again_cost_no_more_memory():
    """What the first rounds took is used again."""
    used = attack_all(20)
    assert max(used) < MOST
    assert max(used[10:]) - max(used[:10]) < CREEP


@pytest.mark.soak
@pytest.mark.parametrize("name", CORPUS)
def test_a_large_attack_is_borne(name):
    """At full size, on a server of its own: docs/hostile-input.md has what it costs."""
    cost = measure(name)
    assert cost.alive
    assert_good(cost.failures, cost.calls)
    assert cost.peak < MOST
    # C-core has a line for each value that it cannot parse; nothing here sends more than one.
    assert cost.lines < 100

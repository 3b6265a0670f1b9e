"""With a bound on load, keys keep to their owners until those have more than their part."""

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.balancer.maglev import MaglevBalancer
from meshrpc.balancer.ring_hash import RingHashBalancer

KINDS = pytest.mark.parametrize("kind", [RingHashBalancer, MaglevBalancer])


class Load:
    """What is pending; counts how often it was looked at."""

    def __init__(self) -> None:
        self.calls = 0
        self.looks = 0

    @property
    def pending(self) -> int:
        self.looks += 1
        return self.calls


class Endpoint:
    """An endpoint as far as keys and calls under way are concerned."""

    def __init__(self, name: str, weight: int = 1) -> None:
        self.id = name
        self.weight = weight
        self.load = Load()

    def bound(self, everybody, max_load, beginning=1):
        """How many calls it may have when so many more begin."""
        pending = sum(endpoint.load.calls for endpoint in everybody)
        share = self.weight / sum(endpoint.weight for endpoint in everybody)
        return math.ceil(round(max_load * (pending + beginning) * share, 9))


def endpoints(count):
    return [Endpoint(f"e{number}") for number in range(count)]


@KINDS
def test_a_hot_key_takes_the_endpoints_that_it_needs_and_none_is_picked_at_its_bound(kind):
    """10,000 calls of one key held open at c = 1.25: nobody has more than 1.25 times the mean."""
    mine = endpoints(10)
    picker = kind(random.Random(1), max_load=1.25).picker(mine)
    for _ in range(10_000):
        picked = picker.pick(0.0, "hot")
        assert picked.load.calls < picked.bound(mine, 1.25)
        picked.load.calls += 1
    counts = sorted((endpoint.load.calls for endpoint in mine), reverse=True)
    assert counts[0] == 1250
    # Eight hold 1,250 each; the ninth and tenth have what rounding up left of them.
    assert sum(counts[:8]) >= 9_990


@KINDS
def test_beside_a_hot_key_the_others_stay_with_owners_that_have_room(kind):
    """Every second of 10,000 calls has the same key, a hundred are under way at a time.

    No owner below its bound loses a key, and no bound is overstepped; since the hot key fills
    several owners to the brim, a third of the other keys' calls go elsewhere.
    """
    mine = endpoints(20)
    rng = random.Random(5)
    plain = kind(random.Random(1)).picker(mine)
    picker = kind(random.Random(1), max_load=1.25).picker(mine)
    under_way, at_home = [], 0
    for number in range(10_000):
        key = "hot" if number % 2 else f"key-{rng.randrange(5000)}"
        if len(under_way) == 100:
            under_way.pop(rng.randrange(100)).load.calls -= 1
        picked, owner = picker.pick(0.0, key), plain.pick(0.0, key)
        # Two picks share a count: the first may be counted twice when a call has ended since.
        assert picked.load.calls < picked.bound(mine, 1.25, beginning=2)
        if owner.load.calls < owner.bound(mine, 1.25):
            assert picked is owner
        picked.load.calls += 1
        under_way.append(picked)
        at_home += key != "hot" and picked is owner
    assert at_home > 0.6 * 5000


@KINDS
def test_keys_stay_with_their_owner_while_calls_are_few(kind):
    """An idle endpoint is below every bound: one call at a time never leaves its owner."""
    mine = endpoints(50)
    plain = kind(random.Random(1)).picker(mine)
    picker = kind(random.Random(1), max_load=1.0).picker(mine)
    for number in range(1000):
        key = f"key-{number}"
        assert picker.pick(0.0, key) is plain.pick(0.0, key)


@settings(max_examples=80, deadline=None)
@given(
    max_load=st.floats(1.0, 4.0),
    pending=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), min_size=1, max_size=15),
    key=st.none() | st.text(max_size=5),
)
def test_whatever_is_pending_the_one_picked_is_below_its_bound(max_load, pending, key):
    """And it is the first such in the order of the key; a bound grows with the weight."""
    mine = [Endpoint(f"e{number}", weight) for number, (_, weight) in enumerate(pending)]
    for endpoint, (calls, _) in zip(mine, pending, strict=True):
        endpoint.load.calls = calls
    picked = RingHashBalancer(random.Random(1), max_load).picker(mine).pick(0.0, key)
    assert picked.load.calls < picked.bound(mine, max_load)
    if key is not None:
        order = RingHashBalancer(random.Random(1)).picker(mine).choices(key)
        passed_over = []
        for endpoint in order:
            if endpoint is picked:
                break
            passed_over.append(endpoint)
        assert all(each.load.calls >= each.bound(mine, max_load) for each in passed_over)


@KINDS
def test_a_key_returns_to_its_owner_when_that_has_room_again(kind):
    """Nothing but what is pending moves a key."""
    mine = endpoints(4)
    picker = kind(random.Random(1), max_load=1.25).picker(mine)
    owner = picker.pick(0.0, "key")
    owner.load.calls = 5
    assert picker.pick(0.0, "key") is not owner
    owner.load.calls = 0
    assert picker.pick(0.0, "key") is owner


@KINDS
def test_only_those_that_are_ready_share_the_load(kind):
    """Members that are away neither get calls nor lower the others' bound."""
    mine = endpoints(10)
    picker = kind(random.Random(1), max_load=1.25).picker(mine[8:], mine)
    for _ in range(100):
        picker.pick(0.0, "hot").load.calls += 1
    # ceil(1.25 x 100 / 2) of the last call.
    assert sorted(endpoint.load.calls for endpoint in mine[8:]) == [37, 63]


@KINDS
def test_calls_without_a_key_are_bounded_too(kind):
    """A random place whose owner is at its bound is passed over like any other."""
    mine = endpoints(10)
    picker = kind(random.Random(1), max_load=1.1).picker(mine)
    for _ in range(1000):
        picker.pick(0.0).load.calls += 1
    counts = Counter({endpoint.id: endpoint.load.calls for endpoint in mine})
    assert max(counts.values()) <= 110
    assert min(counts.values()) > 0


@KINDS
def test_one_endpoint_gets_every_call_whatever_its_bound(kind):
    """There is no other."""
    mine = endpoints(1)
    picker = kind(random.Random(1), max_load=1.0).picker(mine)
    for key in ("a", None, "b") * 10:
        picker.pick(0.0, key).load.calls += 1
    assert mine[0].load.calls == 30


@KINDS
def test_calls_that_others_began_do_not_leave_a_key_without_a_choice(kind):
    """A count that is out of date makes all look full: they are counted anew, and one is not."""
    mine = endpoints(64)
    picker = kind(random.Random(1), max_load=1.0).picker(mine)
    picker.pick(0.0, "key")
    for endpoint in mine:
        endpoint.load.calls = 10
    mine[17].load.calls = 9
    assert picker.pick(0.0, "key") is mine[17]


def test_calls_that_begin_while_it_looks_do_not_fail_a_pick():
    """When each looks full as it is looked at, the owner has the call."""

    looks = itertools.count()

    class Busier(Load):
        @property
        def pending(self) -> int:
            return 10 ** next(looks)

    mine = endpoints(3)
    owner = RingHashBalancer(random.Random(1)).picker(mine).pick(0.0, "key")
    for endpoint in mine:
        endpoint.load = Busier()
    assert RingHashBalancer(random.Random(1), 1.0).picker(mine).pick(0.0, "key") is owner


@KINDS
def test_a_pick_looks_at_few_endpoints_however_many_there_are(kind):
    """The count of all that is pending is shared by an eighth as many picks as endpoints."""
    mine = endpoints(800)
    picker = kind(random.Random(1), max_load=1.25).picker(mine)
    for number in range(1000):
        picker.pick(0.0, f"key-{number}")
    assert sum(endpoint.load.looks for endpoint in mine) == 1000 * (8 + 1)


@KINDS
def test_an_id_given_twice_counts_once(kind):
    """Its weight and its calls are those of one endpoint."""
    mine = endpoints(2)
    picker = kind(random.Random(1), max_load=1.0).picker([*mine, mine[0]])
    for _ in range(100):
        picker.pick(0.0, "hot").load.calls += 1
    assert [endpoint.load.calls for endpoint in mine] == [50, 50]

"""Keys keep to their endpoints on the ring, whoever asks, comes, goes or is away."""

import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.balancer import ring_hash
from meshrpc.balancer.hashing import hash_of
from meshrpc.balancer.ring_hash import RING_SIZE, RingHashBalancer

KEYS = [f"key-{number}" for number in range(3000)]


class Endpoint:
    """An endpoint as far as keys are concerned."""

    def __init__(self, name: str, weight: int = 1) -> None:
        self.id = name
        self.weight = weight


def endpoints(count, weight=1):
    return [Endpoint(f"e{number}", weight) for number in range(count)]


def owners(ready, members=None, keys=KEYS):
    """Who gets each of the keys."""
    picker = RingHashBalancer(random.Random(1)).picker(ready, members)
    return {key: picker.pick(0.0, key).id for key in keys}


def moved(before, after):
    return {key for key in before if before[key] != after[key]}


def test_the_place_of_a_key_is_the_same_in_every_release():
    """Callers of two releases that disagreed would halve every cache between them."""
    assert hash_of("cart-7") == 0x8B49871B214F3F35
    assert hash_of("") == 0xE4A6A0577479B2B4


def test_a_text_that_is_no_unicode_has_a_place_too():
    """An undecodable argument, which Python hands on as lone surrogates, fails no call."""
    assert 0 <= hash_of("\udcff") < 2**64


def test_a_key_belongs_to_one_endpoint_for_every_caller():
    """Whatever the order of endpoints and the source of randomness."""
    mine = endpoints(5)
    other = RingHashBalancer(random.Random(2)).picker(mine[::-1])
    assert all(other.pick(0.0, key).id == owner for key, owner in owners(mine).items())


def test_processes_with_other_hash_seeds_agree():
    """Python's own hash would give each process another ring."""
    program = (
        "import random\n"
        "from types import SimpleNamespace as Endpoint\n"
        "from meshrpc.balancer.ring_hash import RingHashBalancer\n"
        "mine = list({Endpoint(id=f'e{i}', weight=1).id for i in range(20)})\n"
        "mine = [Endpoint(id=name, weight=1) for name in mine]\n"
        "picker = RingHashBalancer(random.Random()).picker(mine)\n"
        "print(*(picker.pick(0.0, f'key-{i}').id for i in range(300)))\n"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert answers[0] == answers[1] == list(owners(endpoints(20), keys=KEYS[:300]).values())


def test_an_endpoint_that_leaves_moves_its_own_keys_only():
    """And one that comes takes only what becomes its own."""
    before, after = owners(endpoints(5)), owners(endpoints(4))
    assert moved(before, after) == {key for key in before if before[key] == "e4"}


@settings(max_examples=25, deadline=None)
@given(
    names=st.sets(st.text(max_size=6), min_size=2, max_size=32),
    data=st.data(),
)
def test_whoever_leaves_or_comes_moves_its_own_keys_only(names, data):
    """Any of up to 32 names; that many the ring holds with all their points."""
    leaver = data.draw(st.sampled_from(sorted(names)))
    everybody = [Endpoint(name) for name in names]
    rest = [endpoint for endpoint in everybody if endpoint.id != leaver]
    before, after = owners(everybody, keys=KEYS[:300]), owners(rest, keys=KEYS[:300])
    assert moved(before, after) == {key for key in before if before[key] == leaver}


def test_most_keys_stay_where_a_ring_becomes_too_full():
    """At the 33rd endpoint all points are halved; at the 34th nothing but its own keys moves."""
    mine = endpoints(34)
    before, after, later = owners(mine[:32]), owners(mine[:33]), owners(mine)
    assert len(before) / 10 < len(moved(before, after)) < len(before) / 2
    assert {later[key] for key in moved(after, later)} == {"e33"}


def test_shares_of_keys_follow_weights_as_closely_as_the_ring_allows():
    """128 points a unit of weight: a standard deviation of 9 %, four of them allowed here."""
    mine = [Endpoint("a"), Endpoint("b"), Endpoint("c", weight=2)]
    seen = Counter(owners(mine, keys=[f"key-{number}" for number in range(8000)]).values())
    assert [seen[name] / 8000 for name in "abc"] == pytest.approx([0.25, 0.25, 0.5], rel=0.4)


def test_calls_without_a_key_are_spread_over_the_ring():
    """As gRFC A42 asks for."""
    picker = RingHashBalancer(random.Random(1)).picker(endpoints(4))
    seen = Counter(picker.pick(0.0).id for _ in range(4000))
    assert set(seen) == {"e0", "e1", "e2", "e3"}
    assert max(seen.values()) < 2 * min(seen.values())


@pytest.mark.parametrize(("count", "weight"), [(3000, 1), (8000, 1), (100, 10_000)])
def test_a_ring_is_bounded_whatever_is_on_it(count, weight):
    """One point for each endpoint at least, and not many more than the cap in all."""
    ring = ring_hash.ring({f"e{number}": weight for number in range(count)})
    assert len(set(ring.ids)) == count
    assert len(ring.ids) == len(ring.hashes) <= max(RING_SIZE, count)


def test_keys_of_one_that_is_away_are_spread_over_the_others_and_no_other_key_moves():
    """Its 128 points are followed by points of all others: each takes over about a 19th."""
    mine = endpoints(20)
    before, after = owners(mine), owners(mine[1:], mine)
    lost = {key for key in before if before[key] == "e0"}
    assert moved(before, after) == lost
    heirs = Counter(after[key] for key in lost)
    assert len(heirs) >= 17
    assert max(heirs.values()) <= len(lost) / 4


def test_keys_come_back_to_an_endpoint_that_was_away():
    """From one balancer: nothing of the absence remains."""
    mine = endpoints(20)
    balancer = RingHashBalancer(random.Random(1))
    before, away, after = (
        [balancer.picker(ready, mine).pick(0.0, key).id for key in KEYS[:500]]
        for ready in (mine, mine[3:], mine)
    )
    assert before == after != away


@settings(max_examples=60, deadline=None)
@given(ready=st.sets(st.integers(0, 19), min_size=1), also=st.integers(0, 19))
def test_one_more_that_goes_away_moves_only_what_it_had(ready, also):
    """However many are away before: a key moves only if the one that goes had it."""
    mine = endpoints(20)
    before = owners([mine[number] for number in sorted(ready)], mine, KEYS[:100])
    assert set(before.values()) <= {f"e{number}" for number in ready}
    if not ready - {also}:
        return  # somebody is always ready
    after = owners([mine[number] for number in sorted(ready - {also})], mine, KEYS[:100])
    assert moved(before, after) == {key for key in before if before[key] == f"e{also}"}


def test_the_last_one_ready_gets_every_call():
    """With a key and without."""
    mine = endpoints(300)
    picker = RingHashBalancer(random.Random(1)).picker(mine[7:8], mine)
    assert {picker.pick(0.0, key).id for key in [*KEYS[:100], None]} == {"e7"}


def test_one_endpoint_gets_every_call():
    """There is no other."""
    picker = RingHashBalancer(random.Random(1)).picker(endpoints(1))
    assert {picker.pick(0.0, key).id for key in [*KEYS[:100], None]} == {"e0"}


def test_an_id_given_twice_is_one_endpoint():
    """It has the points of one, and its calls go to the one that is ready."""
    mine = endpoints(4)
    again = Endpoint("e0")
    assert owners([*mine, again]) == owners(mine)
    picker = RingHashBalancer(random.Random(1)).picker([again], mine)
    assert picker.pick(0.0, "key") is again


def test_one_that_is_ready_without_being_a_member_is_a_member():
    """No call fails because two lists disagree."""
    stranger = Endpoint("stranger")
    picker = RingHashBalancer(random.Random(1)).picker([stranger], endpoints(3))
    assert picker.pick(0.0, "key") is stranger


def test_choices_are_all_that_are_ready_and_begin_with_the_owner():
    """Where a key goes next when its owner cannot have it."""
    mine = endpoints(6)
    picker = RingHashBalancer(random.Random(1)).picker(mine[2:], mine)
    for key in KEYS[:50]:
        found = [endpoint.id for endpoint in picker.choices(key)]
        assert found[0] == picker.pick(0.0, key).id
        assert set(found) == {endpoint.id for endpoint in mine[2:]}


def test_a_ring_is_made_only_when_ids_or_weights_change(monkeypatch):
    """Who is ready, and in which order members are listed, does not matter to it."""
    made = []
    real = ring_hash.ring
    monkeypatch.setattr(ring_hash, "ring", lambda weights: made.append(weights) or real(weights))
    mine = endpoints(5)
    balancer = RingHashBalancer(random.Random(1))
    for ready, members in ((mine, None), (mine[2:], mine), (mine[:1], mine[::-1])):
        balancer.picker(ready, members).pick(0.0, "key")
    assert len(made) == 1
    balancer.picker(mine, [*mine[:4], Endpoint("e4", weight=2)])
    assert len(made) == 1, "the one that is ready knows its weight"
    balancer.picker([*mine[:4], Endpoint("e4", weight=2)])
    balancer.picker(mine[:4])
    assert len(made) == 3

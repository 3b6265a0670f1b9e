"""A split holds its shares, sticks by key, and moves no key that it need not."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.policy.model import Fallback
from meshrpc.policy.split import Split
from meshrpc.policy.subset import Subset

V1, V2, V3 = (Subset.of(name, {"version": name}) for name in ("v1", "v2", "v3"))
CALLS = 10_000


def split(*weights, fallback=Fallback.NONE, route="rest"):
    return Split(route, tuple(zip((V1, V2, V3), weights, strict=False)), fallback)


def everybody(_subset):
    return True


def nobody(_subset):
    return False


def bound(part, calls=CALLS):
    """Five standard deviations of a binomial count: a right split is outside once in a million."""
    return 5 * math.sqrt(calls * part * (1 - part))


def placed(split, has_instances=everybody, count=CALLS):
    """Where each of the keys goes; without chance."""
    return {
        key: split.choose(key, has_instances, None) for key in (f"user-{i}" for i in range(count))
    }


@pytest.mark.parametrize("weights", [(90, 10), (1, 1), (1, 0), (0, 7), (1, 2, 3), (1_000_000, 1)])
def test_calls_without_a_key_are_shared_out_by_weight(weights):
    """Each subset's count is within binomial bounds of its part; one with weight 0 gets none."""
    rng = random.Random(1)
    counts = Counter(split(*weights).choose(None, everybody, rng) for _ in range(CALLS))
    for subset, weight in split(*weights).targets:
        part = weight / sum(weights)
        assert abs(counts[subset] - CALLS * part) <= bound(part)


@pytest.mark.parametrize("weights", [(90, 10), (1, 1), (0, 7), (1, 2, 3)])
def test_keys_are_shared_out_by_weight(weights):
    """Ten thousand keys hold the same bounds as ten thousand draws."""
    counts = Counter(placed(split(*weights)).values())
    for subset, weight in split(*weights).targets:
        part = weight / sum(weights)
        assert abs(counts[subset] - CALLS * part) <= bound(part)


def test_a_key_sticks_to_its_subset():
    """Whoever asks, and however often; only the parts of the weights count, and the names."""
    assert placed(split(90, 10)) == placed(split(90, 10)) == placed(split(9, 1))
    turned = Split("rest", ((V2, 10), (V1, 90)))
    assert placed(turned) == placed(split(90, 10))


def test_a_change_of_weights_moves_only_the_keys_it_must():
    """From 90/10 to 80/20: a ninth of the first's keys go to the second, and none the other way."""
    before, after = placed(split(90, 10)), placed(split(80, 20))
    moved = [(before[key], after[key]) for key in before if before[key] != after[key]]
    assert set(moved) == {(V1, V2)}
    of_first = sum(subset == V1 for subset in before.values())
    assert abs(len(moved) - of_first / 9) <= bound(1 / 9, of_first)


def test_a_canary_walked_up_never_gives_a_key_back():
    """From 0 to 100 % each step only adds keys to the second subset."""
    canary: set[str] = set()
    for percent in (0, 1, 5, 25, 50, 90, 100):
        now = {key for key, subset in placed(split(100 - percent, percent)).items() if subset == V2}
        assert canary <= now
        canary = now
    assert len(canary) == CALLS


def test_any_text_is_a_key():
    """Also text that no encoding has: `call_options` takes what it is given."""
    for key in ("", "é", "\ud800", "\0", "x" * 100_000):
        assert split(1, 1).choose(key, everybody, None) in (V1, V2)


def test_routes_place_their_keys_independently():
    """The canaries of two routes are not the same users."""
    one, other = (placed(split(50, 50, route=route)) for route in ("one", "other"))
    both = sum(one[key] == V1 and other[key] == V1 for key in one)
    assert abs(both - CALLS / 4) <= bound(1 / 4)


def test_the_others_take_the_share_of_a_subset_without_instances():
    """In proportion to their weights, with a key and without; nobody else's keys move."""
    of_three, rng = split(2, 3, 5), random.Random(1)
    before, after = placed(of_three), placed(of_three, lambda subset: subset != V3)
    assert all(after[key] == before[key] for key in before if before[key] != V3)
    by_chance = Counter(
        of_three.choose(None, lambda subset: subset != V3, rng) for _ in range(CALLS)
    )
    for counts in (Counter(after.values()), by_chance):
        assert counts[V3] == 0
        assert abs(counts[V1] - CALLS * 2 / 5) <= bound(2 / 5)


@pytest.mark.parametrize("key", [None, "user-1"])
def test_a_weight_of_nothing_takes_nobodys_share(key):
    """A subset at 0 gets no call, not even when the others have no instances."""
    choice = split(1, 0).choose(key, lambda subset: subset == V2, random.Random(1))
    assert choice == V1


@pytest.mark.parametrize("key", [None, "user-1"])
def test_without_any_instance_the_fallback_decides(key):
    """`any` means every instance of the service; `none` the subset whose absence fails the call."""
    rng = random.Random(1)
    assert split(1, 2, fallback=Fallback.ANY).choose(key, nobody, rng) is None
    missing = split(1, 2).choose(key, nobody, rng)
    assert missing in (V1, V2)
    if key is not None:
        assert missing == split(1, 2).choose(key, everybody, rng)


@settings(deadline=None)
@given(
    weights=st.lists(st.integers(0, 1_000_000), min_size=1, max_size=8).filter(any),
    alive=st.sets(st.integers(0, 7)),
    key=st.none() | st.text(alphabet=st.characters()),
    fallback=st.sampled_from(Fallback),
    seed=st.integers(),
)
def test_a_call_goes_where_there_is_somebody(weights, alive, key, fallback, seed):
    """To a subset with weight and instances where there is one; then never anywhere else."""
    targets = tuple((Subset(f"v{i}", ()), weight) for i, weight in enumerate(weights))
    subsets = [subset for subset, _ in targets]
    choice = Split("r", targets, fallback).choose(
        key, lambda subset: subsets.index(subset) in alive, random.Random(seed)
    )
    usable = [subset for i, (subset, weight) in enumerate(targets) if weight and i in alive]
    if usable:
        assert choice in usable
    elif fallback is Fallback.ANY:
        assert choice is None
    else:
        assert choice in [subset for subset, weight in targets if weight]

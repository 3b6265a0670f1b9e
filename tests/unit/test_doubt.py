"""Which instances a caller goes on believing in although its registry lists them no more."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrpc.registry.doubt import HOLD, WINDOW, Doubt
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import LEASE, Snapshot

SERVICE = "payment"


def instance(id_, state=State.ACTIVE):
    return Instance(id=id_, service=SERVICE, address="127.0.0.1:5001", state=state)


def listed(ids, **rest):
    """A snapshot of instances by id; an id with a `-` in front is draining."""
    instances = sorted(
        (instance(i.lstrip("-"), State.DRAINING if i[0] == "-" else State.ACTIVE) for i in ids),
        key=lambda one: one.id,
    )
    return Snapshot(SERVICE, tuple(instances), **rest)


def shown(doubt):
    """What is believed, as text: a `?` behind those that are held, a `-` before the draining."""
    marks = {State.ACTIVE: "{}", State.DRAINING: "-{}", State.HELD: "{}?"}
    return " ".join(marks[one.state].format(one.id) for one in doubt.instances)


@pytest.fixture
def doubt():
    doubt = Doubt()
    doubt.take_in(listed("abcd"), now=0.0)
    return doubt


def test_a_few_of_many_that_vanish_are_gone(doubt):
    """Half of them at most: that happens, and the others carry the calls."""
    doubt.take_in(listed("ab"), now=1.0)
    assert shown(doubt) == "a b"
    assert doubt.next_change() is None


def test_most_that_vanish_at_once_are_held(doubt):
    """For two lease times; then they are gone."""
    doubt.take_in(listed("d"), now=1.0)
    assert shown(doubt) == "a? b? c? d"
    assert doubt.next_change() == 1.0 + HOLD == 1.0 + 2 * LEASE
    assert not doubt.advance(HOLD)
    assert doubt.advance(1.0 + HOLD)
    assert shown(doubt) == "d"


def test_an_empty_answer_is_held_whole(doubt):
    """A registry that was restarted empty looks like this."""
    doubt.take_in(listed(""), now=1.0)
    assert shown(doubt) == "a? b? c? d?"


def test_who_registers_again_is_held_no_longer(doubt):
    """The others are, although by then most are back."""
    doubt.take_in(listed(""), now=1.0)
    doubt.take_in(listed("abc"), now=3.0)
    assert shown(doubt) == "a b c d?"
    doubt.take_in(listed("abcd"), now=4.0)
    assert shown(doubt) == "a b c d"
    assert doubt.next_change() is None


def test_who_fails_while_held_is_gone(doubt):
    """What the registry says and what is seen agree."""
    doubt.take_in(listed(""), now=1.0)
    assert doubt.failed(["b", "unknown"]) == ("b",)
    assert shown(doubt) == "a? c? d?"
    doubt.take_in(listed(""), now=2.0)
    assert shown(doubt) == "a? c? d?"


def test_who_fails_without_being_held_stays(doubt):
    """The registry lists it: that it fails is ejection's business."""
    assert doubt.failed(["a"]) == ()
    assert shown(doubt) == "a b c d"


def test_leases_that_run_out_one_by_one_are_a_vanishing_too(doubt):
    """Of a registry that hears of nobody, renewals stop together and leases end within seconds.

    Those that went first, when it looked harmless, come back.
    """
    for now, left in ((1.0, "abc"), (2.0, "ab")):
        doubt.take_in(listed(left), now)
        assert "?" not in shown(doubt)
    doubt.take_in(listed("a"), now=3.0)
    assert shown(doubt) == "a b? c? d?"
    doubt.take_in(listed(""), now=4.0)
    assert shown(doubt) == "a? b? c? d?"


def test_what_vanished_long_apart_did_not_vanish_together(doubt):
    """One instance that dies each quarter of a minute is not a registry that forgets."""
    for turn, left in enumerate(("abc", "ab", "a"), start=1):
        doubt.take_in(listed(left), now=turn * WINDOW)
    assert shown(doubt) == "a"


def test_instances_that_are_replaced_are_not_held(doubt):
    """All die by kill -9, one after the other, and another comes for each."""
    left = list("abcd")
    for turn, new in enumerate("efgh"):
        left = [*left[1:], new]
        doubt.take_in(listed(left), now=1.0 + turn)
        assert "?" not in shown(doubt)


def test_who_deregistered_is_gone_at_once(doubt):
    """Also when it is everybody."""
    doubt.take_in(listed("", departed=frozenset("abcd")), now=1.0)
    assert shown(doubt) == ""


def test_who_deregisters_while_held_is_gone(doubt):
    """The word may come later than the absence."""
    doubt.take_in(listed(""), now=1.0)
    doubt.take_in(listed("", departed=frozenset("ab")), now=2.0)
    assert shown(doubt) == "c? d?"


def test_who_was_draining_is_gone_at_once(doubt):
    """The mark is a word that every registry can carry."""
    doubt.take_in(listed(["-a", "-b", "-c", "d"]), now=1.0)
    doubt.take_in(listed("d"), now=1.5)
    assert shown(doubt) == "d"


def test_a_rolling_restart_of_two_is_no_failing_registry():
    """Each drains, leaves, and comes back under another id before the other one leaves."""
    doubt = Doubt()
    for now, ids in enumerate(("ab", ["-a", "b"], "b", "bc", ["-b", "c"], "c", "cd")):
        doubt.take_in(listed(ids), float(now))
        assert "?" not in shown(doubt)
    assert shown(doubt) == "c d"


def test_while_the_registry_recovers_nobody_vanishes(doubt):
    """Not even one of many; the rule holds from the end of the recovery on."""
    doubt.take_in(listed("abc", is_recovering=True), now=1.0)
    assert shown(doubt) == "a b c d?"
    doubt.take_in(listed("abc"), now=15.0)
    assert shown(doubt) == "a b c"


def test_most_that_are_missing_after_the_recovery_are_held_from_then_on(doubt):
    """Until then they were merely late."""
    doubt.take_in(listed("", is_recovering=True), now=1.0)
    doubt.take_in(listed("a"), now=16.0)
    assert shown(doubt) == "a b? c? d?"
    assert doubt.next_change() == 16.0 + HOLD


def test_a_hold_can_be_postponed(doubt):
    """While the registry is away again, nobody can come back."""
    doubt.take_in(listed(""), now=1.0)
    doubt.postpone(100.0)
    assert not doubt.advance(99.0)
    assert shown(doubt) == "a? b? c? d?"
    assert doubt.advance(100.0)
    assert shown(doubt) == ""


def test_what_is_listed_is_handed_on_as_it_is(doubt):
    """Without anybody held nothing is made anew, however many there are."""
    snapshot = listed("abcd")
    doubt.take_in(snapshot, now=1.0)
    assert doubt.instances is snapshot.instances


def test_who_is_held_is_the_same_record_until_that_ends(doubt):
    """While thousands are held and come back one by one, none is made anew each time."""
    doubt.take_in(listed(""), now=1.0)
    before = doubt.instances
    doubt.take_in(listed("a"), now=2.0)
    assert all(one is other for one, other in zip(doubt.instances[1:], before[1:], strict=True))


def test_repr_is_a_status_line(doubt):
    """How many are listed, how many held."""
    doubt.take_in(listed(""), now=1.0)
    assert repr(doubt) == "<Doubt listed=0 held=4>"


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_any_history_ends_as_the_registry_says(seed, most):
    """Whatever comes: the listed are believed, the departed are not, and each hold ends."""
    rng = random.Random(seed)
    everybody = [f"i{number:02}" for number in range(most)]
    doubt, now = Doubt(), 0.0
    departed: set[str] = set()
    for _ in range(20):
        now += rng.choice((0.1, 1.0, WINDOW))
        ids = {id_ for id_ in everybody if rng.random() < rng.choice((0.0, 0.5, 1.0))}
        departed = {id_ for id_ in departed | set(everybody) if rng.random() < 0.1} - ids
        snapshot = listed(ids, departed=frozenset(departed), is_recovering=rng.random() < 0.2)
        before = {one.id for one in doubt.instances}
        doubt.take_in(snapshot, now)
        doubt.advance(now)
        believed = {one.id: one.state for one in doubt.instances}
        assert [one.id for one in doubt.instances] == sorted(believed)
        assert {id_ for id_, state in believed.items() if state is not State.HELD} == ids
        assert not departed & believed.keys()
        if snapshot.is_recovering:
            assert before - departed <= believed.keys()
    doubt.take_in(listed(ids), now)
    assert doubt.advance(now + HOLD) or "?" not in shown(doubt)
    assert {one.id for one in doubt.instances} == ids


def ours(id_):
    """An instance that would register again if it could."""
    return replace(instance(id_), pid=7)


def test_ours_that_are_alive_are_held_on_while_they_are_more_than_the_listed():
    """They are cut off from a registry that their callers hear: nobody else could take the calls."""
    doubt = Doubt()
    doubt.take_in(Snapshot(SERVICE, (ours("a"), ours("b"), ours("c"), instance("d"))), now=0.0)
    doubt.take_in(Snapshot(SERVICE, ()), now=1.0)
    assert doubt.advance(1.0 + HOLD, alive={"a", "b", "d"})
    assert shown(doubt) == "a? b?"
    assert doubt.next_change() == 1.0 + HOLD + LEASE
    doubt.take_in(Snapshot(SERVICE, (ours("x"), ours("y"))), now=2.0 + HOLD)
    assert doubt.advance(1.0 + HOLD + LEASE, alive={"a", "b"})
    assert shown(doubt) == "x y"

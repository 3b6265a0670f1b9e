"""What a process watches, as control is told of it, without a stream."""

from __future__ import annotations

import json

from meshrpc.interests import Interests
from meshrpc.v1 import control_pb2, policy_pb2


def interests(changes: list[None] | None = None) -> Interests:
    changed = [] if changes is None else changes
    return Interests(lambda: changed.append(None), lambda: None, lambda *_: None)


def push(nonce: str, timeout: str, epoch: str = "") -> control_pb2.Push:
    text = json.dumps({"schema": "meshrpc.policy/v1", "service": "payment", "timeout": timeout})
    document = policy_pb2.PolicyDocument(service="payment", revision=1, document=text)
    return control_pb2.Push(nonce=nonce, policies=[document], epoch=epoch)


def sets(nonce: str, version: int) -> control_pb2.Push:
    instance_set = control_pb2.InstanceSet(service="payment", version=version)
    return control_pb2.Push(nonce=nonce, instances=[instance_set], epoch="e1")


def test_what_comes_after_its_last_watch_closed_is_there_for_the_next():
    """Control was not told of the end, takes it for known here, and would not send it again."""
    watched, heard = interests(), []
    watch = watched.watch_policy("payment", lambda _: None)
    assert list(watched.say().interest.policies) == ["payment"]
    watch.close()
    assert not watched.take(push("1", "2s")).refused
    watched.watch_policy("payment", heard.append)
    assert [policy.timeout for policy in heard] == [2.0]
    assert list(watched.say().interest.policies) == ["payment"]


def test_what_control_was_told_to_be_over_is_forgotten():
    """A later watch waits for what control sends of it anew."""
    watched, heard = interests(), []
    watch = watched.watch_policy("payment", lambda _: None)
    watched.say()
    watched.take(push("1", "2s"))
    watch.close()
    assert list(watched.say().interest.policies) == []
    assert len(watched) == 0
    watched.watch_policy("payment", heard.append)
    assert heard == []


def test_only_the_first_word_on_a_stream_says_what_is_held():
    """And only of the control service that counted it."""
    watched = interests()
    watched.watch_instances("payment", lambda _: None)
    watched.say()
    watched.take(sets("1", 7))
    assert dict(watched.say().interest.held) == {}
    watched.stream_ended()
    first = watched.say().interest
    assert (first.epoch, dict(first.held)) == ("e1", {"payment": 7})
    assert watched.say().interest.epoch == ""
    watched.take(push("2", "2s", epoch="e2"))
    watched.stream_ended()
    assert dict(watched.say().interest.held) == {}


def test_each_first_and_each_last_watch_of_a_name_is_a_change():
    """Those in between are none."""
    changes: list[None] = []
    watched = interests(changes)
    watches = [watched.watch_policy("payment", lambda _: None) for _ in range(3)]
    assert len(changes) == 1
    for watch in watches:
        watch.close()
    assert len(changes) == 2


def test_a_push_that_asks_for_no_answer_gets_none():
    """One that has only questions."""
    assert interests().take(control_pb2.Push(revision=1)) is None

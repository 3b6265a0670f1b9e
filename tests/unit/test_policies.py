"""What a process knows of policies: documents in, effective policies out to whoever follows."""

import json
import logging

import pytest

from meshrpc.errors import PolicyError, Problem
from meshrpc.last_known import Remembered
from meshrpc.policies import Policies
from meshrpc.policy.model import Policy


class Subscription:
    """Control's end: documents are pushed by hand."""

    def __init__(self):
        self.listeners = {}
        self.opened = []

    def watch_policy(self, name, listener):
        assert name not in self.listeners
        self.opened.append(name)
        self.listeners[name] = listener
        return _Watch(self, name)

    def push(self, name, **blocks):
        self.listeners[name](Policy(service=name, **blocks) if blocks else None)


class _Watch:
    def __init__(self, subscription, name):
        self.subscription, self.name = subscription, name

    def close(self):
        del self.subscription.listeners[self.name]


@pytest.fixture
def control():
    return Subscription()


@pytest.fixture
def policies(control):
    return Policies(control)


def follow(policies, service):
    timeouts = []
    return timeouts, policies.follow(service, lambda policy: timeouts.append(policy.timeout))


def refuse_slow(policies, service):
    """Follow a service and refuse timeouts above a minute."""
    timeouts = []

    def on_policy(policy):
        if policy.timeout is not None and policy.timeout > 60:
            raise PolicyError((Problem("timeout", str(policy.timeout), "too long"),))
        timeouts.append(policy.timeout)

    policies.follow(service, on_policy)
    return timeouts


def test_a_follower_hears_defaults_documents_and_their_removal(policies, control):
    """The service's document over the mesh's over the defaults, each change once."""
    timeouts, _ = follow(policies, "payment")
    control.push("*", timeout=5.0)
    control.push("payment", timeout=1.0)
    control.push("payment")
    control.push("*")
    assert timeouts == [None, 5.0, 1.0, 5.0, None]


def test_only_those_whom_a_document_concerns_are_told(policies, control):
    """A document of one service is no news to another; the mesh's is news to all."""
    payment, _ = follow(policies, "payment")
    order, _ = follow(policies, "order")
    control.push("order", timeout=1.0)
    control.push("*", timeout=2.0)
    assert payment == [None, 2.0]
    assert order == [None, 1.0, 1.0]


def test_a_document_that_one_follower_refuses_holds_for_nobody(policies, control):
    """Whoever was told before goes back, and what was known stays known."""
    told, _ = follow(policies, "payment")
    refusing = refuse_slow(policies, "payment")
    control.push("payment", timeout=2.0)
    with pytest.raises(PolicyError, match="too long"):
        control.push("payment", timeout=100.0)
    assert told == [None, 2.0, 100.0, 2.0]
    assert refusing == [None, 2.0, 2.0]
    assert policies.effective("payment").timeout == 2.0


def test_a_follower_that_refuses_what_is_known_follows_nothing(policies, control):
    """It is not called again by later documents."""
    follow(policies, "payment")
    control.push("payment", timeout=100.0)
    with pytest.raises(PolicyError):
        refuse_slow(policies, "payment")
    control.push("payment", timeout=101.0)
    assert policies.effective("payment").timeout == 101.0


def test_a_service_is_watched_as_long_as_somebody_follows_it(policies, control):
    """One watch for all its followers; the last one closes it and forgets the document."""
    _, first = follow(policies, "payment")
    _, second = follow(policies, "payment")
    control.push("payment", timeout=1.0)
    first.close()
    first.close()
    assert "payment" in control.listeners
    second.close()
    assert "payment" not in control.listeners
    assert policies.effective("payment").timeout is None
    follow(policies, "payment")
    assert control.opened == ["*", "payment", "payment"]


def test_the_meshs_own_policy_can_be_followed_and_let_go(policies, control):
    """It stays watched: everybody's policy has it in it."""
    timeouts, following = follow(policies, "*")
    control.push("*", timeout=3.0)
    following.close()
    follow(policies, "*")
    assert timeouts[-1] == 3.0
    assert control.opened == ["*"]


def test_a_follower_closed_by_another_is_not_told(policies, control):
    """Also in the same round."""
    second = []
    watches = []
    policies.follow("payment", lambda policy: [watch.close() for watch in watches])
    watches.append(policies.follow("payment", lambda policy: second.append(policy.timeout)))
    control.push("payment", timeout=1.0)
    assert second == [None]


def test_without_control_there_are_the_defaults():
    """Nothing is watched, and following works."""
    timeouts, following = follow(Policies(None), "payment")
    following.close()
    assert timeouts == [None]


class Kept:
    """What is on disk: documents by service."""

    def __init__(self, **documents):
        self.documents = documents
        self.asked = []

    def policy(self, service):
        self.asked.append(service)
        text = self.documents.get("mesh" if service == "*" else service)
        return None if text is None else Remembered(text, 240.0)


def document(service, **blocks):
    return json.dumps({"schema": "meshrpc.policy/v1", "service": service, **blocks})


def test_what_was_last_known_holds_until_control_speaks(control, caplog):
    """From the first moment on, the mesh's own too, and each until its own is replaced."""
    caplog.set_level(logging.INFO)
    kept = Kept(mesh=document("*", timeout="5s"), payment=document("payment", timeout="1s"))
    policies = Policies(control, kept)
    assert policies.effective("payment").timeout == 1.0
    timeouts, _ = follow(policies, "payment")
    assert timeouts == [1.0]
    control.push("payment")
    control.push("*", timeout=2.0)
    control.push("*")
    assert timeouts == [1.0, 5.0, 2.0, None]
    assert kept.asked == ["*", "payment"]
    assert [record.getMessage() for record in caplog.records] == [
        "the policy of the mesh is that of 4 min ago until control says otherwise",
        "the policy of payment is that of 4 min ago until control says otherwise",
    ]


def test_what_control_said_is_not_replaced_by_what_was_known_before(control):
    """However late somebody follows."""
    policies = Policies(control, Kept(payment=document("payment", timeout="1s")))
    follow(policies, "payment")
    control.push("payment", timeout=3.0)
    assert follow(policies, "payment")[0] == [3.0]


def test_whoever_comes_back_to_a_service_asks_again_what_was_known(control):
    """What it knew itself it let go with the last follower, and by then it may be another."""
    kept = Kept(payment=document("payment", timeout="1s"))
    policies = Policies(control, kept)
    follow(policies, "payment")[1].close()
    kept.documents["payment"] = document("payment", timeout="2s")
    assert follow(policies, "payment")[0] == [2.0]


@pytest.mark.parametrize("text", ["{", document("payment", timeout="soon"), ""])
def test_a_remembered_document_that_cannot_be_used_is_passed_over(control, caplog, text):
    """With one warning; unknown fields of a newer release alone are no reason."""
    policies = Policies(control, Kept(payment=text))
    assert follow(policies, "payment")[0] == [None]
    assert policies.effective("payment").timeout is None
    (record,) = caplog.records
    assert "the policy of payment as last known is passed over: it: " in record.getMessage()
    newer = Policies(control, Kept(order=document("order", timeout="1s", newer={"a": 1})))
    assert newer.effective("order").timeout == 1.0

"""What a process knows of policies: documents in, effective policies out to whoever follows."""

import pytest

from meshrpc.errors import PolicyError, Problem
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

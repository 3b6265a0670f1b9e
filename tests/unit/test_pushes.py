"""Push order under virtual time: who is sent what, when, and what is known of it afterwards."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.control.pushes import ANSWER_WITHIN, GATHER_AT_MOST, QUIET, Pushes, State
from meshrpc.control.subscriber import Kind, Process, Push, Resource, Subscriber

POLICY = Resource(Kind.POLICY, "default", "payment")
INSTANCES = Resource(Kind.INSTANCES, "default", "payment")


def joined(pushes: Pushes, *resources: Resource, instance: str = "o1", now: float = 0.0):
    """A subscriber that wants `resources` at version 0 and has answered its first push."""
    process = Process(namespace="default", service="order", instance=instance)
    subscriber = pushes.join(process, now)
    pushes.want(subscriber, dict.fromkeys(resources, 0))
    push = pushes.next_push(subscriber, 0, now)
    if push is not None:
        pushes.answered(subscriber, push.nonce, now)
    return subscriber


def state_of(pushes: Pushes, revision: int, now: float = 0.0):
    (row,) = pushes.status("default", revision, now)
    return row


def test_a_new_subscriber_is_sent_all_it_wants_also_what_does_not_exist():
    """The first push answers every wanted resource, version 0 included."""
    pushes = Pushes()
    subscriber = pushes.join(Process("default", "order", "o1"), 0.0)
    assert pushes.next_push(subscriber, 5, 0.0) is None
    pushes.want(subscriber, {POLICY: 4, INSTANCES: 0})
    push = pushes.next_push(subscriber, 5, 0.0)
    assert push is not None
    assert push.resources == {POLICY: 4, INSTANCES: 0}
    assert push.revision == 5


def test_a_change_after_quiet_goes_out_at_once():
    """The first change names its watchers in the same call, without waiting."""
    pushes = Pushes()
    watcher = joined(pushes, POLICY)
    joined(pushes, INSTANCES, instance="o2")
    assert list(pushes.changed(POLICY, 1, 10.0)) == [watcher]
    push = pushes.next_push(watcher, 1, 10.0)
    assert push is not None
    assert push.resources == {POLICY: 1}


def test_what_follows_within_the_quiet_time_is_gathered_and_the_latest_wins():
    """Ten changes in quick succession are two pushes: the first, and the last."""
    pushes = Pushes()
    watcher = joined(pushes, POLICY)
    sent = []
    for step in range(10):
        now = 10.0 + step * QUIET / 2
        pushes.changed(POLICY, step + 1, now)
        if push := pushes.next_push(watcher, step + 1, now):
            sent.append(push.resources[POLICY])
            pushes.answered(watcher, push.nonce, now)
    due = pushes.next_due()
    assert due == 10.0 + 9 * QUIET / 2 + QUIET
    assert list(pushes.tick(due)) == [watcher]
    push = pushes.next_push(watcher, 10, due)
    assert push is not None
    assert [*sent, push.resources[POLICY]] == [1, 10]


def test_a_change_waits_a_second_at_most():
    """A resource that never comes to rest is pushed each second all the same."""
    pushes = Pushes()
    joined(pushes, POLICY)
    pushes.changed(POLICY, 1, 0.0)
    now, version = 0.0, 1
    published = []
    while now < 5.0:
        now += QUIET / 2
        version += 1
        pushes.changed(POLICY, version, now)
        if pushes.tick(now):
            published.append(now)
    gaps = [later - earlier for earlier, later in zip([0.0, *published], published, strict=False)]
    assert len(published) >= 4
    assert max(gaps) <= GATHER_AT_MOST + QUIET


def test_a_gathering_resource_does_not_hold_up_another():
    """While the policy gathers, a first change of the instances goes out at once."""
    pushes = Pushes()
    watcher = joined(pushes, POLICY, INSTANCES)
    pushes.changed(POLICY, 1, 0.0)
    push = pushes.next_push(watcher, 1, 0.0)
    assert push is not None
    pushes.answered(watcher, push.nonce, 0.0)
    pushes.changed(POLICY, 2, 0.01)
    assert pushes.next_push(watcher, 2, 0.01) is None
    assert list(pushes.changed(INSTANCES, 1, 0.02)) == [watcher]
    push = pushes.next_push(watcher, 2, 0.02)
    assert push is not None
    assert push.resources == {POLICY: 2, INSTANCES: 1}


def test_nothing_is_sent_while_a_push_is_unanswered():
    """Changes during a push in flight are one more push after its answer."""
    pushes = Pushes()
    watcher = joined(pushes, POLICY)
    pushes.changed(POLICY, 1, 0.0)
    first = pushes.next_push(watcher, 1, 0.0)
    assert first is not None
    for version in (2, 3, 4):
        pushes.changed(POLICY, version, float(version))
        assert pushes.next_push(watcher, version, float(version)) is None
    pushes.answered(watcher, first.nonce, 5.0)
    second = pushes.next_push(watcher, 4, 5.0)
    assert second is not None
    assert second.resources == {POLICY: 4}


def test_an_answer_to_another_push_is_nothing():
    """A wrong nonce neither acknowledges nor frees the way for the next push."""
    pushes = Pushes()
    watcher = joined(pushes, INSTANCES)
    pushes.changed(INSTANCES, 1, 0.0)
    assert pushes.next_push(watcher, 0, 0.0) is not None
    assert not pushes.answered(watcher, "no such nonce", 0.0)
    assert not pushes.acknowledged("default", "payment", 1)
    assert pushes.next_push(watcher, 0, 0.0) is None


def test_a_refusal_is_remembered_and_does_not_touch_the_resource_beside_it():
    """Of one push the instances are taken and the policy is refused, with its reason."""
    pushes = Pushes()
    watcher = joined(pushes, POLICY, INSTANCES)
    pushes.changed(INSTANCES, 1, 0.0)
    pushes.changed(POLICY, 1, 0.0)
    push = pushes.next_push(watcher, 1, 0.0)
    assert push is not None
    refused = {(Kind.POLICY, "payment"): "timeout: 2x: not a duration"}
    pushes.answered(watcher, push.nonce, 0.0, refused=refused)
    assert pushes.acknowledged("default", "payment", 1)
    row = state_of(pushes, revision=1)
    assert row.state is State.REFUSED
    assert row.reason == "policy of payment: timeout: 2x: not a duration"
    assert row.revision == 0
    assert pushes.next_push(watcher, 1, 99.0) is None  # the same again would be refused again

    pushes.changed(POLICY, 2, 100.0)
    push = pushes.next_push(watcher, 2, 100.0)
    assert push is not None
    pushes.answered(watcher, push.nonce, 100.0)
    row = state_of(pushes, revision=2)
    assert (row.state, row.revision, row.reason) == (State.SYNCED, 2, "")


def accepting(pushes: Pushes, version: int, *, accepts: bool = True) -> Subscriber:
    """A subscriber that has taken `version` of the instances."""
    process = Process("default", "order", "o1", accepts_differences=accepts)
    subscriber = pushes.join(process, 0.0)
    pushes.want(subscriber, {INSTANCES: version, POLICY: version})
    push = pushes.next_push(subscriber, 0, 0.0)
    assert push is not None
    assert push.bases == {}
    pushes.answered(subscriber, push.nonce, 0.0)
    return subscriber


def test_a_difference_starts_from_what_was_acknowledged():
    """Of the instances, and only for one that takes differences; a policy is always whole."""
    for accepts, bases in ((True, {INSTANCES: 3}), (False, {})):
        pushes = Pushes()
        watcher = accepting(pushes, 3, accepts=accepts)
        pushes.changed(INSTANCES, 7, 1.0)
        pushes.changed(POLICY, 7, 1.0)
        push = pushes.next_push(watcher, 0, 1.0)
        assert push is not None
        assert push.resources == {INSTANCES: 7, POLICY: 7}
        assert push.bases == bases


def test_a_difference_that_is_refused_is_followed_by_the_whole_set_at_once():
    """And that, refused, by nothing before the next change, which is sent whole, too."""
    pushes = Pushes()
    watcher = accepting(pushes, 3)
    refused = {(Kind.INSTANCES, "payment"): "it does not fit"}
    pushes.changed(INSTANCES, 4, 1.0)
    push = pushes.next_push(watcher, 0, 1.0)
    assert push is not None
    assert push.bases == {INSTANCES: 3}
    pushes.answered(watcher, push.nonce, 1.0, refused=refused)
    assert state_of(pushes, revision=0).state is State.REFUSED
    again = pushes.next_push(watcher, 0, 1.0)
    assert again is not None
    assert (again.resources, again.bases) == ({INSTANCES: 4}, {})
    pushes.answered(watcher, again.nonce, 1.0, refused=refused)
    assert pushes.next_push(watcher, 0, 99.0) is None
    pushes.changed(INSTANCES, 5, 100.0)
    later = pushes.next_push(watcher, 0, 100.0)
    assert later is not None
    assert (later.resources, later.bases) == ({INSTANCES: 5}, {})
    pushes.answered(watcher, later.nonce, 100.0)
    assert pushes.acknowledged("default", "payment", 5)
    pushes.changed(INSTANCES, 6, 200.0)
    last = pushes.next_push(watcher, 0, 200.0)
    assert last is not None
    assert last.bases == {INSTANCES: 5}


def test_what_is_held_from_before_is_the_base_and_counts_once_it_is_acknowledged():
    """Also when nothing is newer; a version that was never here is no base."""
    for held, bases in ((3, {INSTANCES: 3}), (7, {INSTANCES: 7}), (8, {})):
        pushes = Pushes()
        process = Process("default", "order", "o1", accepts_differences=True)
        subscriber = pushes.join(process, 0.0)
        pushes.want(subscriber, {INSTANCES: 7}, {INSTANCES: held})
        assert not pushes.acknowledged("default", "payment", 7)
        assert state_of(pushes, revision=0).state is State.PENDING
        push = pushes.next_push(subscriber, 0, 0.0)
        assert push is not None
        assert (push.resources, push.bases) == ({INSTANCES: 7}, bases)
        pushes.answered(subscriber, push.nonce, 0.0)
        assert pushes.acknowledged("default", "payment", 7)
        assert state_of(pushes, revision=0).state is State.SYNCED


def test_what_is_held_is_nothing_to_a_process_that_takes_no_differences():
    """It is sent the whole set."""
    pushes = Pushes()
    subscriber = pushes.join(Process("default", "order", "o1"), 0.0)
    pushes.want(subscriber, {INSTANCES: 7}, {INSTANCES: 7})
    push = pushes.next_push(subscriber, 0, 0.0)
    assert push is not None
    assert (push.resources, push.bases) == ({INSTANCES: 7}, {})


def test_a_process_is_found_by_its_instance_the_newest_stream_first():
    """The old one may only not be known to be dead."""
    pushes = Pushes()
    first = joined(pushes, instance="o1")
    other = joined(pushes, instance="o2")
    assert pushes.find("default", "o1") is first
    second = joined(pushes, instance="o1")
    assert pushes.find("default", "o1") is second
    pushes.leave(second)
    assert pushes.find("default", "o1") is first
    assert pushes.find("default", "o2") is other
    assert pushes.find("test", "o1") is None
    assert pushes.find("default", "o3") is None


def test_instances_that_are_wanted_anew_are_sent_whole():
    """Who dropped them has forgotten them."""
    pushes = Pushes()
    watcher = accepting(pushes, 3)
    pushes.want(watcher, {})
    assert not pushes.is_wanted(INSTANCES)
    pushes.want(watcher, {INSTANCES: 3})
    push = pushes.next_push(watcher, 0, 1.0)
    assert push is not None
    assert (push.resources, push.bases) == ({INSTANCES: 3}, {})


def test_a_process_that_has_all_it_wants_is_at_the_newest_revision():
    """A revision that does not concern a process does not leave it behind."""
    pushes = Pushes()
    joined(pushes, POLICY)
    pushes.changed(Resource(Kind.POLICY, "default", "other"), 7, 0.0)
    row = state_of(pushes, revision=7, now=3.0)
    assert (row.state, row.revision, row.age) == (State.SYNCED, 7, 3.0)


def test_a_process_that_has_not_said_what_it_wants_is_pending():
    """Only one that wants nothing has all it wants."""
    pushes = Pushes()
    subscriber = pushes.join(Process("default", "order", "o1"), 0.0)
    assert state_of(pushes, revision=7).state is State.PENDING
    pushes.want(subscriber, {})
    assert state_of(pushes, revision=7).state is State.SYNCED


def test_a_process_that_has_not_answered_is_pending_at_its_old_revision():
    """What it has not answered is named."""
    pushes = Pushes()
    watcher = joined(pushes, POLICY)
    pushes.changed(POLICY, 1, 0.0)
    pushes.next_push(watcher, 1, 0.0)
    row = state_of(pushes, revision=1, now=2.0)
    assert (row.state, row.revision) == (State.PENDING, 0)
    assert row.reason == "has not answered: policy of payment"


def test_ignored_fields_show_in_the_status():
    """Who runs a release that does not know a field is seen without asking it."""
    pushes = Pushes()
    watcher = joined(pushes, POLICY)
    pushes.changed(POLICY, 1, 0.0)
    push = pushes.next_push(watcher, 1, 0.0)
    assert push is not None
    pushes.answered(watcher, push.nonce, 0.0, ignored=["payment: hedge.delay"])
    row = state_of(pushes, revision=1)
    assert (row.state, row.reason) == (State.SYNCED, "ignores payment: hedge.delay")


def test_instances_are_acknowledged_once_all_watchers_took_them():
    """One laggard is enough for no; when it leaves, it counts no longer."""
    pushes = Pushes()
    quick = joined(pushes, INSTANCES, instance="o1")
    slow = joined(pushes, INSTANCES, instance="o2")
    pushes.changed(INSTANCES, 1, 0.0)
    for watcher in (quick, slow):
        push = pushes.next_push(watcher, 0, 0.0)
        assert push is not None
        if watcher is quick:
            assert list(pushes.answered(watcher, push.nonce, 0.0)) == [INSTANCES]
    assert not pushes.acknowledged("default", "payment", 1)
    pushes.leave(slow)
    assert pushes.acknowledged("default", "payment", 1)


def test_refused_instances_are_not_acknowledged():
    """A process that kept the old set may still call who left it."""
    pushes = Pushes()
    watcher = joined(pushes, INSTANCES)
    pushes.changed(INSTANCES, 1, 0.0)
    push = pushes.next_push(watcher, 0, 0.0)
    assert push is not None
    pushes.answered(watcher, push.nonce, 0.0, refused={(Kind.INSTANCES, "payment"): "no"})
    assert not pushes.acknowledged("default", "payment", 1)


def test_what_nobody_watches_is_acknowledged():
    """Nobody has to let go of an instance that nobody calls."""
    assert Pushes().acknowledged("default", "payment", 3)


def test_a_subscriber_that_does_not_answer_is_overdue_once():
    """Exactly at the limit it is named, and not a second time."""
    pushes = Pushes()
    watcher = joined(pushes, POLICY)
    pushes.changed(POLICY, 1, 100.0)
    pushes.next_push(watcher, 1, 100.0)
    assert pushes.next_due() == 100.0 + ANSWER_WITHIN
    assert pushes.overdue(100.0 + ANSWER_WITHIN - 0.001) == ()
    assert pushes.overdue(100.0 + ANSWER_WITHIN) == (watcher,)
    assert pushes.overdue(100.0 + ANSWER_WITHIN) == ()


def test_a_resource_wanted_again_is_sent_again():
    """Dropping and wanting it while its push is in flight does not take that push for new."""
    pushes = Pushes()
    watcher = joined(pushes)
    pushes.want(watcher, {INSTANCES: 1})
    first = pushes.next_push(watcher, 0, 0.0)
    assert first is not None
    pushes.want(watcher, {})
    pushes.want(watcher, {INSTANCES: 1})
    pushes.answered(watcher, first.nonce, 0.0)
    assert not pushes.acknowledged("default", "payment", 1)
    second = pushes.next_push(watcher, 0, 0.0)
    assert second is not None
    assert second.resources == {INSTANCES: 1}


def test_resources_that_nobody_wants_any_more_are_forgotten():
    """A long life with many clients leaves nothing behind."""
    pushes = Pushes()
    for number in range(100):
        resource = Resource(Kind.INSTANCES, "default", f"service-{number}")
        watcher = joined(pushes, resource)
        pushes.changed(resource, 1, 0.0)
        pushes.changed(resource, 2, 0.0)
        pushes.leave(watcher)
    assert repr(pushes) == "<Pushes subscribers=0 resources=0 unanswered=0>"
    assert pushes.next_due() is None


RESOURCES = [Resource(kind, "default", name) for kind in Kind for name in ("a", "b")]

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.sampled_from(RESOURCES)),
        st.tuples(st.just("want"), st.integers(0, 2), st.sets(st.sampled_from(RESOURCES))),
        st.tuples(st.just("answer"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("leave"), st.integers(0, 2)),
        st.tuples(st.just("pass"), st.floats(0.0, 0.5)),
    ),
    max_size=60,
)


class _Fleet:
    """Three subscribers as the live service drives them: each is asked only when it is named."""

    def __init__(self) -> None:
        self.pushes = Pushes()
        self.now = 0.0
        self.heads = dict.fromkeys(RESOURCES, 0)
        self.subscribers: list[Subscriber] = []
        self.flying: dict[Subscriber, Push] = {}
        self.has: dict[Subscriber, dict[Resource, int]] = {}
        for number in range(3):
            self.subscribers.append(self.join(number))

    def join(self, number: int) -> Subscriber:
        subscriber = self.pushes.join(Process("default", "s", str(number)), self.now)
        self.has[subscriber] = {}
        return subscriber

    def send(self, subscribers) -> None:
        for subscriber in subscribers:
            push = self.pushes.next_push(subscriber, sum(self.heads.values()), self.now)
            if push is None:
                continue
            assert subscriber not in self.flying, "one push in flight at most"
            self.flying[subscriber] = push
            for resource, version in push.resources.items():
                assert version == self.heads[resource], "a push carries the newest"
                assert version >= self.has[subscriber].get(resource, 0), "never backwards"
                self.has[subscriber][resource] = version

    def answer(self, subscriber: Subscriber, *, refuse: bool) -> None:
        push = self.flying.pop(subscriber, None)
        if push is None:
            return
        refused = {(one.kind, one.name): "no" for one in push.resources} if refuse else {}
        self.pushes.answered(subscriber, push.nonce, self.now, refused=refused)
        self.send([subscriber])

    def act(self, action) -> None:
        match action:
            case "change", resource:
                self.heads[resource] += 1
                version = self.heads[resource]
                self.send(self.pushes.changed(resource, version, self.now))
            case "want", number, resources:
                subscriber = self.subscribers[number]
                for dropped in self.has[subscriber].keys() - resources:
                    del self.has[subscriber][dropped]
                self.pushes.want(subscriber, {one: self.heads[one] for one in resources})
                self.send([subscriber])
            case "answer", number, refuse:
                self.answer(self.subscribers[number], refuse=refuse)
            case "leave", number:
                self.flying.pop(self.subscribers[number], None)
                self.pushes.leave(self.subscribers[number])
                self.subscribers[number] = self.join(number)
            case "pass", seconds:
                self.now += seconds
                self.send(self.pushes.tick(self.now))

    def settle(self) -> None:
        """Let time pass and answers come, as long as anything is due."""
        for _ in range(100):
            for subscriber in self.subscribers:
                self.answer(subscriber, refuse=False)
            due = self.pushes.next_due()
            if due is None:
                return
            self.now = max(self.now, due)
            self.send(self.pushes.tick(self.now))
        raise AssertionError("it never comes to rest")


@settings(max_examples=200, deadline=None)
@given(ACTIONS)
def test_every_subscriber_ends_at_the_head(actions):
    """Whatever happened, once answers come each has the newest of all it wants, and only forwards;
    at no time is there more than one push in flight to one subscriber."""
    fleet = _Fleet()
    for action in actions:
        fleet.act(action)
    fleet.settle()
    for subscriber in fleet.subscribers:
        wanted = {resource: fleet.heads[resource] for resource in subscriber.wants}
        assert fleet.has[subscriber] == wanted

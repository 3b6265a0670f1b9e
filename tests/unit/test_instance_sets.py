"""Instance sets on their way: what control makes of the lease table, and a process of that."""

from __future__ import annotations

import random
import tracemalloc
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from meshrpc.control.instance_sets import KEPT, InstanceSets
from meshrpc.control.pushes import Pushes
from meshrpc.control.subscriber import Kind, Process, Resource
from meshrpc.registry.departures import OF_ONE_SERVICE
from meshrpc.registry.instance import Instance
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.registry import Snapshot
from meshrpc.v1 import control_pb2, registry_pb2
from meshrpc.watched import DoesNotFit, ResourceWatch, WatchedInstances

PAYMENT = ("default", "payment")


def instance(number: int, service: str = "payment", **fields) -> Instance:
    return Instance(
        id=f"p{number}", service=service, address=f"127.0.0.1:{5000 + number}", **fields
    )


def table_of(size: int) -> LeaseTable:
    table = LeaseTable()
    for number in range(size):
        table.register(instance(number), 0.0)
    return table


def expire(table: LeaseTable, id_: str) -> None:
    """Let one instance's lease run out, and no other's."""
    held = table.get(*PAYMENT, id_)
    table.register(held, 0.0, lease=0.5)
    assert table.expire(1.0) == (held,)


def watching(listener=lambda snapshot: None, service: str = "payment") -> WatchedInstances:
    watched = WatchedInstances(service)
    watched.listeners.append(ResourceWatch(watched, listener, lambda: None, lambda: None))
    return watched


def newest(sets: InstanceSets, *name_and_base) -> control_pb2.InstanceSet:
    """What is sent, as it is read."""
    return control_pb2.InstanceSet.FromString(sets.newest(*name_and_base))


def ids(instances) -> list[str]:
    return [one.id for one in instances]


# What control sends


def test_without_a_base_all_instances_are_sent():
    """Ordered by id, with the table's version; of a service that is not there, none."""
    sets = InstanceSets(table_of(3))
    made = newest(sets, *PAYMENT)
    assert (made.version, made.base, ids(made.instances)) == (3, 0, ["p0", "p1", "p2"])
    made = newest(sets, "default", "nobody")
    assert (made.version, made.base, ids(made.instances)) == (0, 0, [])


def test_what_changed_since_the_base_is_sent_each_id_once():
    """The newest record of what is new or changed, the ids of what is gone, and nothing else."""
    table = table_of(10)
    sets = InstanceSets(table)
    newest(sets, *PAYMENT)
    table.drain(*PAYMENT, "p3")
    newest(sets, *PAYMENT)
    table.register(instance(3, weight=7), 0.0)
    table.register(instance(10), 0.0)
    table.deregister(*PAYMENT, "p5")
    made = newest(sets, *PAYMENT, 10)
    assert (made.version, made.base) == (14, 10)
    assert {one.id: one.weight for one in made.instances} == {"p3": 7, "p10": 1}
    assert list(made.removed) == ["p5"]


def test_a_base_that_is_not_known_is_answered_with_the_whole_set():
    """From before the first subscriber came, or from before nobody was there any more."""
    table = table_of(10)
    sets = InstanceSets(table)
    assert newest(sets, *PAYMENT, 9).base == 0
    sets.release(*PAYMENT, 0.0)
    sets.forget(KEPT)
    table.drain(*PAYMENT, "p1")
    assert newest(sets, *PAYMENT, 10).base == 0
    table.drain(*PAYMENT, "p2")
    assert newest(sets, *PAYMENT, 11).base == 11


def test_what_the_journal_has_forgotten_is_in_no_difference():
    """It forgets the oldest change of all; who lacks that one is sent the whole set, also later,
    when a difference of what it remembers would be smaller again."""
    table = table_of(4)
    sets = InstanceSets(table)
    newest(sets, *PAYMENT)
    table.drain(*PAYMENT, "p0")
    newest(sets, *PAYMENT)
    expire(table, "p3")
    table.drain(*PAYMENT, "p1")
    table.drain(*PAYMENT, "p2")
    assert newest(sets, *PAYMENT, 4).base == 0
    table.register(instance(3), 0.0)
    assert newest(sets, *PAYMENT, 4).base == 0
    made = newest(sets, *PAYMENT, 5)
    assert (made.base, sorted(ids(made.instances))) == (5, ["p1", "p2", "p3"])


def test_who_departed_is_named_and_who_vanished_is_not():
    """In a whole set all who left by their own word, in a difference those of them since its base;
    also one that came and left in between, of whom nobody has heard."""
    table = table_of(6)
    sets = InstanceSets(table)
    newest(sets, *PAYMENT)
    table.deregister(*PAYMENT, "p1")
    newest(sets, *PAYMENT)
    table.deregister(*PAYMENT, "p3")
    expire(table, "p2")
    table.register(instance(9), 0.0)
    table.deregister(*PAYMENT, "p9")
    made = newest(sets, *PAYMENT, 7)
    assert (made.base, sorted(made.removed), sorted(made.departed)) == (
        7,
        ["p2", "p3", "p9"],
        ["p3", "p9"],
    )
    assert list(newest(sets, *PAYMENT).departed) == ["p1", "p3", "p9"]
    table.register(instance(3), 0.0)
    assert list(newest(sets, *PAYMENT).departed) == ["p1", "p9"]


def test_the_end_of_the_recovery_window_is_a_difference_of_nothing():
    """No record changed, and yet there is something to tell."""
    table = LeaseTable(recovers_until=20.0)
    for number in range(3):
        table.register(instance(number), 0.0)
    sets = InstanceSets(table)
    first = newest(sets, *PAYMENT)
    assert first.recovering
    assert table.recover(20.0)
    second = newest(sets, *PAYMENT, first.version)
    assert (second.base, len(second.instances), second.recovering) == (first.version, 0, False)
    told = []
    watched = watching(told.append)
    watched.take(first)
    watched.take(second)
    assert [snapshot.is_recovering for snapshot in told] == [True, False]
    assert told[0].instances == told[1].instances != ()


def test_what_changed_is_remembered_for_a_while_after_the_last_watcher():
    """One that comes back from a broken connection is sent the difference; after a minute all."""
    table = table_of(10)
    sets = InstanceSets(table)
    newest(sets, *PAYMENT)
    sets.release(*PAYMENT, 100.0)
    table.drain(*PAYMENT, "p1")
    assert sets.next_due() == 100.0 + KEPT
    sets.forget(100.0 + KEPT - 1.0)
    made = newest(sets, *PAYMENT, 10)
    assert (made.base, ids(made.instances)) == (10, ["p1"])
    assert sets.next_due() is None
    sets.release(*PAYMENT, 200.0)
    table.drain(*PAYMENT, "p2")
    sets.forget(200.0 + KEPT)
    assert repr(sets) == "<InstanceSets services=0 unwatched=0>"
    assert newest(sets, *PAYMENT, 11).base == 0


def test_a_difference_that_is_no_smaller_is_not_sent():
    """When every instance changed, all are sent, and no other base makes a second copy of them."""
    table = table_of(4)
    sets = InstanceSets(table)
    newest(sets, *PAYMENT)
    for number in range(4):
        table.drain(*PAYMENT, f"p{number}")
        assert newest(sets, *PAYMENT, 4).base == (4 if number < 3 else 0)
    assert sets.newest(*PAYMENT, 4) is sets.newest(*PAYMENT)


def test_one_set_is_made_for_all_who_need_the_same():
    """Two hundred subscribers that have the same version share one message."""
    table = table_of(10)
    sets = InstanceSets(table)
    assert sets.newest(*PAYMENT) is sets.newest(*PAYMENT)
    table.drain(*PAYMENT, "p1")
    assert sets.newest(*PAYMENT, 10) is sets.newest(*PAYMENT, 10)


def test_a_service_that_changes_all_day_costs_no_more_at_the_end():
    """Memory at both ends is flat, whatever was changed, added and removed."""
    rng = random.Random(1)
    table = table_of(50)
    sets = InstanceSets(table)
    watched = watching()
    now = 0.0

    def change(times: int) -> None:
        nonlocal now
        for _ in range(times):
            now += 0.1
            table.renew_all(now)
            table.next_expiry()  # lets go of the leases that are gone
            number = rng.randrange(100)
            if not table.deregister(*PAYMENT, f"p{number}"):
                table.register(instance(number, weight=rng.randrange(1, 100)), now)
            watched.take(newest(sets, *PAYMENT, watched.version))

    change(500)
    tracemalloc.start()
    try:
        change(500)  # every record is a traced one now
        before, _ = tracemalloc.get_traced_memory()
        change(2000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert watched.value == table.snapshot(*PAYMENT)
    assert after < before + 50_000  # 25 bytes for each change


# What a process makes of it


def test_the_records_that_stay_are_the_same_objects():
    """After a difference, after the whole set again, and after a record that comes back equal."""
    table = table_of(10)
    sets = InstanceSets(table)
    watched = watching()
    watched.take(newest(sets, *PAYMENT))
    first = watched.value.instances
    table.drain(*PAYMENT, "p3")
    watched.take(newest(sets, *PAYMENT, 10))
    assert [new is old for new, old in zip(watched.value.instances, first, strict=True)].count(
        False
    ) == 1
    second = watched.value.instances
    table.register(instance(10), 0.0)
    watched.take(newest(sets, *PAYMENT))
    assert {id(one) for one in second} <= {id(one) for one in watched.value.instances}
    third = watched.value.instances
    table.register(instance(3), 0.0)
    table.drain(*PAYMENT, "p3")
    table.drain(*PAYMENT, "p4")
    watched.take(newest(sets, *PAYMENT, 12))
    changed = [
        new.id for new, old in zip(watched.value.instances, third, strict=True) if new is not old
    ]
    assert changed == ["p4"]


def test_a_difference_from_another_set_is_refused_and_changes_nothing():
    """Nothing is told, and the next that fits is taken."""
    told = []
    watched = watching(told.append)
    with pytest.raises(DoesNotFit, match="from version 3 does not fit version 0"):
        watched.take(control_pb2.InstanceSet(service="payment", version=4, base=3))
    assert not watched.is_known
    wire = [instance(number).to_wire() for number in range(3)]
    watched.take(control_pb2.InstanceSet(version=4, instances=wire))
    with pytest.raises(DoesNotFit, match="from version 3 does not fit version 4"):
        watched.take(control_pb2.InstanceSet(version=5, base=3, removed=["p0"]))
    watched.take(control_pb2.InstanceSet(version=6, base=4, removed=["p1", "nobody"]))
    assert [ids(snapshot.instances) for snapshot in told] == [["p0", "p1", "p2"], ["p0", "p2"]]


def test_a_set_that_a_watch_refuses_is_not_the_base_of_the_next():
    """The version stays with the instances that were kept."""

    def refuse(snapshot) -> None:
        if len(snapshot.instances) == 2:
            raise ValueError("not two")

    watched = watching(refuse)
    wire = [instance(number).to_wire() for number in range(3)]
    watched.take(control_pb2.InstanceSet(version=1, instances=wire))
    with pytest.raises(ValueError, match="not two"):
        watched.take(control_pb2.InstanceSet(version=2, base=1, removed=["p0"]))
    watched.take(control_pb2.InstanceSet(version=3, base=1, removed=["p0", "p1"]))
    assert ids(watched.value.instances) == ["p2"]


def test_records_that_cannot_be_used_are_left_out_one_by_one():
    """Each with its reason, in whole sets and in differences, until it is good or gone; the others
    are taken."""
    good = [instance(number).to_wire() for number in range(3)]
    bad = [
        registry_pb2.Instance(address="127.0.0.1:1"),
        registry_pb2.Instance(address="127.0.0.1:2"),
        registry_pb2.Instance(id="p7", address="nowhere"),
        registry_pb2.Instance(id="p8", address="127.0.0.1:0"),
    ]
    told = []
    watched = watching(told.append)
    mixed = [good[2], *bad[:2], good[0], *bad[2:], good[1], good[1]]
    watched.take(control_pb2.InstanceSet(version=1, instances=mixed))
    assert ids(told[-1].instances) == ["p0", "p1", "p2"]
    assert told[-1].skipped == (
        "a record for '127.0.0.1:1' has no id",
        "a record for '127.0.0.1:2' has no id",
        "instance 'p7': address 'nowhere': an address is host:port, such as 127.0.0.1:5001",
        "instance 'p8': address '127.0.0.1:0': the port is 1 to 65535",
    )
    spoilt = registry_pb2.Instance(id="p0", address="x")
    mended = instance(7).to_wire()
    watched.take(
        control_pb2.InstanceSet(version=2, base=1, instances=[spoilt, mended], removed=["p8"])
    )
    assert ids(told[-1].instances) == ["p1", "p2", "p7"]
    assert [line.partition(":")[0] for line in told[-1].skipped[2:]] == ["instance 'p0'"]
    watched.take(control_pb2.InstanceSet(version=3, instances=good))
    assert (ids(told[-1].instances), told[-1].skipped) == (["p0", "p1", "p2"], ())


def test_a_departure_of_one_that_is_missing_already_is_told():
    """Whoever still doubts that it is gone hears that it is; nothing else is told twice."""
    told = []
    watched = watching(told.append)
    wire = [instance(number).to_wire() for number in range(3)]
    watched.take(control_pb2.InstanceSet(version=1, instances=wire))
    watched.take(control_pb2.InstanceSet(version=2, base=1, removed=["p1"]))
    assert told[-1].departed == frozenset()
    watched.take(control_pb2.InstanceSet(version=3, base=2, removed=["p1"], departed=["p1"]))
    assert (len(told), told[-1].departed) == (3, {"p1"})
    watched.take(control_pb2.InstanceSet(version=4, base=3))
    watched.take(control_pb2.InstanceSet(version=5, instances=[wire[0], wire[2]]))
    assert len(told) == 3
    watched.take(control_pb2.InstanceSet(version=6, base=5, instances=[wire[1]]))
    assert (len(told), told[-1].departed) == (4, frozenset())


def test_those_that_departed_are_remembered_within_bounds():
    """A service whose instances come and go for months costs no more at the end."""
    watched = watching()
    for number in range(3 * OF_ONE_SERVICE):
        gone = [f"p{number}"]
        base = watched.version
        watched.take(control_pb2.InstanceSet(version=number + 1, base=base, departed=gone))
    assert len(watched.value.departed) == OF_ONE_SERVICE
    assert gone[0] in watched.value.departed


# Both together

SERVICES = ("a", "b")
IDS = st.integers(0, 5)


@dataclass(frozen=True)
class _Interest:
    services: frozenset[str]
    epoch: int = 0
    held: Mapping[str, int] = field(default_factory=dict)


_Said = _Interest | control_pb2.Acknowledgement


class _Process:
    """A process as `Subscription` is, with a line to control that delivers when it is told to."""

    def __init__(self, number: int, table_at: dict[tuple[str, int], Snapshot]) -> None:
        self.number = number
        self.watched: dict[str, WatchedInstances] = {}
        self.table_at = table_at
        self.refuses = False
        self.wholes = 0
        self.epoch = 0
        self.connect()

    def connect(self) -> None:
        """Anew: what travelled is lost, what was taken stays."""
        self.up: deque[_Said] = deque()
        self.down: deque[bytes] = deque()
        held = {name: one.version for name, one in self.watched.items() if one.version}
        self.up.append(_Interest(frozenset(self.watched), self.epoch, held))

    def listen(self, snapshot: Snapshot) -> None:
        if self.refuses:
            raise ValueError("no")

    def want(self, services: frozenset[str]) -> None:
        for service in self.watched.keys() - services:
            del self.watched[service]
        for service in services - self.watched.keys():
            self.watched[service] = watching(self.listen, service)
        self.up.append(_Interest(services))

    def take(self) -> None:
        push = control_pb2.Push.FromString(self.down.popleft())
        answer = control_pb2.Acknowledgement(nonce=push.nonce)
        if int(push.epoch) != self.epoch:
            self.epoch = int(push.epoch)
            for watched in self.watched.values():
                watched.version = 0
        for wire in push.instances:
            watched = self.watched.get(wire.service)
            if watched is None:
                continue
            assert wire.version >= watched.version, "never backwards with one control service"
            known = {one.id: one for one in watched.value.instances} if watched.is_known else {}
            self.wholes += not wire.base
            try:
                watched.take(wire)
            except ValueError as error:
                kind = control_pb2.Refusal.KIND_INSTANCES
                answer.refused.add(kind=kind, name=wire.service, reason=str(error))
                continue
            assert watched.value == self.table_at[wire.service, wire.version]
            for one in watched.value.instances:
                assert one != (old := known.get(one.id, one)) or one is old
        self.up.append(answer)


class Travelling(RuleBasedStateMachine):
    """Three processes, the third of a release that knows no differences, and one control service
    that may be started anew. Messages travel in order, and as late as it pleases."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table_at: dict[tuple[str, int], Snapshot] = {}
        self.epoch = 0
        self.processes = [_Process(number, self.table_at) for number in range(3)]
        self.table = LeaseTable()
        for service in SERVICES:
            for number in range(5):
                self.table.register(instance(number, service), self.now)
        for process in self.processes:
            process.want(frozenset(SERVICES))
        self.start()

    def start(self) -> None:
        """A control service that has what the table has."""
        self.epoch += 1
        self.pushes = Pushes()
        self.sets = InstanceSets(self.table)
        self.table_at.clear()
        for service in SERVICES:
            self.note(service)
        self.subscribers = {one: self.join(one) for one in self.processes}

    def join(self, process: _Process):
        said = Process("default", "s", str(process.number), accepts_differences=process.number < 2)
        return self.pushes.join(said, self.now)

    def note(self, service: str) -> int:
        version = self.table.version("default", service)
        self.table_at[service, version] = self.table.snapshot("default", service)
        return version

    def changed(self, service: str) -> None:
        resource = Resource(Kind.INSTANCES, "default", service)
        self.send(self.pushes.changed(resource, self.note(service), self.now))

    def send(self, subscribers) -> None:
        for process, subscriber in self.subscribers.items():
            push = None
            if subscriber in subscribers:
                push = self.pushes.next_push(subscriber, 0, self.now)
            if push is None:
                continue
            message = control_pb2.Push(nonce=push.nonce, epoch=str(self.epoch))
            for resource in push.resources:
                base = push.bases.get(resource, 0)
                message.instances.append(newest(self.sets, "default", resource.name, base))
            assert process.number < 2 or not any(one.base for one in message.instances)
            process.down.append(message.SerializeToString())

    def dropped(self, resources) -> None:
        for resource in resources:
            if not self.pushes.is_wanted(resource):
                self.sets.release("default", resource.name, self.now)

    def hear(self, process: _Process) -> None:
        subscriber = self.subscribers[process]
        match process.up.popleft():
            case _Interest() as said:
                resources = {
                    Resource(Kind.INSTANCES, "default", one): self.table.version("default", one)
                    for one in said.services
                }
                held = {}
                if said.epoch == self.epoch:
                    held = {
                        Resource(Kind.INSTANCES, "default", one): version
                        for one, version in said.held.items()
                    }
                dropped = subscriber.wants.keys() - resources.keys()
                self.pushes.want(subscriber, resources, held)
                self.dropped(dropped)
            case answer:
                refused = {(Kind.INSTANCES, one.name): one.reason for one in answer.refused}
                self.pushes.answered(subscriber, answer.nonce, self.now, refused=refused)
        self.send([subscriber])

    @rule(service=st.sampled_from(SERVICES), number=IDS, weight=st.integers(1, 2))
    def register(self, service: str, number: int, weight: int) -> None:
        record = instance(number, service, weight=weight)
        if self.table.register(record, self.now):
            self.changed(service)

    @rule(service=st.sampled_from(SERVICES), number=IDS)
    def drain(self, service: str, number: int) -> None:
        if self.table.drain("default", service, f"p{number}"):
            self.changed(service)

    @rule(service=st.sampled_from(SERVICES), number=IDS)
    def deregister(self, service: str, number: int) -> None:
        if self.table.deregister("default", service, f"p{number}"):
            self.changed(service)

    @rule(seconds=st.sampled_from([0.05, 0.2, 0.2, 10.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        if self.table.recover(self.now):
            for service in SERVICES:
                self.changed(service)
        for service in {one.service for one in self.table.expire(self.now)}:
            self.changed(service)
        self.send(self.pushes.tick(self.now))
        self.sets.forget(self.now)

    @rule(number=st.integers(0, 2), services=st.frozensets(st.sampled_from(SERVICES)))
    def want(self, number: int, services: frozenset[str]) -> None:
        self.processes[number].want(services)

    @rule(number=st.integers(0, 2), messages=st.integers(1, 3))
    def messages_arrive_at_control(self, number: int, messages: int) -> None:
        process = self.processes[number]
        for _ in range(min(messages, len(process.up))):
            self.hear(process)

    @rule(number=st.integers(0, 2), refuses=st.sampled_from([False, False, True]))
    def a_push_arrives(self, number: int, refuses: bool) -> None:
        process = self.processes[number]
        process.refuses = refuses
        if process.down:
            process.take()

    @rule(number=st.integers(0, 2), refuses=st.sampled_from([False, False, True]))
    def everything_arrives(self, number: int, refuses: bool) -> None:
        self.processes[number].refuses = refuses
        self.exchange(self.processes[number])

    def exchange(self, process: _Process) -> None:
        for _ in range(100):
            if process.down:
                process.take()
            elif process.up:
                self.hear(process)
            else:
                return
        raise AssertionError("they never have done with each other")

    @rule(number=st.integers(0, 2))
    def reconnect(self, number: int) -> None:
        process = self.processes[number]
        subscriber = self.subscribers[process]
        wanted = tuple(subscriber.wants)
        self.pushes.leave(subscriber)
        self.dropped(wanted)
        process.connect()
        self.subscribers[process] = self.join(process)

    @rule(recovers=st.booleans())
    def restart_control(self, *, recovers: bool) -> None:
        before = self.table.all()
        self.table = LeaseTable(self.now + 20.0) if recovers else LeaseTable()
        self.table.restore(before, self.now)
        for process in self.processes:
            process.connect()
        self.start()

    def settle(self) -> None:
        """Deliver everything, and let time pass as long as anything is due."""
        for _ in range(100):
            for process in self.processes:
                process.refuses = False
                self.exchange(process)
            due = self.pushes.next_due()
            if due is None:
                return
            self.now = max(self.now, due)
            self.send(self.pushes.tick(self.now))
        raise AssertionError("it never comes to rest")

    def teardown(self) -> None:
        """In the end every process has what the table has, once more after one more change, and
        that needs the whole set for nobody who took the last one, nor for one that comes back."""
        for service in SERVICES:
            for number in (8, 9):
                self.table.deregister("default", service, f"p{number}")
                self.table.register(instance(number, service), self.now)
            self.changed(service)
        self.settle()
        self.check()
        wholes = [process.wholes for process in self.processes]
        for service in SERVICES:
            self.table.drain("default", service, "p9")
            self.changed(service)
        self.settle()
        self.check()
        for number in range(3):
            self.reconnect(number)
        self.settle()
        self.check()
        assert [process.wholes for process in self.processes[:2]] == wholes[:2]
        for subscriber in self.subscribers.values():
            self.pushes.leave(subscriber)

    def check(self) -> None:
        for process in self.processes:
            for service, watched in process.watched.items():
                assert watched.is_known
                assert watched.value == self.table.snapshot("default", service)
                version = self.table.version("default", service)
                assert self.pushes.acknowledged("default", service, version)


TestTravelling = Travelling.TestCase
TestTravelling.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

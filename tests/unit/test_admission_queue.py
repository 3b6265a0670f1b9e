"""Which waiting call is next, and which has waited for too long."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshrpc.limits.admission_queue import (
    BURST,
    HANDLERS_AHEAD,
    MOST_LEFT,
    SHORT,
    WAIT_AT_LEAST,
    WAIT_AT_MOST,
    AdmissionQueue,
    Waiting,
)
from meshrpc.wire import Criticality

CRITICAL, DEFAULT, SHEDDABLE = Criticality.CRITICAL, Criticality.DEFAULT, Criticality.SHEDDABLE


def put(queue, caller="a", criticality=DEFAULT, now=0.0, item=None, *, time=0.0):
    """Let a call wait that has so much time; without any it has no patience."""
    waiting = Waiting(item, caller, criticality, now, None if time is None else now + time)
    return waiting, queue.add(waiting, now)


def taken(queue):
    out = []
    while (waiting := queue.take()) is not None:
        out.append(waiting.item or waiting.caller)
    return out


def test_what_matters_most_is_served_first():
    """A class below is served only when nobody of the classes above waits."""
    queue = AdmissionQueue()
    for criticality in (SHEDDABLE, DEFAULT, CRITICAL, DEFAULT, CRITICAL):
        put(queue, criticality=criticality, item=criticality)
    assert taken(queue) == [CRITICAL, CRITICAL, DEFAULT, DEFAULT, SHEDDABLE]


def test_callers_take_turns_within_a_class():
    """Who asks for much waits behind those who ask for little, and each is served in order."""
    queue = AdmissionQueue()
    for item in ("a1", "a2", "a3", "a4", "b1", "c1", "c2"):
        put(queue, caller=item[0], item=item)
    assert taken(queue) == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]


def test_a_caller_who_comes_back_goes_behind_those_who_were_served_less():
    """Nobody gains a turn by having an empty line now and then, nor loses one."""
    queue = AdmissionQueue()
    put(queue, "a", item="a1")
    put(queue, "b", item="b1")
    assert queue.take().item == "a1"
    put(queue, "a", item="a2")
    put(queue, "c", item="c1")
    assert taken(queue) == ["b1", "c1", "a2"]


def test_who_has_asked_for_less_than_others_is_served_first_ten_times():
    """A burst of somebody modest does not wait for each of its turns; more than that does."""
    queue = AdmissionQueue()
    for _ in range(40):
        put(queue, "greedy")
        queue.take()
    for number in range(15):
        put(queue, "greedy", item=f"g{number}")
    for number in range(12):
        put(queue, "modest", item=f"m{number}")
    order = taken(queue)
    assert order[:10] == [f"m{number}" for number in range(10)]
    assert order.index("g0") < order.index("m11")


def test_callers_keep_what_others_ask_for_more_of():
    """Whose calls are late is shed for it where nobody has more, and nobody modest, some rounds."""
    queue = AdmissionQueue()
    queue.note_handler_time(0.02)
    for number in range(20):
        put(queue, "greedy", item=f"g{number}", now=0.0)
    modest = [put(queue, "modest", now=0.0)[0] for _ in range(2)]
    late = queue.take_late(0.25)
    assert [each.caller for each in late] == ["greedy"] * len(late)
    assert len(late) >= 10
    assert all(each.is_waiting for each in modest)
    assert set(modest) <= set(queue.take_late(0.5))


def test_callers_keep_what_others_had_more_of_who_have_nothing_here_any_more():
    """The greedy ones' calls were refused first; that does not make the next one greedy."""
    queue = AdmissionQueue()
    queue.note_handler_time(0.02)
    for _ in range(40):
        put(queue, "greedy")
        queue.take()
    modest = [put(queue, "modest", now=1.0)[0] for _ in range(SHORT + 2)]
    assert queue.take_late(1.25) == []
    assert queue.take_late(1.5) == modest


def test_the_callers_remembered_are_bounded():
    """Names are the callers' own word: as many and as long as they like."""
    queue = AdmissionQueue()
    for number in range(MOST_LEFT + 50):
        put(queue, f"caller {number}")
        put(queue, "x" * 1_000 + str(number))
        taken(queue)
    left = queue._classes[DEFAULT]._left
    assert len(left) == MOST_LEFT
    assert all(len(name) < 100 for name in left)


def test_a_burst_may_wait_longer_than_an_overload():
    """A tenth of a second while the queue was empty a moment ago; then what handlers are worth."""
    queue = AdmissionQueue()
    put(queue, now=1.0)
    assert queue.longest_wait(1.0) == BURST
    assert queue.longest_wait(1.0 + BURST) == WAIT_AT_LEAST
    queue.note_handler_time(0.002)
    assert queue.longest_wait(1.0 + BURST) == HANDLERS_AHEAD * 0.002
    queue.note_handler_time(10.0)
    assert queue.longest_wait(1.0 + BURST) == WAIT_AT_MOST


def test_those_that_waited_too_long_go_oldest_first_and_no_others():
    """Once it has not been empty for a tenth of a second, 5 ms are all that quick handlers allow."""
    queue = AdmissionQueue()
    for at in (0.0, 0.09, 0.096, 0.1):
        put(queue, now=at, item=at)
    assert [each.item for each in queue.take_late(0.09)] == []
    assert [each.item for each in queue.take_late(0.1005)] == [0.0, 0.09]
    assert len(queue) == 2


def test_an_empty_queue_ends_an_overload():
    """What comes then is a burst again."""
    queue = AdmissionQueue()
    put(queue, now=0.0)
    assert queue.longest_wait(1.0) == WAIT_AT_LEAST
    queue.take()
    put(queue, now=1.0)
    assert queue.longest_wait(1.05) == BURST


def test_a_queue_that_was_emptied_by_refusing_has_not_been_worked_off():
    """What comes next comes in the same overload; once one was served in time, it is over."""
    queue = AdmissionQueue()
    put(queue, now=0.0)
    assert len(queue.take_late(0.5)) == 1
    put(queue, now=0.5)
    assert queue.is_overloaded(0.5)
    assert queue.longest_wait(0.5) == WAIT_AT_LEAST
    queue.take()
    put(queue, now=0.6)
    assert not queue.is_overloaded(0.6)
    assert queue.longest_wait(0.6) == BURST


def test_a_queue_that_is_empty_while_more_is_on_its_way_has_not_been_worked_off():
    """What was not looked at yet waits as well, only elsewhere."""
    queue = AdmissionQueue()
    put(queue, now=0.0)
    queue.take()
    queue.note_more()
    put(queue, now=0.5)
    assert queue.is_overloaded(0.5)
    queue.note_more()  # says nothing where somebody waits
    queue.take()
    put(queue, now=0.6)
    assert not queue.is_overloaded(0.6)


def test_a_pause_of_the_process_is_excused():
    """What came while nothing at all went on may wait for as long again, and then it is over."""
    queue = AdmissionQueue()
    put(queue, now=0.0)
    queue.note_pause(1.0, 1.0)
    assert queue.take_late(1.05) == []
    assert queue.longest_wait(2.0) == 1.0 + BURST
    assert queue.longest_wait(2.2) == WAIT_AT_LEAST


def test_a_full_queue_lets_the_greediest_of_the_lowest_class_go():
    """Its oldest call, which would be too late first; nobody of a class above is touched."""
    queue = AdmissionQueue(most=5)
    put(queue, "big", CRITICAL)
    put(queue, "big", CRITICAL)
    first, _ = put(queue, "greedy", SHEDDABLE)
    put(queue, "greedy", SHEDDABLE)
    put(queue, "modest", SHEDDABLE)
    _, evicted = put(queue, "new", CRITICAL)
    assert evicted is first
    assert len(queue) == 5


def test_a_newcomer_of_the_lowest_class_goes_itself_where_all_others_matter_more():
    """A full queue of critical calls takes no sheddable one."""
    queue = AdmissionQueue(most=2)
    put(queue, "a", CRITICAL)
    put(queue, "b", CRITICAL)
    newcomer, evicted = put(queue, "c", SHEDDABLE)
    assert evicted is newcomer


class Queue(RuleBasedStateMachine):
    """Against a list of what waits: nothing is lost, given out twice, or kept when it is gone."""

    def __init__(self):
        super().__init__()
        self.queue = AdmissionQueue(most=12)
        self.model = []
        self.now = 0.0

    @rule(caller=st.sampled_from("abc"), criticality=st.sampled_from(list(Criticality)))
    def add(self, caller, criticality):
        waiting, evicted = put(self.queue, caller, criticality, self.now)
        self.model.append(waiting)
        if evicted is not None:
            assert len(self.model) == 13
            self.model.remove(evicted)
            lowest = max(CLASSES.index(each.criticality) for each in [*self.model, evicted])
            assert CLASSES.index(evicted.criticality) == lowest

    @rule()
    def take(self):
        waiting = self.queue.take()
        if not self.model:
            assert waiting is None
            return
        best = min(CLASSES.index(each.criticality) for each in self.model)
        assert CLASSES.index(waiting.criticality) == best
        line = [each for each in self.model if same_line(each, waiting)]
        assert waiting is line[0]
        self.model.remove(waiting)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def leave(self, data):
        waiting = data.draw(st.sampled_from(self.model))
        self.queue.remove(waiting)
        self.queue.remove(waiting)
        self.model.remove(waiting)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.15, 3.0]))
    def time_passes(self, seconds):
        self.now += seconds
        longest = self.queue.longest_wait(self.now)
        late = self.queue.take_late(self.now)
        assert late == [each for each in self.model if self.now - each.since > longest]
        self.model = [each for each in self.model if each not in late]

    @rule()
    def pause(self):
        self.queue.note_pause(self.now, 0.5)

    @invariant()
    def nothing_is_lost(self):
        assert len(self.queue) == len(self.model)
        assert all(each.is_waiting for each in self.model)
        lines = [line for turns in self.queue._classes.values() for line in turns._callers.values()]
        assert sum(len(line.calls) for line in lines) <= 2 * len(self.model) + 8 * len(lines)


CLASSES = [CRITICAL, DEFAULT, SHEDDABLE]


def same_line(one, other):
    return (one.caller, one.criticality) == (other.caller, other.criticality)


Queue.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
test_queue_machine = Queue.TestCase


@pytest.mark.parametrize(("time", "patience"), [(2.0, 0.2), (5.0, 0.5), (20.0, 1.0), (None, 1.0)])
def test_a_call_with_time_to_spare_may_wait_for_a_tenth_of_it(time, patience):
    """Up to a second, whatever holds for others in an overload; who has no deadline has all the time."""
    queue = AdmissionQueue()
    queue.note_handler_time(0.001)
    for number in range(20):
        put(queue, item=number, time=time)
    assert queue.is_overloaded(0.15)
    assert queue.take_late(patience) == []
    assert len(queue.take_late(patience + 0.001)) == 20

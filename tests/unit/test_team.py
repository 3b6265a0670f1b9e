"""Claims about who of a team is started, drained, killed and replaced, and when."""

import random
import signal

import pytest

from meshrpc.workers.actions import Dump, Kill, Start, Stop, Tell
from meshrpc.workers.events import EventKind
from meshrpc.workers.places import Load
from meshrpc.workers.restarts import CRASH_LOOP_DEATHS, CRASH_LOOP_WINDOW, HEALTHY_AFTER
from meshrpc.workers.rolling import READY_WITHIN
from meshrpc.workers.roster import KILL_AFTER
from meshrpc.workers.team import DUMP_TIME, LIVENESS, Team

GRACE = 45.0


class Rig:
    """A team, and processes that do what the test says; keeps what the team asked for."""

    def __init__(self, size=1, *, free_ports=True, liveness=LIVENESS):
        self.team = Team(size, rng=random.Random(7), liveness=liveness)
        self.free_ports = free_ports
        self.now = 100.0
        self.actions = []
        self.numbers = {}
        self.replaced = {}
        self._take(self.team.begin(self.now))

    def _take(self, actions):
        self.actions += actions
        for action in actions:
            if isinstance(action, Start):
                self.numbers[action.life] = action.number
                self.replaced[action.life] = action.replaces
                self.team.started(action.life, 1000 + action.life)

    def of(self, kind):
        """The actions of a kind since the last look, and forget them all."""
        found = [action for action in self.actions if isinstance(action, kind)]
        self.actions = []
        return found

    def begun(self):
        return [action.life for action in self.of(Start)]

    def events(self):
        return [told.kind for told in self.of(Tell) if told.kind is not None]

    def load(self, *lives):
        for life in lives:
            self.team.has_loaded(life, stop_within=GRACE)

    def ready(self, *lives):
        for life in lives:
            self.load(life)
            self._take(
                self.team.has_become_ready(
                    life, self.now, instance=f"echo-{life}", has_free_port=self.free_ports
                )
            )

    def end(self, life, code=-signal.SIGKILL, how="killed by SIGKILL"):
        self._take(self.team.has_ended(life, code, how, self.now))

    def leave(self, life):
        self.end(life, 0, "exit code 0")

    def fail(self, life, why="no module"):
        self.team.has_failed(life, why)
        self.end(life, 1, "exit code 1")

    def hear(self, *lives):
        for life in lives:
            self.team.was_heard(life, Load(0.1, 0.0), self.now)

    def wait(self, seconds):
        self.now += seconds
        self._take(self.team.settle(self.now))

    def until_start(self):
        """Wait until the team wants to begin a life; return it."""
        for _ in range(1000):
            if begun := self.begun():
                return begun[0]
            self.now = self.team.wakes_at()
            self._take(self.team.settle(self.now))
        raise AssertionError("nothing was started")

    def reload(self):
        self._take(self.team.reload("SIGHUP", self.now))

    def resize(self, size):
        self._take(self.team.resize(size, "busy", self.now))

    def stop(self):
        self._take(self.team.stop("SIGTERM", self.now))


def started(size, **options):
    rig = Rig(size, **options)
    lives = rig.begun()
    rig.ready(*lives)
    rig.actions = []
    return rig, lives


def test_a_team_begins_with_every_worker():
    """Each has its number, and takes nobody's place."""
    rig = Rig(3)
    assert [(s.number, s.replaces) for s in rig.of(Start)] == [(1, None), (2, None), (3, None)]


def test_a_dead_worker_comes_back_in_its_place_after_a_backoff():
    """With the same number, in the place of the instance that died; both ends are events."""
    rig, (first, _) = started(2)
    rig.end(first)
    assert rig.events() == [EventKind.DIED]
    again = rig.until_start()
    assert rig.numbers[again] == rig.numbers[first]
    assert rig.replaced[again] == f"echo-{first}"
    assert 100.08 <= rig.now <= 100.12
    rig.ready(again)
    assert rig.events() == [EventKind.RESTARTED]


def test_what_failed_at_the_first_start_ends_all():
    """Starting again would not mend it; the reason is what the worker said."""
    rig = Rig(2)
    first, second = rig.begun()
    rig.fail(first, "no module named x")
    assert rig.of(Stop) == [Stop(second)]
    rig.end(second, -signal.SIGTERM, "killed by SIGTERM")
    assert rig.team.is_over
    assert rig.team.cannot_start == "no module named x"
    assert not rig.team.was_cut_short


def test_a_worker_that_was_added_later_does_not_end_all():
    """Its failure costs it a backoff, as any later one does."""
    rig, _ = started(2)
    rig.resize(3)
    (third,) = rig.begun()
    rig.fail(third)
    assert rig.team.cannot_start is None
    assert rig.numbers[rig.until_start()] == 3


def test_deaths_in_a_row_are_a_crash_loop_and_the_others_serve_on():
    """Once, with the last reason; the worker goes on being started, ever later."""
    rig, (life, other) = started(2)
    told = []
    for _ in range(CRASH_LOOP_DEATHS + 2):
        rig.end(life)
        told += rig.of(Tell)
        life = rig.until_start()
    loops = [each for each in told if each.kind is EventKind.CRASH_LOOP]
    assert len(loops) == 1
    assert "killed by SIGKILL" in loops[0].text
    assert [each.key for each in rig.team.ready] == [other]
    assert "crash_loop=1" in repr(rig.team)


def test_a_crash_loop_is_over_when_the_worker_has_served_for_a_while():
    """Until then its starts are no return: it would be back in the loop with its next death."""
    rig, (life,) = started(1, liveness=None)
    for _ in range(CRASH_LOOP_DEATHS):
        rig.end(life)
        life = rig.until_start()
    rig.ready(life)
    rig.actions = []
    rig.wait(CRASH_LOOP_WINDOW - 0.1)
    assert rig.events() == []
    assert rig.team.wakes_at() == pytest.approx(rig.now + 0.1)
    rig.wait(0.1)
    assert rig.events() == [EventKind.RESTARTED]


def test_a_reload_replaces_all_and_never_has_less_than_all():
    """Each new one is ready before the old one drains; two may drain at a time."""
    rig, old = started(4)
    rig.reload()
    new = []
    while rig.team.is_rolling:
        (life,) = rig.begun()
        assert rig.replaced[life] is None
        assert len(rig.team.ready) == 4
        rig.ready(life)
        new.append(life)
        stops = rig.of(Stop) if len(new) == 4 else [a for a in rig.actions if isinstance(a, Stop)]
        assert [stop.life for stop in stops] == [old[len(new) - 1]]
        assert len(rig.team.ready) == 4
        if len(new) in (2, 3):
            assert not [a for a in rig.actions if isinstance(a, Start)]
            rig.leave(old[len(new) - 2])
    assert [rig.numbers[life] for life in new] == [1, 2, 3, 4]


def test_a_reload_is_told_once_all_are_new():
    """With one event."""
    rig, (old,) = started(1)
    rig.reload()
    (new,) = rig.begun()
    rig.ready(new)
    assert rig.events() == [EventKind.RELOADED]
    rig.leave(old)
    assert rig.events() == []


def test_on_a_fixed_port_the_old_one_leaves_first():
    """One at a time: the next one leaves only when the new one serves."""
    rig, (one, two) = started(2, free_ports=False)
    rig.reload()
    assert [a for a in rig.actions if isinstance(a, Start)] == []
    assert rig.of(Stop) == [Stop(one)]
    rig.leave(one)
    (new,) = rig.begun()
    assert rig.of(Stop) == []
    rig.ready(new)
    assert rig.of(Stop) == [Stop(two)]
    rig.leave(two)
    (last,) = rig.begun()
    rig.ready(last)
    assert not rig.team.is_rolling


@pytest.mark.parametrize("free_ports", [True, False])
def test_a_reload_that_cannot_start_stops_and_leaves_the_others(free_ports):
    """The next one begins anew."""
    rig, (one, two) = started(2, free_ports=free_ports)
    rig.reload()
    if not free_ports:
        rig.leave(one)
    (new,) = rig.begun()
    rig.fail(new, "SyntaxError")
    assert not rig.team.is_rolling
    told = rig.of(Tell)
    (stopped,) = [each for each in told if each.kind is EventKind.RELOAD_FAILED]
    assert "SyntaxError" in stopped.text
    assert two in [life.key for life in rig.team.ready]
    assert len(rig.team.ready) == (2 if free_ports else 1)
    if not free_ports:
        rig.ready(rig.until_start())
        rig.actions = []
    rig.reload()
    assert rig.team.is_rolling
    if free_ports:
        (new,) = rig.begun()
        rig.ready(new)
        assert rig.team.ready
    else:
        assert rig.of(Stop)


def test_a_second_reload_makes_the_first_old_at_once():
    """What has not served yet begins anew with the newest code; what has is replaced again."""
    rig, (one, two) = started(2)
    rig.reload()
    (first,) = rig.begun()
    rig.ready(first)
    (second,) = rig.begun()
    rig.reload()
    stopped = [a.life for a in rig.actions if isinstance(a, Stop)]
    assert stopped == [second]
    rig.end(second)
    (third,) = rig.begun()
    assert rig.numbers[third] == 2
    rig.ready(third)
    rig.leave(one)
    rig.leave(two)
    (fourth,) = rig.begun()
    assert rig.numbers[fourth] == 1
    rig.ready(fourth)
    assert not rig.team.is_rolling
    assert rig.events() == [EventKind.RELOADED]


def test_a_worker_that_dies_while_it_is_replaced_is_followed_by_that_one():
    """Not by a third."""
    rig, (old,) = started(1)
    rig.reload()
    (new,) = rig.begun()
    rig.end(old)
    rig.wait(10.0)
    assert rig.begun() == []
    rig.ready(new)
    assert rig.events() == [EventKind.RESTARTED, EventKind.RELOADED]


def test_a_place_is_filled_when_both_its_worker_and_the_new_one_die():
    """By the backoff."""
    rig, (old,) = started(1)
    rig.reload()
    (new,) = rig.begun()
    rig.end(old)
    rig.fail(new)
    assert rig.numbers[rig.until_start()] == 1


def test_a_reload_starts_what_waits_for_its_backoff_at_once():
    """Whatever it died of may be mended in the newest code."""
    rig, (life, _) = started(2)
    for _ in range(5):
        rig.end(life)
        life = rig.until_start()
    rig.end(life)
    rig.actions = []
    rig.reload()
    assert 1 in [rig.numbers[begun] for begun in rig.begun()]


def test_silence_beyond_the_lease_is_a_hang():
    """The stacks are asked for first, the end follows, and then a life by backoff."""
    rig, (life, other) = started(2)
    rig.now += LIVENESS - 1.0
    rig.hear(other)
    rig.wait(0.9)
    assert rig.of(Dump) == []
    assert rig.team.wakes_at() == pytest.approx(100.0 + LIVENESS)
    rig.wait(0.1)
    dumped = [a for a in rig.actions if isinstance(a, Dump)]
    assert dumped == [Dump(life)]
    assert not [a for a in rig.actions if isinstance(a, Kill)]
    assert rig.events() == [EventKind.HUNG]
    rig.wait(DUMP_TIME)
    assert rig.of(Kill) == [Kill(life)]
    rig.end(life)
    assert rig.events() == []
    assert rig.numbers[rig.until_start()] == rig.numbers[life]


def test_whoever_was_frozen_itself_judges_nobody():
    """After the supervisor slept, everybody has as long as ever to be heard."""
    rig, (life,) = started(1)
    rig.now += 3600.0
    rig.team.overslept(rig.now)
    rig.wait(0.0)
    assert rig.of(Dump) == []
    rig.wait(LIVENESS)
    assert rig.of(Dump) == [Dump(life)]


def test_neither_starting_nor_draining_is_a_hang():
    """They have bounds of their own, or none."""
    rig = Rig(2)
    first, _ = rig.begun()
    rig.ready(first)
    rig.stop()
    rig.wait(LIVENESS + 1.0)
    assert rig.of(Dump) == []


def test_stopping_lets_all_drain_and_then_kills_what_is_left():
    """Those that drain already are not told twice: a second signal would cut them short."""
    rig, (one, two) = started(2)
    rig.resize(1)
    assert rig.of(Stop) == [Stop(two)]
    rig.stop()
    assert rig.of(Stop) == [Stop(one)]
    rig.wait(GRACE + KILL_AFTER)
    assert {kill.life for kill in rig.of(Kill)} == {one, two}
    rig.end(one)
    rig.end(two)
    assert rig.team.is_over
    assert rig.team.was_cut_short


def test_a_worker_that_is_stopped_before_it_is_ready_has_as_long_as_any():
    """Its hooks may be at work, and calls too while it waits to be ready: from loading on it counts."""
    rig = Rig(1)
    (life,) = rig.begun()
    rig.load(life)
    rig.stop()
    rig.wait(GRACE)
    assert rig.of(Kill) == []
    rig.wait(KILL_AFTER)
    assert rig.of(Kill) == [Kill(life)]


def test_who_is_not_wanted_any_more_drains_though_it_was_never_ready():
    """While nobody is ready its callers call all the same: to kill it would lose their calls."""
    rig = Rig(2)
    one, two = rig.begun()
    rig.load(one)
    rig.load(two)
    rig.resize(1)
    assert (rig.of(Stop), rig.of(Kill)) == ([Stop(two)], [])
    rig.reload()
    assert (rig.of(Stop), rig.of(Kill)) == ([Stop(one)], [])
    rig.wait(GRACE)
    assert rig.of(Kill) == []
    rig.wait(KILL_AFTER)
    assert {kill.life for kill in rig.of(Kill)} == {one, two}


def test_a_second_stop_kills_all():
    """At once."""
    rig, lives = started(2)
    rig.stop()
    rig.stop()
    assert [kill.life for kill in rig.of(Kill)] == lives


def test_stopping_during_a_reload_stops_the_new_ones_too():
    """Nothing is started any more."""
    rig, (old,) = started(1)
    rig.reload()
    (new,) = rig.begun()
    rig.stop()
    assert {stop.life for stop in rig.of(Stop)} == {old, new}
    rig.reload()
    rig.leave(old)
    rig.end(new, -signal.SIGTERM, "killed by SIGTERM")
    assert rig.begun() == []
    assert rig.team.is_over
    assert not rig.team.was_cut_short


def test_stopping_forgets_who_waits_for_a_start():
    """A crash loop does not keep the supervisor."""
    rig, (life,) = started(1)
    rig.end(life)
    rig.stop()
    assert rig.team.is_over


def test_fewer_workers_are_the_highest_numbers():
    """They drain, and their ends are no deaths."""
    rig, lives = started(4)
    rig.resize(2)
    assert rig.events() == [EventKind.SCALED]
    assert len(rig.team.ready) == 2
    rig.leave(lives[3])
    rig.leave(lives[2])
    rig.wait(60.0)
    assert rig.begun() == []
    assert [place.number for place in rig.team.places] == [1, 2]


@pytest.mark.parametrize("free_ports", [True, False])
def test_growing_again_waits_only_for_a_port(free_ports):
    """While the one with that number still drains."""
    rig, (_, two) = started(2, free_ports=free_ports)
    rig.resize(1)
    rig.resize(2)
    assert len(rig.begun()) == (1 if free_ports else 0)
    rig.leave(two)
    assert len(rig.begun()) == (0 if free_ports else 1)


def test_a_worker_that_ends_before_it_drained_is_told():
    """Calls were lost; it is no death, because it was to end."""
    rig, (old,) = started(1)
    rig.reload()
    (new,) = rig.begun()
    rig.ready(new)
    rig.actions = []
    rig.end(old)
    (told,) = rig.of(Tell)
    assert told.text == "worker 1 (pid 1001) ended before it had drained: killed by SIGKILL"
    assert told.kind is None


def test_a_machine_without_processes_costs_a_backoff():
    """It may have some again."""
    team = Team(1, rng=random.Random(1))
    (start,) = team.begin(0.0)
    (told,) = team.could_not_start(start.life, "out of memory", 0.0)
    assert "worker 1 could not be started: out of memory; restarting in" in told.text
    assert [type(action) for action in team.settle(team.wakes_at())] == [Start]


def test_a_healthy_life_forgets_its_deaths_across_a_reload():
    """On a fixed port, too, it is the new life that has to be healthy."""
    rig, (old,) = started(1, free_ports=False)
    rig.wait(HEALTHY_AFTER)
    rig.hear(old)
    rig.reload()
    rig.leave(old)
    (new,) = rig.begun()
    rig.fail(new)
    again = rig.until_start()
    before = rig.now
    rig.fail(again)
    rig.until_start()
    assert rig.now - before >= 0.16


def test_a_reload_during_which_the_old_one_died_can_be_overtaken():
    """The place is filled with the newest code at once, though neither of its lives is left."""
    rig, (old,) = started(1)
    rig.reload()
    (new,) = rig.begun()
    rig.end(old)
    rig.reload()
    assert [stop.life for stop in rig.actions if isinstance(stop, Stop)] == [new]
    rig.end(new)
    (newest,) = rig.begun()
    rig.ready(newest)
    assert not rig.team.is_rolling


def until_failed(rig):
    """Let a reload whose new worker never becomes ready run out of time; return what is told."""
    rig.wait(READY_WITHIN - 0.1)
    assert rig.team.is_rolling
    assert rig.team.wakes_at() == pytest.approx(rig.now + 0.1)
    rig.wait(0.1)
    assert not rig.team.is_rolling
    (told,) = [each for each in rig.actions if isinstance(each, Tell) and each.is_bad]
    assert told.kind is EventKind.RELOAD_FAILED
    assert f"was not ready within {READY_WITHIN:.0f} s" in told.reason
    assert "--ready-within" in told.text
    assert "SIGHUP tries again" in told.text
    return told.reason


def test_a_new_worker_that_is_never_ready_fails_the_reload_and_the_old_one_serves_on():
    """It drains, for its startup may hold something; its end is nobody's death."""
    rig, (one, two) = started(2, liveness=None)
    rig.reload()
    (new,) = rig.begun()
    assert "the old one serves on" in until_failed(rig)
    assert rig.of(Stop) == [Stop(new)]
    rig.end(new, -signal.SIGTERM, "killed by SIGTERM")
    rig.wait(3600.0)
    assert rig.actions == []
    assert [life.key for life in rig.team.ready] == [one, two]


def test_a_new_worker_that_never_ends_either_is_killed():
    """Its drain has a bound, as any has."""
    rig, _ = started(1, liveness=None)
    rig.reload()
    (new,) = rig.begun()
    rig.load(new)
    until_failed(rig)
    rig.actions = []
    rig.wait(GRACE + KILL_AFTER)
    assert rig.of(Kill) == [Kill(new)]


def test_the_next_reload_after_a_failed_one_starts_afresh():
    """At once, though the one that was never ready still drains."""
    rig, (old,) = started(1, liveness=None)
    rig.reload()
    until_failed(rig)
    rig.actions = []
    rig.reload()
    (newest,) = rig.begun()
    rig.ready(newest)
    assert rig.of(Stop) == [Stop(old)]
    assert not rig.team.is_rolling


def test_whoever_is_alone_in_its_place_goes_on_starting_when_the_reload_has_failed():
    """On a fixed port the old one is gone: late is better than never."""
    rig, (one, two) = started(2, free_ports=False, liveness=None)
    rig.reload()
    rig.leave(one)
    (new,) = rig.begun()
    assert "goes on starting" in until_failed(rig)
    assert rig.of(Stop) == []
    rig.ready(new)
    assert {life.key for life in rig.team.ready} == {new, two}
    assert rig.of(Stop) == []


def test_a_replacement_goes_on_starting_when_the_old_one_died_meanwhile():
    """There is nobody to fall back to; the next reload drops it all the same."""
    rig, (old,) = started(1, liveness=None)
    rig.reload()
    (new,) = rig.begun()
    rig.end(old)
    rig.actions = []
    until_failed(rig)
    assert rig.of(Stop) == []
    rig.reload()
    assert rig.of(Stop) == [Stop(new)]
    rig.end(new)
    (newest,) = rig.begun()
    rig.ready(newest)
    assert not rig.team.is_rolling


def test_a_worker_that_dies_while_the_failed_one_drains_is_followed_by_its_backoff_alone():
    """What was never ready began on a port of its own, and is in nobody's way."""
    rig, (old,) = started(1, liveness=None)
    rig.reload()
    (new,) = rig.begun()
    until_failed(rig)
    rig.actions = []
    rig.end(old)
    assert rig.numbers[rig.until_start()] == 1
    assert new in {life.key for life in rig.team.lives}


def test_each_new_worker_has_the_whole_time_to_become_ready():
    """The bound is on no progress, not on the length of a reload."""
    rig, lives = started(3, liveness=None)
    rig.reload()
    for old in lives:
        rig.wait(READY_WITHIN - 1.0)
        (new,) = rig.begun()
        rig.ready(new)
        rig.leave(old)
    assert not rig.team.is_rolling
    assert rig.events() == [EventKind.RELOADED]


def test_a_start_that_is_no_reload_takes_as_long_as_it_takes():
    """Nobody serves in its stead."""
    rig = Rig(1, liveness=None)
    (life,) = rig.begun()
    rig.wait(100 * READY_WITHIN)
    assert rig.team.wakes_at() is None
    assert rig.of(Stop) == []
    rig.ready(life)


def test_a_supervisor_that_was_frozen_fails_no_reload():
    """What begins has its whole time again, from when somebody looks."""
    rig, _ = started(1, liveness=None)
    rig.reload()
    rig.now += 10 * READY_WITHIN
    rig.team.overslept(rig.now)
    rig.wait(0.0)
    assert rig.team.is_rolling
    rig.wait(READY_WITHIN)
    assert not rig.team.is_rolling

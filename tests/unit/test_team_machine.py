"""The team of workers under anything that can happen, in any order: what always holds."""

import random
import signal
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshrpc.workers.actions import Dump, Kill, Start, Stop
from meshrpc.workers.places import Load, Stage
from meshrpc.workers.restarts import FIRST_DELAY, JITTER
from meshrpc.workers.team import LIVENESS, Team

MOST = 4
READY_WITHIN = 8.0


class Machine(RuleBasedStateMachine):
    """Processes that start, serve, hang, die and are told to leave; the team's view of them."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.alive = {}
        self.told = set()
        self.heard = {}
        self.killed = set()
        self.last_death = {}
        self.asked_for = Counter()

    @initialize(size=st.integers(1, MOST), free_ports=st.booleans(), seed=st.integers(0, 100))
    def begin(self, size, free_ports, seed):
        self.free_ports = free_ports
        self.team = Team(size, rng=random.Random(seed), ready_within=READY_WITHIN)
        self.carry_out(self.team.begin(self.now))

    def carry_out(self, actions):
        for action in actions:
            match action:
                case Start(life, number, _):
                    if not self.free_ports:
                        assert number not in self.alive.values(), "two on one port"
                    if number in self.last_death and not self.asked_for[number]:
                        waited = self.now - self.last_death[number]
                        assert waited >= FIRST_DELAY * (1 - JITTER) - 1e-9
                    self.asked_for[number] = 0
                    self.last_death.pop(number, None)
                    assert life not in self.alive
                    self.alive[life] = number
                    self.team.started(life, 1000 + life)
                case Stop(life):
                    assert life in self.alive
                    assert life not in self.told, "told twice: that would cut its drain short"
                    self.told.add(life)
                case Kill(life):
                    assert life in self.alive
                    self.killed.add(life)
                case Dump(life):
                    assert self.now - self.heard[life] >= LIVENESS - 1e-9

    def pick(self, data, lives):
        return data.draw(st.sampled_from(sorted(lives)))

    def starting(self):
        return [x.key for x in self.team.lives if x.stage is Stage.STARTING]

    def ready(self):
        return [x.key for x in self.team.ready]

    @precondition(lambda self: self.starting())
    @rule(data=st.data())
    def becomes_ready(self, data):
        life = self.pick(data, self.starting())
        before = {x.key for x in self.team.ready}
        self.heard[life] = self.now
        self.team.has_loaded(life, stop_within=45.0)
        self.carry_out(
            self.team.has_become_ready(
                life, self.now, instance=f"i-{life}", has_free_port=self.free_ports
            )
        )
        if self.free_ports:
            assert len(self.team.ready) >= len(before), "a reload took capacity away"

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), code=st.sampled_from([0, 1, -signal.SIGKILL]))
    def ends(self, data, code):
        life = self.pick(data, self.alive)
        number = self.alive.pop(life)
        if life not in self.told and life not in self.killed:
            self.last_death[number] = self.now
        self.carry_out(self.team.has_ended(life, code, "somehow", self.now))

    @precondition(lambda self: self.starting())
    @rule(data=st.data())
    def fails(self, data):
        life = self.pick(data, self.starting())
        number = self.alive.pop(life)
        if any(place.is_first and place.number == number for place in self.team.places):
            self.alive[life] = number  # that ends all, which is a story of its own
            return
        if life not in self.killed:
            self.last_death[number] = self.now
        self.team.has_failed(life, "no module")
        self.carry_out(self.team.has_ended(life, 1, "exit code 1", self.now))

    @rule()
    def are_heard(self):
        for life in self.ready():
            self.heard[life] = self.now
            self.team.was_heard(life, Load(0.5, 0.0), self.now)

    @rule(seconds=st.floats(0.01, 40.0))
    def time_passes(self, seconds):
        """In steps, as the supervisor does: it looks whenever something is due."""
        until = self.now + seconds
        for _ in range(200):
            due = self.team.wakes_at()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.carry_out(self.team.settle(self.now))
        else:
            raise AssertionError("the supervisor spins")
        self.now = until
        self.carry_out(self.team.settle(self.now))

    @rule()
    def is_reloaded(self):
        for number in range(1, MOST + 1):
            self.asked_for[number] += 1
        self.carry_out(self.team.reload("SIGHUP", self.now))

    @rule(size=st.integers(1, MOST))
    def is_resized(self, size):
        for number in range(1, MOST + 1):
            self.asked_for[number] += 1
        self.carry_out(self.team.resize(size, "busy", self.now))

    @rule(chance=st.integers(0, 9))
    def is_stopped(self, chance):
        if chance and not self.team.is_stopping:
            return  # or nothing but stops would be tried
        self.carry_out(self.team.stop("SIGTERM", self.now))

    @invariant()
    def the_team_knows_every_process(self):
        if hasattr(self, "team"):
            assert {life.key for life in self.team.lives} == set(self.alive)

    @invariant()
    def no_more_serve_than_allowed(self):
        if hasattr(self, "team"):
            assert len(self.team.ready) <= self.team.size

    @invariant()
    def nobody_is_forgotten(self):
        """Every place has a life, or a time at which it gets one."""
        if not hasattr(self, "team") or self.team.is_stopping:
            return
        numbers = {place.number for place in self.team.places}
        assert numbers >= set(range(1, self.team.size + 1))
        for place in self.team.places:
            filled = place.current or place.replacement or place.start_at is not None
            assert filled or place.number > self.team.size

    @invariant()
    def one_is_replaced_at_a_time(self):
        if hasattr(self, "team"):
            assert sum(place.replacement is not None for place in self.team.places) <= 1

    @invariant()
    def no_reload_waits_for_ever(self):
        """Whatever it waits for has a bound: to become ready, or to have drained."""
        if not hasattr(self, "team") or not self.team.is_rolling:
            return
        for life in self.team.lives:
            if life.stage is Stage.STARTING and life.key not in self.killed:
                assert life.begun_at <= self.now < life.begun_at + READY_WITHIN

    @invariant()
    def whoever_is_told_to_leave_has_a_bound(self):
        if hasattr(self, "team"):
            for life in self.team.lives:
                if life.stage is Stage.DRAINING and life.key not in self.killed:
                    assert life.kill_at is not None

    def teardown(self):
        """Told to stop, everything ends."""
        if not hasattr(self, "team"):
            return
        if not self.team.is_stopping:
            self.carry_out(self.team.stop("SIGTERM", self.now))
        for life in list(self.alive):
            self.alive.pop(life)
            self.carry_out(self.team.has_ended(life, 0, "exit code 0", self.now))
        assert self.team.is_over


TestTeam = Machine.TestCase
TestTeam.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)

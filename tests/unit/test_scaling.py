"""Claims about how many workers a load needs, and that a steady one changes nothing for long."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.clock import SystemClock
from meshrpc.workers.actions import Start
from meshrpc.workers.places import Load
from meshrpc.workers.scaling import (
    BUSY,
    DOWN_AFTER,
    IDLE,
    OVER,
    PAUSE,
    QUEUE_TIME,
    UP_AFTER,
    Scaler,
)
from meshrpc.workers.supervisor import Supervisor


class Timepiece(SystemClock):
    """A clock that stands until it is moved on."""

    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time


START = 3.0
"""Seconds a new worker takes until it serves."""


def run(scaler, work, seconds, *, size, now=0.0, noise=0.0, queue_time=lambda busy: 0.0, seed=1):
    """Let the team do `work` (in workers fully busy) for a time; return its sizes, with times."""
    rng = random.Random(seed)
    changes = []
    ready_at = now
    ready = size
    until = now + seconds
    while now < until:
        if now >= ready_at:
            ready = size
        ready = min(ready, size)
        share = work / ready
        if noise:
            shares = [share * (1 + rng.uniform(-noise, noise)) for _ in range(ready)]
        else:
            shares = [share]  # the mean of equal ones
        loads = [Load(min(1.0, busy), queue_time(min(1.0, busy))) for busy in shares]
        wanted = scaler.look(now, size, loads)
        if wanted is not None:
            size = wanted.size
            ready_at = now + START
            changes.append((now, size))
        now += 1.0
    return size, changes


def test_too_much_work_for_some_seconds_is_one_worker_more():
    """Not before, and only after the pause that follows a start."""
    scaler = Scaler(2, 8)
    _, changes = run(scaler, 1.7, 30.0, size=2)
    assert changes[0] == (pytest.approx(PAUSE + UP_AFTER, abs=1.0), 3)


def test_a_short_burst_changes_nothing():
    """A batch of some seconds is over before there were more."""
    scaler = Scaler(2, 8)
    size, changes = run(scaler, 0.5, 30.0, size=2)
    assert not changes
    size, changes = run(scaler, 2.0, 3.0, size=2, now=30.0)
    size, changes = run(scaler, 0.5, 60.0, size=2, now=33.0)
    assert (size, changes) == (2, [])


def test_a_large_team_grows_by_a_quarter():
    """One by one it would take minutes to follow a doubled load."""
    _, changes = run(Scaler(1, 40), 40.0, 60.0, size=16)
    assert [size for _, size in changes][:3] == [20, 25, 31]


def test_less_work_is_one_worker_less_a_minute():
    """The last one above the minimum stays away from being too few."""
    size, changes = run(Scaler(1, 8), 1.0, 900.0, size=8)
    times = [time for time, _ in changes]
    assert all(b - a >= DOWN_AFTER for a, b in itertools.pairwise(times))
    assert size == 3
    assert 1.0 / (size - 1) >= IDLE


def test_the_bounds_hold():
    """Whatever the load."""
    assert run(Scaler(2, 4), 100.0, 600.0, size=2)[0] == 4
    assert run(Scaler(2, 4), 0.0, 600.0, size=4)[0] == 2


def test_waiting_counts_though_the_loop_is_not_busy():
    """Handlers that block for long make calls wait at a low share."""
    scaler = Scaler(1, 8)
    _, changes = run(scaler, 0.3, 30.0, size=1, queue_time=lambda busy: 2 * QUEUE_TIME)
    assert changes[0][1] == 2


def test_nothing_is_known_without_ready_workers():
    """A crash loop is no reason to have more of it, nor less."""
    scaler = Scaler(1, 4)
    assert all(scaler.look(float(now), 2, []) is None for now in range(300))


def test_the_reason_is_said():
    """With the figure that crossed its bound."""
    scaler = Scaler(1, 4)
    wanted = None
    now = 0.0
    while wanted is None:
        wanted = scaler.look(now, 1, [Load(0.93, 0.0)])
        now += 1.0
    assert wanted.why == "busy 93% (above 75%)"
    scaler = Scaler(1, 4)
    wanted = None
    while wanted is None:
        wanted = scaler.look(now, 4, [Load(0.1, 0.0)])
        now += 1.0
    assert wanted.why == "busy 10%, and 13% with one less"


@settings(deadline=None, max_examples=40)
@given(
    work=st.floats(0.0, 20.0),
    bounds=st.tuples(st.integers(1, 6), st.integers(0, 14)),
    at=st.floats(0.0, 1.0),
    noise=st.sampled_from([0.0, 0.05, 0.1]),
    seed=st.integers(0, 1000),
)
def test_a_steady_load_finds_its_size_and_stays_there(work, bounds, at, noise, seed):
    """From any size, in one direction only; then it is neither too much nor too little."""
    least, more = bounds
    most = least + more
    size = round(least + at * more)
    scaler = Scaler(least, most)
    size, changes = run(scaler, work, 1200.0, size=size, noise=noise, seed=seed)
    sizes = [each for _, each in changes]
    assert sizes == sorted(sizes) or sizes == sorted(sizes, reverse=True)
    share = work / size
    assert least <= size <= most
    assert share <= BUSY * (1 + noise) or size == most
    assert size == least or work / (size - 1) >= IDLE * (1 - noise)


@settings(deadline=None, max_examples=25)
@given(
    work=st.floats(0.1, 3.0),
    knee=st.floats(0.15, 0.7),
    size=st.integers(1, 12),
    steepness=st.floats(1.0, 8.0),
)
def test_queueing_that_sets_in_early_makes_it_try_a_size_twice_at_most(work, knee, size, steepness):
    """Whatever the busy share at which calls begin to wait: no size is left and taken for ever."""

    def queue_time(busy):
        return QUEUE_TIME * (busy / knee) ** steepness

    scaler = Scaler(1, 200)
    size, _ = run(scaler, work, 1800.0, size=size, queue_time=queue_time)
    size, late = run(scaler, work, 1200.0, size=size, queue_time=queue_time, now=1800.0)
    assert not late, late
    assert queue_time(work / size) <= QUEUE_TIME * 1.001


@settings(deadline=None, max_examples=30)
@given(
    work=st.floats(0.0, 12.0),
    size=st.integers(1, 12),
    reloads=st.lists(
        st.tuples(st.integers(1, 200), st.integers(1, 90), st.integers(0, int(PAUSE) - 1)),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 1000),
)
def test_no_reload_makes_a_steady_load_change_its_size_twice(work, size, reloads, seed):
    """Whatever workers say of themselves while they are replaced, and until the new ones run warm."""
    rng = random.Random(seed)
    scaler = Scaler(1, 16)
    now = 0.0
    sizes = [size]
    for before, lasts, settles in reloads:
        size, changes = run(scaler, work, float(before), size=size, now=now)
        sizes += [each for _, each in changes]
        now += before
        for _ in range(lasts):
            scaler.pause(now)
            now += 1.0
        for _ in range(settles):
            assert scaler.look(now, size, [Load(rng.random(), rng.random())]) is None
            now += 1.0
    over = now - settles
    size, changes = run(scaler, work, 1200.0, size=size, now=now)
    sizes += [each for _, each in changes]
    assert sizes == sorted(sizes) or sizes == sorted(sizes, reverse=True)
    assert work / size <= BUSY or size == 16
    assert size == 1 or work / (size - 1) >= IDLE
    for at, new in changes[:1]:
        waited = UP_AFTER if new > sizes[0] else DOWN_AFTER
        assert at >= over - 1.0 + PAUSE + waited


def test_what_began_before_a_reload_is_not_decided_after_it():
    """Too much work before it and a single look after it are no five seconds of too much work."""
    scaler = Scaler(1, 8)
    _, changes = run(scaler, 1.9, PAUSE + UP_AFTER - 1.0, size=2)
    assert not changes
    scaler.pause(20.0)
    _, changes = run(scaler, 1.9, 60.0, size=2, now=21.0)
    assert changes[0][0] >= 20.0 + PAUSE + UP_AFTER


def test_what_was_once_too_small_is_tried_again_with_less_work():
    """The memory of it is of that load, and no bound for ever."""
    scaler = Scaler(1, 8)
    size, _ = run(scaler, 1.2, 300.0, size=1, queue_time=lambda busy: QUEUE_TIME * busy / 0.4)
    assert size >= 3
    size, _ = run(
        scaler, 0.3, 900.0, size=size, now=300.0, queue_time=lambda busy: QUEUE_TIME * busy / 0.4
    )
    assert size == 1


def test_old_figures_say_nothing_about_a_new_size():
    """What is averaged begins anew with each change."""
    assert PAUSE >= OVER


def test_the_supervisor_pauses_it_while_workers_are_replaced(tmp_path, monkeypatch):
    """Too much work on both sides of a reload that took a minute is two short times of it."""
    clock = Timepiece()
    supervisor = Supervisor(
        "app:service", count=1, most=4, folder=tmp_path, environment={}, clock=clock
    )
    monkeypatch.setattr(supervisor, "_carry_out", lambda actions: None)
    team = supervisor._team
    (old,) = team.begin(clock.now())
    team.has_become_ready(old.life, clock.now(), instance="a", has_free_port=True)

    def serve(life, seconds):
        for _ in range(seconds):
            clock.time += 1.0
            team.was_heard(life, Load(1.0, 0.0), clock.now())
            supervisor._scale()

    serve(old.life, int(PAUSE + UP_AFTER) - 1)
    new = next(action for action in team.reload("SIGHUP", clock.now()) if isinstance(action, Start))
    serve(old.life, 60)
    team.has_become_ready(new.life, clock.now(), instance="b", has_free_port=True)
    assert not team.is_rolling
    serve(new.life, int(PAUSE + UP_AFTER) - 1)
    assert team.size == 1
    serve(new.life, 2)
    assert team.size == 2
    supervisor._selector.close()

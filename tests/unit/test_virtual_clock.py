"""The virtual clock: frozen until moved, every timer at its own time, no real waiting."""

import asyncio
import contextvars
import hashlib
import sys
import threading
import time

import pytest

from meshrpc.testing import VirtualClock
from meshrpc.testing import clock as clock_module
from meshrpc.testing.threads import another_runs


class ScriptedTraffic:
    """Traffic that moves so often, then stands, and is over when told so."""

    def __init__(self, moves=0, *, under_way=True, busy=0):
        self.moves = moves
        self.under_way = under_way
        self.busy = busy
        self.looks = 0

    def is_under_way(self):
        return self.under_way

    def is_busy(self):
        self.busy -= 1
        return self.busy >= 0

    def progress(self):
        self.looks += 1
        return min(self.looks, self.moves)


async def sleeper(clock, seconds, woken):
    await clock.sleep(seconds)
    woken.append((seconds, clock.now() - 1000))


async def test_time_stands_still_until_it_is_moved(virtual_clock):
    """Whatever else runs, now() is the same."""
    before = virtual_clock.now()
    await asyncio.sleep(0.01)
    assert virtual_clock.now() == before
    await virtual_clock.advance(2.5)
    assert virtual_clock.now() == before + 2.5


async def test_sleepers_wake_in_order_each_at_its_own_time(virtual_clock):
    """Also when they went to sleep in another order."""
    woken = []
    async with asyncio.TaskGroup() as tasks:
        for seconds in (3.0, 1.0, 2.0):
            tasks.create_task(sleeper(virtual_clock, seconds, woken))
        await virtual_clock.advance(10)
    assert woken == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]


async def test_what_a_sleeper_sets_on_the_way_comes_due_on_the_way(virtual_clock):
    """A loop that sleeps a second runs sixty times in a minute."""
    ticks = []

    async def tick():
        while True:
            await virtual_clock.sleep(1)
            ticks.append(virtual_clock.now())

    ticking = asyncio.create_task(tick())
    await virtual_clock.advance(60)
    ticking.cancel()
    assert ticks == [1000.0 + n for n in range(1, 61)]


async def test_many_small_steps_reach_a_timer_as_one_large_one_does(virtual_clock):
    """Ten times 0.1 s is a second, whatever floats make of that."""
    woken = []
    task = asyncio.create_task(sleeper(virtual_clock, 1.0, woken))
    for _ in range(10):
        await virtual_clock.advance(0.1)
    assert task.done()


async def test_a_timeout_expires_by_this_clock_alone(virtual_clock):
    """It raises TimeoutError once moved so far, and not before."""

    async def wait():
        async with virtual_clock.timeout(5):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await virtual_clock.advance(4.9)
    assert not waiting.done()
    await virtual_clock.advance(0.1)
    with pytest.raises(TimeoutError):
        await waiting


async def test_a_timeout_that_is_not_needed_leaves_no_timer_that_counts(virtual_clock):
    """Nothing is waited for after the block, nor with None."""
    async with virtual_clock.timeout(5):
        pass
    async with virtual_clock.timeout(None):
        pass
    assert not virtual_clock.is_waited_for()
    assert "timers=0" in repr(virtual_clock)


async def test_a_timeout_of_nothing_expires_at_the_next_await(virtual_clock):
    """As asyncio.timeout(0) does."""
    with pytest.raises(TimeoutError):
        async with virtual_clock.timeout(0):
            await asyncio.sleep(60)


async def test_run_moves_the_clock_just_as_far_as_it_takes(virtual_clock):
    """The result comes back, and the clock stands where it was done."""

    async def work():
        await virtual_clock.sleep(2)
        await virtual_clock.sleep(3)
        return "done"

    assert await virtual_clock.run(work()) == "done"
    assert virtual_clock.now() == 1005.0


async def test_run_hands_on_what_was_raised(virtual_clock):
    """An exception is the caller's."""

    async def work():
        await virtual_clock.sleep(1)
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await virtual_clock.run(work())


async def test_run_never_hangs(virtual_clock, monkeypatch):
    """What waits for no timer, or for timers without end, is cancelled with a TimeoutError."""
    monkeypatch.setattr(clock_module, "LONGEST_WAIT", 0.01)
    cancelled = []

    async def wait():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(TimeoutError, match="not done after 0 virtual seconds"):
        await virtual_clock.run(wait())

    async def forever():
        while True:
            await virtual_clock.sleep(7)

    with pytest.raises(TimeoutError, match="not done after 98 virtual seconds"):
        await virtual_clock.run(forever(), limit=100)
    assert cancelled == [True]


async def test_without_traffic_nothing_is_waited_for():
    """An hour with a timer each second takes a moment, calls that are over included."""
    clock = VirtualClock()
    clock.traffic = ScriptedTraffic(under_way=False)
    woken = []
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for second in range(1, 301):
            tasks.create_task(sleeper(clock, second, woken))
        await clock.advance(300)
    assert len(woken) == 300
    assert time.perf_counter() - started < 60


async def test_traffic_is_waited_for_until_it_stands():
    """Looks go on as long as every one of them sees something else."""
    clock = VirtualClock()
    clock.traffic = traffic = ScriptedTraffic(moves=20)
    await clock.advance(1)
    assert traffic.looks > 20


async def test_what_is_busy_is_waited_for_although_it_does_not_move():
    """A thread at work moves nothing that could be seen."""
    clock = VirtualClock()
    clock.traffic = traffic = ScriptedTraffic(busy=30)
    await clock.settle()
    assert traffic.busy < 0


async def test_threads_at_work_are_waited_for_but_not_for_ever(monkeypatch):
    """As long as one runs, the traffic may be in it; one that never rests is something else."""
    clock = VirtualClock()
    clock.traffic = ScriptedTraffic()
    runs = [True] * 30
    monkeypatch.setattr(clock_module, "another_runs", lambda: bool(runs and runs.pop()))
    await clock.settle()
    assert not runs

    monkeypatch.setattr(clock_module, "another_runs", lambda: True)
    started = time.perf_counter()
    await clock.settle()
    assert 0.2 < time.perf_counter() - started < clock_module.LONGEST_WAIT


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system is not asked")
def test_a_thread_that_works_is_told_from_one_that_waits():
    """Whether it has a processor or waits for one."""

    def becomes(state):
        until = time.monotonic() + 10
        while another_runs() is not state:
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        return True

    end = threading.Event()

    def work():
        while not end.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert becomes(True)
    finally:
        end.set()
        thread.join()
    waiting = threading.Thread(target=(end := threading.Event()).wait)
    waiting.start()
    try:
        assert becomes(False)
    finally:
        end.set()
        waiting.join()


async def test_a_clock_does_not_go_back(virtual_clock):
    """A sign too many is an error, not a step of nothing."""
    with pytest.raises(ValueError, match="never back: -5"):
        await virtual_clock.advance(-5)


async def test_upkeep_that_moves_nothing_is_not_waited_for_during_a_call():
    """Timers set from an empty context, as renewals are, cost no silence of their own."""

    async def looks(context):
        clock = VirtualClock()
        clock.traffic = traffic = ScriptedTraffic()
        sleeping = asyncio.create_task(sleeper(clock, 1, []), context=context)
        await clock.settle()
        before = traffic.looks
        await clock.advance(2)
        assert sleeping.done()
        return traffic.looks - before

    filled = contextvars.Context()
    filled.run(contextvars.ContextVar("filled").set, True)
    assert await looks(contextvars.Context()) < await looks(filled)

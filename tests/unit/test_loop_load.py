"""How busy an event loop and the threads beside it are, measured on the running loop itself."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.telemetry import loop_load
from meshrpc.telemetry.loop_load import AT_LEAST, BEAT, LONG_WINDOW, LoopLoad, Usage, join
from meshrpc.telemetry.thread_load import ThreadLoad
from meshrpc.telemetry.totals import Totals


@contextmanager
def measured(on_beat: Callable[[float], None] = lambda now: None) -> Iterator[LoopLoad]:
    """The measure of the running loop, given back at the end."""
    load = join(on_beat)
    try:
        yield load
    finally:
        load.leave(on_beat)


async def usage_of(load: LoopLoad, elapsed: float = AT_LEAST) -> Usage:
    """Wait until there is one of at least so many seconds."""
    until = load.now() + elapsed
    async with asyncio.timeout(30):
        while (usage := load.over(LONG_WINDOW)) is None or load.now() < until:  # noqa: ASYNC110
            await asyncio.sleep(BEAT)
    return usage


async def late(load: LoopLoad, seconds: float) -> float:
    """Sleep in small steps; return how much longer than that the machine let them take."""
    until, total = load.now() + seconds, 0.0
    while (since := load.now()) < until:
        await asyncio.sleep(0.01)
        total += max(0.0, load.now() - since - 0.01)
    return total


def is_measured() -> bool:
    """Whether anything stands before the running loop's `select`."""
    return "select" in vars(asyncio.get_running_loop()._selector)  # type: ignore[attr-defined]


# --- Totals -------------------------------------------------------------------------------


def test_growth_reaches_back_to_the_sample_of_that_time():
    """The newest sample that is at least so old counts; without one so old, the first."""
    totals = Totals(10.0)
    assert totals.growth(0.0, (0.0,), 1.0) == (0.0, (0.0,))
    for now in range(5):
        totals.note(float(now), (10.0 * now,))
    assert totals.growth(4.5, (45.0,), 2.0) == (2.5, (25.0,))
    assert totals.growth(4.0, (40.0,), 2.0) == (2.0, (20.0,))
    assert totals.growth(4.5, (45.0,), 100.0) == (4.5, (45.0,))
    assert totals.growth(4.5, (45.0,), 0.0) == (0.5, (5.0,))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.tuples(st.floats(0.01, 30), st.floats(0, 100)), min_size=1, max_size=60),
    seconds=st.floats(0.1, 10),
)
def test_growth_is_the_sum_of_what_came_since(steps, seconds):
    """Whatever the pauses, over at least the time asked for where there is so much."""
    totals = Totals(10.0)
    now, total, noted = 0.0, 0.0, []
    for wait, more in steps:
        now, total = now + wait, total + more
        totals.note(now, (total,))
        noted.append((now, more))
    elapsed, (grown,) = totals.growth(now, (total,), seconds)
    began = now - elapsed
    assert grown == pytest.approx(sum(more for at, more in noted if at > began + 1e-9))
    assert elapsed >= min(seconds, now - noted[0][0]) - 1e-9


def test_totals_keep_no_more_than_they_are_asked_for():
    """Samples of years cost as much as those of the window."""
    totals = Totals(10.0)
    for number in range(10_000):
        totals.note(number * 0.05, (number,))
    assert repr(totals) in {f"<Totals samples={each}>" for each in (201, 202)}


# --- The loop -----------------------------------------------------------------------------


async def test_a_loop_that_waits_is_not_busy():
    """Awaiting is no work, however much of it goes on."""
    waiting = [asyncio.create_task(asyncio.sleep(60)) for _ in range(100)]
    with measured() as load:
        began = load.now()
        stood_still, usage = await asyncio.gather(late(load, 1.0), usage_of(load, 1.0))
        elapsed = load.now() - began
    assert usage.busy < 0.2 + stood_still / elapsed
    assert usage.queue_time < 0.05 + stood_still
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)


async def test_what_blocks_the_loop_makes_it_busy_for_as_long_as_it_does():
    """Also what does not compute: nobody else's turn comes either way."""
    with measured() as load:
        await usage_of(load)  # begin with whole beats
        began, blocked, before = load.now(), 0.0, load._sample(load.now())
        stood_still = 0.0
        while load.now() < began + 2.0:
            since = load.now()
            time.sleep(0.05)  # noqa: ASYNC251 - what is measured
            blocked += load.now() - since
            stood_still += await late(load, 0.05)
        elapsed = load.now() - began
        busy = (load._sample(load.now())[0] - before[0]) / elapsed
        usage = load.over(2.0)
    assert blocked / elapsed - 0.1 < busy < (blocked + stood_still) / elapsed + 0.1
    assert usage is not None
    assert usage.busy == pytest.approx(busy, abs=0.15)


@pytest.mark.soak
async def test_computing_counts_like_blocking():
    """A loop that computes all the time is busy all the time, and so is the process."""
    with measured() as load:
        began = load.now()
        while load.now() < began + 1.0:
            sum(range(20_000))
            await asyncio.sleep(0)
        usage = load.over(1.0)
    assert usage is not None
    assert usage.busy > 0.9
    assert usage.cpu > 0.2  # on a machine that others use as well


async def test_queue_time_counts_all_who_would_have_waited():
    """A loop blocked once for 0.6 s: whoever came meanwhile waited for what was left of it.

    A heartbeat that only counted itself would have waited once, and be one of many.
    """
    with measured() as load:
        began = load.now()
        await asyncio.sleep(0)
        since = load.now()
        time.sleep(0.6)  # noqa: ASYNC251 - what is measured
        blocked = load.now() - since
        usage = await usage_of(load, 0.4)
        elapsed = load.now() - began
    assert usage.queue_time == pytest.approx(blocked**2 / 2 / elapsed, rel=0.35)


@pytest.mark.soak
async def test_a_stop_of_the_process_is_told_with_all_its_length():
    """Asked right after it, before any heartbeat, the measure knows of it."""
    with measured() as load:
        await usage_of(load)
        time.sleep(2.5)  # noqa: ASYNC251 - what is measured
        usage = load.over(2.0)
    assert usage is not None
    assert usage.busy > 0.9


async def test_nothing_is_told_of_too_short_a_time():
    """The first moments of a process say nothing."""
    with measured() as load:
        assert load.over(2.0) is None
        assert "not known yet" in repr(load)
        assert (await usage_of(load)).busy <= 1.0
        assert "busy=0." in repr(load)


async def test_all_users_of_a_loop_share_one_measure():
    """And the last to leave takes it away, whoever came first."""
    beats: list[str] = []
    one, other = (lambda _now, name=name: beats.append(name) for name in ("one", "other"))
    assert not is_measured()
    load = join(one)
    assert join(other) is load
    assert is_measured()
    await usage_of(load)
    assert beats[:4] == ["one", "other", "one", "other"]
    load.leave(one)
    assert is_measured()
    heard = len(beats)
    await usage_of(load)
    assert set(beats[heard:]) == {"other"}
    load.leave(other)
    assert not is_measured()
    heard = len(beats)
    await asyncio.sleep(3 * BEAT)
    assert len(beats) == heard


async def test_what_others_put_before_the_selector_stays():
    """Whether it was there before the measure, or came on top of it."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    own = selector.select

    def earlier(timeout=None):
        return own(timeout)

    def later(timeout=None):
        return own(timeout)

    selector.select = earlier
    try:
        with measured() as load:
            assert selector.select is not earlier
            await usage_of(load)
        assert selector.select is earlier
        with measured():
            selector.select = later
        assert selector.select is later
    finally:
        del selector.select


async def test_a_loop_without_a_selector_is_measured_by_its_thread():
    """Computing counts there; blocking without computing does not."""
    busy = loop_load._busy_of(object())  # type: ignore[arg-type]
    before = busy.seconds(0.0)
    time.sleep(0.3)  # noqa: ASYNC251 - what is measured
    blocked = busy.seconds(0.0) - before
    until = time.thread_time() + 0.2
    while time.thread_time() < until:
        pass
    assert blocked < 0.05
    assert busy.seconds(0.0) - before - blocked >= 0.2
    busy.end()


async def test_heartbeats_inherit_nothing_from_who_joined():
    """They run in an empty context: no request's deadline or trace reaches them."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("a request's")
    seen = []
    with measured(lambda _now: seen.append(variable.get("nothing"))) as load:
        await usage_of(load)
    assert set(seen) == {"nothing"}


def test_a_loop_that_ends_takes_its_measure_along():
    """Whoever never leaves keeps no loop alive, and another loop gets a measure of its own."""

    async def forget() -> weakref.ref[LoopLoad]:
        return weakref.ref(join(lambda now: None))

    async def again() -> LoopLoad:
        with measured() as load:
            assert load.loop is asyncio.get_running_loop()
            return load

    left = asyncio.run(forget())
    asyncio.run(again())
    gc.collect()
    assert left() is None


# --- The threads --------------------------------------------------------------------------


def test_threads_tell_what_is_taken_waited_for_and_computed():
    """Work that only waits takes a thread and no CPU; what runs still counts already."""
    load = ThreadLoad(4)
    begun, may_end = threading.Event(), threading.Event()

    def work() -> None:
        started = load.start(time.monotonic() - 0.25)
        begun.set()
        may_end.wait(10)
        load.finish(started)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(10)
    since, before = time.monotonic(), load.totals()
    time.sleep(0.2)
    waited, occupied, cpu = load.totals()
    passed = time.monotonic() - since
    assert repr(load) == "<ThreadLoad 1/4 taken>"
    assert waited == pytest.approx(0.25, abs=0.1)
    assert occupied - before[1] == pytest.approx(passed, abs=0.05)
    may_end.set()
    thread.join()
    after = load.totals()
    assert repr(load) == "<ThreadLoad 0/4 taken>"
    assert cpu <= after[2] < 0.1
    time.sleep(0.05)
    assert load.totals() == after


def test_threads_tell_the_cpu_time_of_their_work():
    """Whatever else the process computes."""
    load = ThreadLoad(1)
    started = load.start(time.monotonic())
    until = time.thread_time() + 0.1
    while time.thread_time() < until:
        pass
    load.finish(started)
    assert load.totals()[2] == pytest.approx(0.1, abs=0.05)

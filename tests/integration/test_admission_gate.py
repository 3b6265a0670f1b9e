"""Where calls wait for the event loop and for the limit: the gate and its concern, without grpc."""

import asyncio
import math
import time

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.interceptors.admission_gate import AdmissionGate
from meshrpc.interceptors.compose import Refused
from meshrpc.interceptors.concurrency import ConcurrencyInterceptor
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.policy.model import Concurrency, ConcurrencyMode
from meshrpc.wire import CALLER, CRITICALITY, NOT_EXECUTED, RETRY_PUSHBACK

OK = grpc.StatusCode.OK
FIXED, OFF = ConcurrencyMode.FIXED, ConcurrencyMode.OFF


class ManualClock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def fixed(clock):
    """Return a concern that lets two handlers run at a time."""
    return ConcurrencyInterceptor(Concurrency(FIXED, 2), clock=clock)


def call_of(clock, caller="a", *, timeout=None, is_stream=False, criticality="default"):
    metadata = ((CALLER, caller), (CRITICALITY, criticality))
    return ServerCall("/a/A", metadata, timeout=timeout, is_stream=is_stream, clock=clock)


def begin(concern, call):
    """Begin a call as `compose` does; the task is done once it has been let through."""

    async def arrive():
        waiting = concern.begin(call)
        if waiting is not None:
            await waiting

    return asyncio.create_task(arrive())


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what changes tells nobody
            await asyncio.sleep(0.001)


async def test_an_idle_process_lets_calls_through_at_once(clock):
    """No task, no future: what `begin` returns is None, once it is known that handlers are quick."""
    concern = ConcurrencyInterceptor(clock=clock)
    concern._loop.gate._costs["/a/A"] = 0.0001
    call = call_of(clock)
    assert concern.begin(call) is None
    concern.end(call, OK)
    assert concern.counts.running == 0
    assert concern.counts.admitted == 1


async def test_what_handlers_compute_is_measured_without_what_others_do(clock):
    """A busy event loop does not make handlers that only wait into ones that compute."""
    concern, waited = ConcurrencyInterceptor(clock=clock), []

    async def busy():
        while len(waited) < 3:
            time.sleep(0.005)  # noqa: ASYNC251 - it is
            await asyncio.sleep(0)

    async def quick():
        call = call_of(clock)
        concern._loop.gate._since_measured = 1_000  # every one is measured
        await begin(concern, call)
        concern.end(call, OK)
        waited.append(call)

    others = asyncio.create_task(busy())
    costs = []
    for _ in range(3):
        await quick()
        costs.append(concern._loop.gate._costs["/a/A"])
    await others
    assert min(costs) < 0.005


async def test_a_limit_is_kept_and_who_waits_goes_on_when_one_ends(clock, fixed):
    """Two run, one waits; when one ends, it is the third one's turn."""
    calls = [call_of(clock) for _ in range(3)]
    tasks = [begin(fixed, call) for call in calls]
    await until(lambda: tasks[0].done() and tasks[1].done())
    await turns()
    assert not tasks[2].done()
    assert (fixed.counts.running, fixed.counts.waiting) == (2, 1)
    fixed.end(calls[0], OK)
    await until(tasks[2].done)
    for call in calls[1:]:
        fixed.end(call, OK)
    assert (fixed.counts.running, fixed.counts.waiting) == (0, 0)


async def computing(concern, call, log=None):
    """Serve a call with a handler that computes."""
    waiting = concern.begin(call)
    if waiting is not None:
        await waiting
    time.sleep(0.002)  # noqa: ASYNC251 - as computing does, it holds the loop up
    if log is not None:
        log.append(str(call.criticality))
    concern.end(call, OK)


async def test_handlers_that_compute_are_begun_one_a_turn(clock):
    """Of ten that come at once; in between, what has come meanwhile can be looked at."""
    concern, log, seen = ConcurrencyInterceptor(clock=clock), [], 0
    tasks = [asyncio.create_task(computing(concern, call_of(clock), log)) for _ in range(10)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        assert len(log) <= seen + 1
        seen = len(log)
    assert len(log) == 10
    assert concern.counts.running == 0


async def test_calls_on_their_way_are_looked_at_before_a_handler_is_begun(clock):
    """A critical one that is still coming does not find a sheddable one before it."""

    class Intake(list):
        dropped = 0

        def fall_behind(self):
            raise AssertionError("there was time")

    concern, log, intake = ConcurrencyInterceptor(clock=clock), [], Intake(["coming"])
    concern.watch_intake(intake)
    sheddable = call_of(clock, criticality="sheddable")
    first = asyncio.create_task(computing(concern, sheddable, log))
    await turns(1)
    concern._loop.gate._saved = math.inf  # however slow this machine is at present
    await turns()
    assert not log
    critical = call_of(clock, criticality="critical")
    second = asyncio.create_task(computing(concern, critical, log))
    await turns(1)
    intake.clear()
    await asyncio.gather(first, second)
    assert log == ["critical", "sheddable"]


async def test_what_does_not_compute_is_never_refused_for_waiting(clock):
    """To serve it costs no more, as long as the limit has room; here all waits at once."""
    concern = ConcurrencyInterceptor(clock=clock)
    concern._loop.gate._costs["/a/A"] = 0.00001
    concern._loop.gate._since_measured = 1_000
    tasks = [begin(concern, call_of(clock)) for _ in range(100)]
    await turns(1)
    clock.time += 10
    await asyncio.gather(*tasks)
    assert sum(concern.counts.refused.values()) == 0


async def test_a_process_that_stood_still_refuses_nobody_for_it(clock):
    """What waited meanwhile is served, though it waited for longer than calls may."""
    concern = ConcurrencyInterceptor(clock=clock)
    concern._loop.gate._costs["/a/A"] = 0.002
    tasks = [asyncio.create_task(computing(concern, call_of(clock))) for _ in range(5)]
    await turns(3)
    clock.time += 0.3
    concern._loop.gate._turn_at -= 0.3
    await asyncio.gather(*tasks)
    assert sum(concern.counts.refused.values()) == 0


async def test_looking_at_calls_takes_no_more_time_than_handlers_get(clock):
    """With more coming than can be looked at, handlers are begun nevertheless."""

    class Intake(list):
        dropped = 7
        behind = 0

        def drop_late(self):
            pass

        def fall_behind(self):
            self.behind += 1

    concern, log, overloaded = ConcurrencyInterceptor(clock=clock), [], True
    intake = Intake(["always more"])
    concern.watch_intake(intake)
    concern._loop.gate.queue.is_overloaded = lambda _now: overloaded
    async with asyncio.timeout(10):
        await asyncio.gather(*(computing(concern, call_of(clock), log) for _ in range(20)))
    assert len(log) == 20
    assert concern.counts.dropped == 7
    assert intake.behind


async def test_a_call_that_waited_too_long_is_refused_with_when_to_come_back(clock, fixed):
    """RESOURCE_EXHAUSTED, not executed, with a pushback, in words that say why."""
    held = [call_of(clock) for _ in range(2)]
    for call in held:
        await begin(fixed, call)
    late = begin(fixed, call_of(clock))
    await turns()
    clock.time += 1.25
    with pytest.raises(Refused) as refused:
        await late
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.details == "overloaded: waited 1250 ms"
    trailers = dict(refused.value.trailers)
    assert trailers[NOT_EXECUTED] == "1"
    assert int(trailers[RETRY_PUSHBACK]) >= 100
    assert fixed.counts.refused["waited"] == 1
    assert fixed.counts.running == 2


async def test_one_call_too_many_makes_the_greediest_caller_lose_one(clock, fixed):
    """The queue is bounded, whatever the clock says."""
    for _ in range(2):
        await begin(fixed, call_of(clock))
    greedy = [begin(fixed, call_of(clock, "greedy")) for _ in range(1000)]
    await turns()
    modest = begin(fixed, call_of(clock, "modest"))
    with pytest.raises(Refused, match="1000 calls wait already"):
        await greedy[0]
    assert not modest.done()
    assert fixed.counts.refused["full"] == 1
    for task in (modest, *greedy[1:]):
        task.cancel()
    await asyncio.wait({modest, *greedy})
    assert fixed.counts.waiting == 0


async def learned(concern, clock, seconds, count=10):
    """Have the concern see so many calls that took `seconds`."""
    for _ in range(count):
        call = call_of(clock)
        await begin(concern, call)
        clock.time += seconds
        concern.end(call, OK)
        await turns(2)


async def test_a_call_with_less_time_than_a_quick_one_takes_is_refused_on_arrival(clock):
    """As its own deadline would do a little later; and it holds no place."""
    concern = ConcurrencyInterceptor(clock=clock)
    await learned(concern, clock, 0.05)
    for _ in range(10):
        call = call_of(clock, timeout=1.0)
        await begin(concern, call)
        concern.end(call, OK)
        await turns(2)
    clock.time += 0.001
    await learned(concern, clock, 0.05)
    concern._loop.times.methods["/a/A"]._fresh = 0.05  # the ten above took no time at all
    with pytest.raises(Refused) as refused:
        concern.begin(call_of(clock, timeout=0.01))
    assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert dict(refused.value.trailers) == {NOT_EXECUTED: "1"}
    assert concern.counts.refused["too_late"] == 1
    assert concern.counts.running == 0


async def test_a_call_whose_time_runs_out_while_it_waits_is_refused_for_the_overload(clock, fixed):
    """It was in time when it came: the wait is what took it, and no instance is to blame."""
    held = [call_of(clock) for _ in range(2)]
    for call in held:
        await begin(fixed, call)
    waiting = begin(fixed, call_of(clock, timeout=0.1))
    await turns()
    clock.time += 0.06
    fixed.end(held[0], OK)
    with pytest.raises(Refused, match="overloaded: waited until too little time was left") as why:
        await waiting
    assert why.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert fixed.counts.running == 1


async def test_a_call_whose_turn_comes_after_its_deadline_is_told_that(clock, fixed):
    """By the status that its caller's own clock gives at that moment, whichever is first."""
    held = [call_of(clock) for _ in range(2)]
    for call in held:
        await begin(fixed, call)
    waiting = begin(fixed, call_of(clock, timeout=0.05))
    await turns()
    clock.time += 0.06
    fixed.end(held[0], OK)
    with pytest.raises(Refused, match="deadline passed before its turn came") as why:
        await waiting
    assert why.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert dict(why.value.trailers) == {NOT_EXECUTED: "1"}
    assert fixed.counts.refused["hopeless"] == 1
    assert fixed.counts.running == 1


async def test_a_call_of_little_time_that_need_not_wait_is_begun(clock):
    """Even where more is usual: nobody is overloaded, and it may be quick enough."""
    concern = ConcurrencyInterceptor(clock=clock)
    concern._loop.gate._costs["/a/A"] = 0.002  # it computes, so that each call has to wait its turn
    await learned(concern, clock, 0.05)
    call = call_of(clock, timeout=0.02)
    await begin(concern, call)
    assert sum(concern.counts.refused.values()) == 0


async def test_a_stream_holds_a_place_in_a_fixed_limit_only(clock, fixed):
    """It may last for hours, most of which it does nothing."""
    adaptive = ConcurrencyInterceptor(clock=clock)
    for concern, running in ((adaptive, 0), (fixed, 1)):
        call = call_of(clock, is_stream=True)
        await begin(concern, call)
        assert concern.counts.running == running
        concern.end(call, OK)
        assert concern.counts.running == 0


async def test_switched_off_nothing_is_counted_or_refused(clock):
    """And what was admitted before still makes room for later."""
    concern = ConcurrencyInterceptor(Concurrency(FIXED, 1), clock=clock)
    first = call_of(clock)
    await begin(concern, first)
    concern.configure(Concurrency(OFF))
    for _ in range(5):
        call = call_of(clock)
        assert concern.begin(call) is None
        concern.end(call, OK)
    assert concern.counts.running == 1
    concern.end(first, OK)
    assert concern.counts.running == 0


async def test_a_policy_that_allows_more_lets_those_go_on_who_wait(clock):
    """Nobody has to end for it."""
    concern = ConcurrencyInterceptor(Concurrency(FIXED, 1), clock=clock)
    await begin(concern, call_of(clock))
    waiting = begin(concern, call_of(clock))
    await turns()
    concern.configure(Concurrency(FIXED, 2))
    await until(waiting.done)


async def test_handlers_that_have_become_slow_get_fewer_places(clock):
    """200 at a time that take four times as long as usual: the next ones wait."""
    concern = ConcurrencyInterceptor(clock=clock)
    for seconds in (*([0.1] * 12), 0.4, 0.4):
        calls = [call_of(clock) for _ in range(min(200, concern.counts.limit))]
        await asyncio.gather(*(begin(concern, call) for call in calls))
        clock.time += 0.5
        for call in calls:
            call.started_at = clock.time - seconds
            concern.end(call, OK)
    assert concern.counts.limit < 200
    assert concern.counts.running == 0


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["begin", "end", "cancel", "refuse", "wait", "turn", "limit"]),
            st.integers(0, 1000),
        ),
        max_size=60,
    )
)
def test_no_place_is_ever_lost(steps):
    """Whatever way calls go out, while they wait, as their turn comes, or later: all places are free."""

    async def run():
        clock = ManualClock()
        concern = ConcurrencyInterceptor(Concurrency(FIXED, 3), clock=clock)
        tasks, running = [], []

        async def serve(call):
            waiting = concern.begin(call)
            if waiting is not None:
                await waiting
            running.append(call)

        for step, number in steps:
            if step == "begin":
                timeout = None if number % 3 else number / 1000
                call = call_of(clock, f"c{number % 4}", timeout=timeout, is_stream=number % 7 == 0)
                tasks.append(asyncio.create_task(serve(call)))
            elif step == "cancel" and tasks:
                tasks[number % len(tasks)].cancel()
            elif step in ("end", "refuse") and running:
                call = running.pop(number % len(running))
                call.is_refused = step == "refuse"
                concern.end(call, OK if number % 2 else grpc.StatusCode.CANCELLED)
            elif step == "wait":
                clock.time += number / 2000
            elif step == "limit":
                concern.configure(Concurrency(FIXED, 1 + number % 5))
            else:
                await turns(number % 8)
            assert concern.counts.running >= len(running)
        async with asyncio.timeout(10):
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0)
                while running:
                    concern.end(running.pop(), OK)
        await asyncio.gather(*tasks, return_exceptions=True)
        while running:
            concern.end(running.pop(), OK)
        assert (concern.counts.running, concern.counts.waiting) == (0, 0)
        refused = sum(isinstance(task_error(task), Refused) for task in tasks)
        # Some were cancelled before they could hear of it.
        assert refused <= sum(concern.counts.refused.values()) <= len(tasks)

    def task_error(task):
        return None if task.cancelled() else task.exception()

    asyncio.run(run())


async def test_a_gate_says_how_it_is():
    """For people who look at a process."""
    assert repr(AdmissionGate(5, ManualClock())) == "<AdmissionGate running=0/5 waiting=0>"

"""One instance's place in a registry, on a virtual clock and a scripted registry."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections import deque
from dataclasses import replace

import pytest

from meshrpc.backoff import FIRST, LONGEST, backoff
from meshrpc.errors import ReadOnlyRegistry, RegistryError, StaleIncarnation
from meshrpc.load_report import LoadReport
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registration import (
    ASK_WITHIN,
    DEREGISTER_WITHIN,
    TOO_IDLE,
    Registration,
    has_moved,
)
from meshrpc.registry.registry import LEASE, RENEW_EVERY

INSTANCE = Instance(id="payment-1", service="payment", address="127.0.0.1:5001")
DOWN = RegistryError("cannot reach the registry: connection refused")
HANG = asyncio.Event  # an answer that never comes


class ScriptedRegistry:
    """Answers as told, and notes what it was asked; beyond its script, all is well."""

    acknowledges = True

    def __init__(self, clock, **script) -> None:
        self._clock = clock
        self._script = {name: deque(answers) for name, answers in script.items()}
        self.asked: list[tuple[str, Instance]] = []
        self.times: list[float] = []

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]

    async def _answer(self, name, instance, usual=None):
        self.asked.append((name, instance))
        self.times.append(self._clock.now())
        script = self._script.get(name)
        answer = script.popleft() if script else usual
        if answer is HANG:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def register(self, instance):
        await self._answer("register", instance)

    async def renew(self, instance):
        return await self._answer("renew", instance, True)

    async def drain(self, instance):
        await self._answer("drain", instance)

    async def deregister(self, instance):
        await self._answer("deregister", instance)


def keep(registry, clock) -> Registration:
    return Registration(registry, INSTANCE, clock=clock, rng=random.Random(1))


def warnings_in(caplog) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


async def test_start_registers_and_renews_until_stop(virtual_clock):
    """Renewals come at most `RENEW_EVERY` apart, so that two may be lost before the lease is."""
    registry = ScriptedRegistry(virtual_clock)
    registration = keep(registry, virtual_clock)
    await registration.start()
    assert registration.registered
    await virtual_clock.advance(60)
    await registration.stop()
    assert not registration.registered
    assert registry.names() == ["register", *["renew"] * (len(registry.asked) - 2), "deregister"]
    gaps = [b - a for a, b in zip(registry.times, registry.times[1:], strict=False)]
    assert max(gaps) <= RENEW_EVERY
    assert len(registry.asked) >= 60 / RENEW_EVERY


async def test_a_registry_that_is_down_delays_nothing_and_is_asked_until_it_is_back(
    virtual_clock, caplog
):
    """Start returns after the first attempt; an outage of an hour is a warning a minute."""
    caplog.set_level(logging.INFO, "meshrpc")
    registry = ScriptedRegistry(virtual_clock, register=[DOWN] * 600)
    registration = keep(registry, virtual_clock)
    await registration.start()
    assert not registration.registered
    assert warnings_in(caplog) == [f"cannot register payment-1: {DOWN}; trying again"]
    await virtual_clock.advance(3600)
    assert registration.registered
    assert len(warnings_in(caplog)) <= 61
    gaps = [b - a for a, b in zip(registry.times[:600], registry.times[1:600], strict=False)]
    assert min(gaps) >= FIRST / 2
    assert max(gaps) <= LONGEST
    assert caplog.records[-1].getMessage() == "payment-1 is registered"
    await registration.stop()


async def test_a_registry_that_does_not_answer_holds_nobody_up(virtual_clock, caplog):
    """Start and stop are bounded, each attempt too, and the log says what was waited for."""
    registry = ScriptedRegistry(virtual_clock, register=[HANG], drain=[HANG], deregister=[HANG])
    registration = keep(registry, virtual_clock)
    for step, within in (
        (registration.start, ASK_WITHIN),
        (registration.drain, ASK_WITHIN),
        (registration.stop, DEREGISTER_WITHIN),
    ):
        taken = asyncio.create_task(step())
        await virtual_clock.advance(within)
        assert taken.done()
    assert registry.names() == ["register", "drain", "deregister"]
    assert warnings_in(caplog) == [
        f"cannot {what}: the registry did not answer in time{end}"
        for what, end in [
            ("register payment-1", "; trying again"),
            ("drain payment-1", ""),
            ("deregister payment-1", ""),
        ]
    ]


async def test_a_lost_lease_is_answered_by_the_next_incarnation(virtual_clock):
    """The old incarnation is never registered again."""
    registry = ScriptedRegistry(virtual_clock, renew=[False, True, False])
    registration = keep(registry, virtual_clock)
    await registration.start()
    await virtual_clock.advance(4 * RENEW_EVERY)
    registered = [each.incarnation for name, each in registry.asked if name == "register"]
    assert registered == [0, 1, 2]
    assert registration.instance.incarnation == 2
    await registration.stop()


async def test_a_process_frozen_past_its_lease_comes_back(virtual_clock):
    """On a real lease table: gone while it is frozen, and back as incarnation 1 at the thaw."""
    async with MemoryRegistry(clock=virtual_clock) as registry:
        seen = []
        registry.watch("payment", seen.append)
        frozen_clock = type(virtual_clock)()
        registration = keep(registry, frozen_clock)
        await registration.start()
        await virtual_clock.advance(LEASE)  # its own clock stands still
        assert seen[-1].instances == ()
        await frozen_clock.advance(RENEW_EVERY)
        assert [each.incarnation for each in seen[-1].instances] == [1]
        await registration.stop()
        assert seen[-1].instances == ()


async def test_an_instance_that_somebody_deregistered_comes_back(virtual_clock):
    """It lives, and nobody but itself can end that: as the next incarnation, by its next renewal."""
    async with MemoryRegistry(clock=virtual_clock) as registry:
        seen = []
        registry.watch("payment", seen.append)
        registration = keep(registry, virtual_clock)
        await registration.start()
        await registry.deregister(INSTANCE)
        assert (seen[-1].instances, seen[-1].departed) == ((), {INSTANCE.id})
        await virtual_clock.advance(RENEW_EVERY)
        assert [each.incarnation for each in seen[-1].instances] == [1]
        assert seen[-1].departed == frozenset()
        await registration.stop()


async def test_an_operators_drain_outlives_what_the_instance_tells(virtual_clock):
    """Its load changes all the time, and it goes on renewing: it stays out until undrained."""
    async with MemoryRegistry(clock=virtual_clock) as registry:
        loads = iter(LoadReport(each / 10, 40.0) for each in (1, 3, 5, 7, 9))
        registration = Registration(
            registry, INSTANCE, load=lambda: next(loads, None), clock=virtual_clock
        )
        await registration.start()
        await registry.drain(INSTANCE)
        await virtual_clock.advance(3 * RENEW_EVERY)
        (record,) = await registry.instances("payment")
        assert (record.state, record.load is None) == (State.DRAINING, False)
        assert record.load.utilization > 0.4
        await registry.undrain(INSTANCE)
        await virtual_clock.advance(RENEW_EVERY)
        (record,) = await registry.instances("payment")
        assert record.state is State.ACTIVE
        await registration.stop()


async def test_a_fleet_comes_back_to_an_empty_registry_within_seconds_and_not_at_once(
    virtual_clock,
):
    """After an outage in which it forgot them: each as its next incarnation."""
    start = virtual_clock.now()
    outage = (start + 6.0, start + 30.0)
    tables = [MemoryRegistry(clock=virtual_clock), MemoryRegistry(clock=virtual_clock)]
    came = []

    class Failing:
        async def register(self, instance):
            await self._table().register(instance)
            came.append((virtual_clock.now(), instance.incarnation))

        async def renew(self, instance):
            return await self._table().renew(instance)

        async def deregister(self, instance):
            await self._table().deregister(instance)

        def _table(self):
            if outage[0] <= virtual_clock.now() < outage[1]:
                raise DOWN
            return tables[virtual_clock.now() >= outage[1]]

    fleet = [
        Registration(
            Failing(),
            replace(INSTANCE, id=f"payment-{number}"),
            clock=virtual_clock,
            rng=random.Random(number),
        )
        for number in range(60)
    ]
    for each in fleet:
        await each.start()
    came.clear()
    await virtual_clock.advance(outage[1] + LONGEST - start)
    assert len(await tables[1].instances("payment")) == len(fleet)
    assert {incarnation for _, incarnation in came} == {1}
    busiest = max(sum(at <= when < at + 0.5 for when, _ in came) for at, _ in came)
    assert busiest < len(fleet) / 3  # in half a second of the five
    for each in fleet:
        await each.stop()


async def test_the_next_incarnation_is_tried_until_it_is_in(virtual_clock):
    """An outage between losing the lease and registering again costs no second incarnation."""
    registry = ScriptedRegistry(virtual_clock, renew=[False], register=[None, DOWN, DOWN])
    registration = keep(registry, virtual_clock)
    await registration.start()
    await virtual_clock.advance(2 * RENEW_EVERY)
    registered = [each.incarnation for name, each in registry.asked if name == "register"]
    assert registered == [0, 1, 1, 1]
    assert registration.registered
    await registration.stop()


async def test_an_outage_shorter_than_the_lease_changes_nothing(virtual_clock, caplog):
    """Renewals go on as the same incarnation when the registry is back."""
    registry = ScriptedRegistry(virtual_clock, renew=[DOWN, DOWN, True])
    registration = keep(registry, virtual_clock)
    await registration.start()
    await virtual_clock.advance(20)
    assert registry.names().count("register") == 1
    assert registration.registered
    assert len(warnings_in(caplog)) == 1
    await registration.stop()


async def test_any_failure_of_a_registry_is_survived(virtual_clock, caplog):
    """A registry that raises what it should not is tried again like one that is down."""
    registry = ScriptedRegistry(virtual_clock, register=[KeyError("oops")])
    registration = keep(registry, virtual_clock)
    await registration.start()
    await virtual_clock.advance(1)
    assert registration.registered
    assert warnings_in(caplog) == ["cannot register payment-1: KeyError: 'oops'; trying again"]
    await registration.stop()


async def test_a_read_only_registry_is_told_once_and_left_alone(virtual_clock, caplog):
    """The service goes on unregistered, and nothing is asked of the registry again."""
    registry = ScriptedRegistry(virtual_clock, register=[ReadOnlyRegistry("a fixed list")])
    registration = keep(registry, virtual_clock)
    await registration.start()
    await virtual_clock.advance(60)
    await registration.drain()
    await registration.stop()
    assert registry.names() == ["register"]
    assert warnings_in(caplog) == ["payment-1 is not registered: a fixed list"]


async def test_an_instance_that_was_replaced_does_not_fight_for_its_id(virtual_clock, caplog):
    """It does not register again, and does not remove the newer record when it stops."""
    stale = StaleIncarnation("incarnation 1 comes after 2")
    registry = ScriptedRegistry(virtual_clock, renew=[False], register=[None, stale])
    registration = keep(registry, virtual_clock)
    await registration.start()
    await virtual_clock.advance(60)
    assert not registration.registered
    await registration.stop()
    assert registry.names() == ["register", "renew", "register"]
    assert caplog.records[-1].levelno == logging.ERROR


async def test_draining_marks_the_instance_and_registers_nothing_afterwards(virtual_clock):
    """From drain on there is no renewal and no registration, only the end."""
    registry = ScriptedRegistry(virtual_clock)
    registration = keep(registry, virtual_clock)
    await registration.start()
    await registration.drain()
    await registration.drain()
    await virtual_clock.advance(60)
    await registration.stop()
    assert registry.names() == ["register", "drain", "deregister"]
    assert [each.state for _, each in registry.asked[1:]] == [State.DRAINING] * 2


async def test_errors_while_leaving_are_logged_not_raised(virtual_clock, caplog):
    """Stopping goes on when the registry is away: the lease runs out by itself."""
    registry = ScriptedRegistry(virtual_clock, drain=[DOWN], deregister=[DOWN])
    registration = keep(registry, virtual_clock)
    await registration.start()
    await registration.drain()
    await registration.stop()
    assert warnings_in(caplog) == [
        f"cannot drain payment-1: {DOWN}",
        f"cannot deregister payment-1: {DOWN}",
    ]


async def test_stopping_during_a_registration_takes_it_back(virtual_clock):
    """A request under way may have arrived: it is ended first, then deregistered."""
    registry = ScriptedRegistry(virtual_clock, register=[DOWN, HANG])
    registration = keep(registry, virtual_clock)
    await registration.start()
    await virtual_clock.advance(1)  # into the second attempt, which hangs
    await registration.stop()
    await virtual_clock.advance(60)
    assert registry.names() == ["register", "register", "deregister"]


async def test_leaving_ends_also_if_a_cancellation_gets_lost(virtual_clock):
    """Calls of grpcio's that fail in that moment raise their error in its place."""

    class Swallowing(ScriptedRegistry):
        async def renew(self, instance):
            try:
                await super().renew(instance)
            except asyncio.CancelledError:
                raise DOWN from None

    registry = Swallowing(virtual_clock, renew=[HANG])
    registration = keep(registry, virtual_clock)
    await registration.start()
    await virtual_clock.advance(RENEW_EVERY)
    async with asyncio.timeout(5):
        await registration.stop()
    assert registry.names() == ["register", "renew", "deregister"]


async def test_stopping_what_never_started_asks_nothing(virtual_clock):
    """And stopping twice deregisters once."""
    registry = ScriptedRegistry(virtual_clock)
    idle = keep(registry, virtual_clock)
    await idle.stop()
    assert registry.asked == []
    registration = keep(registry, virtual_clock)
    await registration.start()
    await registration.stop()
    await registration.stop()
    assert registry.names() == ["register", "deregister"]
    with pytest.raises(RuntimeError, match="started before"):
        await registration.start()


async def test_a_cancelled_start_leaves_no_task(virtual_clock):
    """Giving up on start ends what it began."""
    before = asyncio.all_tasks()
    registration = keep(ScriptedRegistry(virtual_clock, register=[HANG]), virtual_clock)
    start = asyncio.create_task(registration.start())
    await virtual_clock.settle()
    start.cancel()
    await asyncio.wait([start])
    assert start.cancelled()
    assert asyncio.all_tasks() == before


async def test_renewals_inherit_nothing_from_who_started_them(virtual_clock):
    """The keeper runs in an empty context: no request's deadline or trace reaches it."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen = []

    class Looking(ScriptedRegistry):
        async def register(self, instance):
            seen.append(variable.get("nothing"))

    variable.set("a request's")
    registration = keep(Looking(virtual_clock), virtual_clock)
    await registration.start()
    await registration.stop()
    assert seen == ["nothing"]


async def test_repr_is_a_status_line(virtual_clock):
    """It says which incarnation, and whether the registry has it."""
    registration = keep(ScriptedRegistry(virtual_clock), virtual_clock)
    await registration.start()
    assert repr(registration) == "<Registration payment-1 incarnation=0 registered>"
    await registration.stop()
    assert repr(registration) == "<Registration payment-1 incarnation=0 ended>"


@pytest.mark.parametrize(
    ("failures", "most"), [(1, 0.1), (2, 0.2), (6, 3.2), (7, 5.0), (9999, 5.0)]
)
def test_backoff_doubles_up_to_its_limit(failures, most):
    """Each wait lies in the upper half of what the failures so far call for."""
    rng = random.Random(7)
    waits = [backoff(failures, rng) for _ in range(200)]
    assert most / 2 <= min(waits) < max(waits) <= most


async def test_an_instance_that_takes_a_dead_ones_place_deregisters_it(virtual_clock):
    """The dead one's record does not have to wait for the end of its lease."""
    registry = MemoryRegistry(clock=virtual_clock)
    dead = Instance(id="payment-dead", service="payment", address="127.0.0.1:1", pid=1)
    await registry.register(dead)
    alive = Instance(id="payment-alive", service="payment", address="127.0.0.1:2", pid=2)
    registration = Registration(
        registry, alive, replaces="payment-dead", clock=virtual_clock, rng=random.Random(1)
    )
    await registration.start()
    await virtual_clock.settle()
    assert [i.id for i in await registry.instances("payment")] == ["payment-alive"]
    await registration.stop()


# --- What it says of its load -------------------------------------------------------------


class Loaded:
    """A registration whose instance is as busy as a test says."""

    def __init__(self, registry, clock, load: LoadReport | None = None) -> None:
        self.now = load
        self.registry = registry
        self.registration = Registration(
            registry, INSTANCE, load=lambda: self.now, clock=clock, rng=random.Random(1)
        )

    @property
    def told(self) -> list[LoadReport | None]:
        """The loads that were registered."""
        return [each.load for name, each in self.registry.asked if name == "register"]


async def test_a_load_is_published_with_a_renewal_once_it_has_moved(virtual_clock):
    """At most once per renewal, which comes first; what moved too little is not published."""
    loaded = Loaded(ScriptedRegistry(virtual_clock), virtual_clock)
    await loaded.registration.start()
    busy = (0.3, 0.32, 0.39, 0.41, 0.5, 0.52)
    reports = [LoadReport(utilization, 100 * utilization) for utilization in busy]
    for loaded.now in reports:
        await virtual_clock.advance(RENEW_EVERY)
    assert loaded.told == [None, reports[0], reports[3], reports[5]]
    assert loaded.registration.instance.load == reports[5]
    names = loaded.registry.names()
    assert all(names[at - 1] == "renew" for at in range(1, len(names)) if names[at] == "register")
    assert names.count("renew") >= len(reports)
    await loaded.registration.stop()


async def test_a_steady_load_is_published_once(virtual_clock):
    """An hour of chance is no change: thousands of instances must not be pushed all the time."""
    loaded = Loaded(ScriptedRegistry(virtual_clock), virtual_clock)
    await loaded.registration.start()
    rng = random.Random(3)
    for _ in range(720):
        utilization = rng.uniform(0.28, 0.32)
        loaded.now = LoadReport(utilization, utilization * rng.uniform(360, 400))
        await virtual_clock.advance(RENEW_EVERY)
    assert len(loaded.told) == 2
    await loaded.registration.stop()


async def test_who_reports_no_load_any_more_takes_it_back(virtual_clock):
    """A record must not tell for ever of what was."""
    loaded = Loaded(ScriptedRegistry(virtual_clock), virtual_clock, LoadReport(0.3, 1.0))
    await loaded.registration.start()
    loaded.now = None
    await virtual_clock.advance(3 * RENEW_EVERY)
    assert loaded.told == [LoadReport(0.3, 1.0), None]
    await loaded.registration.stop()


async def test_a_load_that_did_not_arrive_is_published_again(virtual_clock):
    """What counts as told is what the registry took."""
    registry = ScriptedRegistry(virtual_clock, register=[None, DOWN])
    loaded = Loaded(registry, virtual_clock)
    await loaded.registration.start()
    loaded.now = LoadReport(0.3, 1.0)
    await virtual_clock.advance(2 * RENEW_EVERY)
    assert loaded.told == [None, loaded.now, loaded.now]
    assert loaded.registration.instance.load == loaded.now
    await loaded.registration.stop()


async def test_a_load_never_brings_back_a_lost_lease(virtual_clock):
    """That is for the next incarnation, which tells the load along with the rest."""
    loaded = Loaded(ScriptedRegistry(virtual_clock, renew=[False]), virtual_clock)
    await loaded.registration.start()
    loaded.now = LoadReport(0.3, 1.0)
    await virtual_clock.advance(RENEW_EVERY)
    registered = [each for name, each in loaded.registry.asked if name == "register"]
    assert [(each.incarnation, each.load) for each in registered] == [(0, None), (1, loaded.now)]
    await loaded.registration.stop()


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (None, None, False),
        (None, LoadReport(0.0, 0.0), True),
        (LoadReport(0.0, 0.0), None, True),
        (LoadReport(0.3, 30.0), LoadReport(0.39, 39.0), False),
        (LoadReport(0.3, 30.0), LoadReport(0.41, 41.0), True),
        (LoadReport(0.41, 41.0), LoadReport(0.3, 30.0), True),
        (LoadReport(0.3, 30.0), LoadReport(0.3, 37.0), False),
        (LoadReport(0.3, 30.0), LoadReport(0.3, 38.0), True),
        (LoadReport(0.3, 38.0), LoadReport(0.3, 30.0), True),
        (LoadReport(0.3, 30.0), LoadReport(0.3, 0.0), True),
        (LoadReport(0.3, 0.0), LoadReport(0.3, 0.0), False),
        (LoadReport(0.01, 1.0), LoadReport(0.01, 9.0), False),
        (LoadReport(TOO_IDLE, 1.0), LoadReport(TOO_IDLE, 9.0), True),
        (LoadReport(0.0, 0.0), LoadReport(0.09, 9.0), False),
        (LoadReport(0.3, 30.0, queue_time=0.001), LoadReport(0.3, 30.0, queue_time=9.0), False),
    ],
)
def test_a_load_has_moved_when_callers_would_weigh_it_differently(before, after, moved):
    """By its utilization, or by what it carries for that; an idle one's ratio is chance."""
    assert has_moved(before, after) is moved

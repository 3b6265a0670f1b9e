"""What callers notice when the registry goes away, comes back, or talks nonsense: nothing.

On the embedded registry and on a real Consul, both at the same time, under a load of 100 calls/s each,
half of which may not be repeated. Every test has a short form, for which instances hold short leases,
and a long one, with leases as they are.
"""

import asyncio
import logging

import pytest

from tests.faults import outages
from tests.faults.load import STOOD_STILL
from tests.faults.methods import GET
from tests.faults.registries import CALLERS, GATES, SERVICES

pytestmark = [pytest.mark.process, pytest.mark.alone]

log = logging.getLogger(__name__)

SHORT_LEASE = 3.0
"""Seconds: a fifth of the usual, and renewed five times as often."""
USUAL_LEASE = None
RECOVERED_WITHIN = 10.0
FIRST_ANSWER_WITHIN = 1.0


def forms(names, *, short=(), long=()):
    """Run a test in forms of so many values for its `names`, short ones and long ones."""
    cases = [pytest.param(SHORT_LEASE, *values, id=_id("short", values)) for values in short]
    marks = (pytest.mark.soak, pytest.mark.timeout(240))
    cases += [
        pytest.param(USUAL_LEASE, *values, id=_id("long", values), marks=marks) for values in long
    ]
    return pytest.mark.parametrize(("registries", *names), cases, indirect=["registries"])


def _id(form, values):
    return "-".join([form, *(value for value in values if isinstance(value, str))])


async def on_all(registries, scenario, *arguments):
    """Let a scenario happen on all of the registries, and return what came of it.

    Once more, if that tells nothing, because the machine had other things to do.
    """
    found = await _at_once(registries, scenario, *arguments)
    if any(outage.run.lag.worst > STOOD_STILL for outage in found):
        await asyncio.gather(*(rig.mended() for rig in registries))
        found = await _at_once(registries, scenario, *arguments)
    return found


async def _at_once(registries, scenario, *arguments):
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(scenario(rig, *arguments)) for rig in registries]
    for run in runs:
        log.info("%r", run.result())
    return [run.result() for run in runs]


def check_unnoticed(outage):
    """No call failed, nobody was ejected, and all was as before in time."""
    check_happened(outage)
    assert outage.failed() == [], outage
    assert outage.ejected == set(), outage
    assert outage.second["ejected"] == [], outage
    check_recovered(outage)


def check_happened(outage):
    """The registry was away, and both callers made calls."""
    assert outage.is_one, outage
    assert len(outage.run.mesh.calls) > 100
    assert outage.second["calls"] > 10


def check_recovered(outage):
    """All instances are listed, and a change was seen by all callers, in time."""
    taken = {mark: outage.after(mark) for mark in ("listed", "joined", "left")}
    assert max(taken.values()) <= RECOVERED_WITHIN, (outage, taken)


@pytest.mark.consul
def test_there_is_a_consul_for_these_tests(consul_binary):
    """Without one they say what holds for the embedded registry only, and this is skipped."""
    assert consul_binary


@forms(["seconds"], short=[[2.0]], long=[[60.0]])
async def test_a_registry_that_is_killed_costs_no_call(registries, seconds):
    """It is away for a while, and back with what it knew."""
    for outage in await on_all(registries, outages.killed, seconds):
        check_unnoticed(outage)


@forms([], short=[[]], long=[[]])
async def test_a_registry_that_comes_back_empty_costs_no_call(registries):
    """It knows nobody until all have registered again."""
    for outage in await on_all(registries, outages.emptied):
        check_unnoticed(outage)


@forms(["late", "seconds"], short=[[3.0, 4.0]], long=[[30.0, 60.0]])
async def test_a_registry_that_answers_late_costs_no_call(registries, late, seconds):
    """So late that nobody waits for it."""
    for outage in await on_all(registries, outages.slowed, late, seconds):
        check_unnoticed(outage)


@forms(["each"], short=[[0.4]], long=[[9.0]])
async def test_a_registry_that_returns_garbage_costs_no_call(registries, each):
    """Pages, half documents, other types, errors, other protocols, one after the other."""
    for outage in await on_all(registries, outages.spoilt, each):
        check_unnoticed(outage)


@forms(
    ["which", "gates", "word", "seconds"],
    short=[
        ["services", [SERVICES], "hold", 4.5],
        ["callers", [CALLERS], "hold", 2.5],
    ],
    long=[
        ["services", [SERVICES], "hold", 60.0],
        ["callers", [CALLERS], "hold", 60.0],
        ["both", GATES, "hold", 60.0],
        ["both", GATES, "hold-answers", 60.0],
        ["both", GATES, "hold-requests", 60.0],
    ],
)
async def test_a_registry_that_is_cut_off_costs_no_call(registries, which, gates, word, seconds):
    """From services, whose leases run out one by one; from callers; from both, one way or both."""
    for outage in await on_all(registries, outages.cut_off, gates, word, seconds):
        check_unnoticed(outage)


@forms(["seconds"], short=[[1.0]], long=[[60.0]])
async def test_while_it_is_down_callers_start_and_instances_die(registries, seconds):
    """A caller that starts has its first call answered in a second: whom to call is on disk. An
    instance that is killed costs no idempotent call, though nobody hears of it."""
    for outage in await on_all(registries, outages.killed_and_more, seconds):
        check_happened(outage)
        assert float(outage.first_answer) <= FIRST_ANSWER_WITHIN, outage
        assert outage.failed(GET) == [], outage
        check_recovered(outage)

"""What callers notice when one instance of four breaks, under a steady load.

Every test puts the same calls on a bare grpcio channel as well. What becomes of those is shown by
`benchmarks/faults.py`; here they prove that the fault was one.
"""

import grpc
import pytest

from tests.faults import scenarios
from tests.faults.account import (
    fast_after,
    has_explained,
    is_fast,
    p99,
    share,
    unaffected_p99,
    went_to_a_broken,
)
from tests.faults.methods import GET, PUT
from tests.faults.victim import SLOWER, TAKES, TOLD_TO_FAIL

PER_ATTEMPT = """
    retry: {per_attempt_timeout: 200ms}
"""
ONE_AT_A_TIME = """
    balancer: round_robin
"""

pytestmark = [pytest.mark.process, pytest.mark.alone]

OUT_WITHIN = 3.0
LOOKED_AT = OUT_WITHIN + 0.3
"""Seconds that a fault lasts, so that there are sixty calls which the instance must not get."""
SLACK = 0.05
"""Seconds by which a call may end after its deadline."""


def check_every_call(run):
    """What holds in every run: calls end in time, and what may not be repeated is not.

    One of those that failed with its connection says that it may have been executed.
    """
    assert run.overdue("mesh") <= SLACK
    broken = [call for call in run.mesh.failed(PUT) if call.code is grpc.StatusCode.UNAVAILABLE]
    assert [c for c in broken if not has_explained(c) and c.details != TOLD_TO_FAIL] == []
    executions = run.executions("mesh")
    assert [c for c in run.mesh.calls if c.method == PUT and executions[c.number] > 1] == []


def check_out(run, victim):
    """The instance got no new calls from three seconds after the fault on."""
    assert went_to_a_broken(victim, run, OUT_WITHIN) == []


def is_readmitted(victim):
    """Return what says whether an instance has its share of the calls again."""
    return lambda run: len(run.attempts_at(victim, run.marks["healed"])) >= 3


def check_one_probe(run, victim):
    """It was asked once first, and again only when that was answered."""
    first, *others = run.attempts_at(victim, run.marks["healed"])
    assert len(others) >= 2
    assert min(other.began for other in others) >= first.ended


def check_killed(run):
    """Calls that may be repeated succeed; others fail only if they may have been executed.

    Those are left out that failed because this process, or its machine, stood still.
    """
    assert run.mesh.failed_by(run.lag, GET) == []
    unexplained = [call for call in run.mesh.failed_by(run.lag, PUT) if not has_explained(call)]
    assert unexplained == []
    check_every_call(run)


async def test_nobody_notices_that_an_instance_is_killed(fleet):
    """No idempotent call fails; another one only if it may have been executed, and says so."""
    check_killed(await scenarios.kill_one(fleet, dead=1.5))


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_nobody_notices_in_ten_of_ten_runs(fleet):
    """The same, ten times in a row, each time with other calls."""
    for seed in range(10):
        fleet.heal()
        check_killed(await scenarios.kill_one(fleet, seed=seed))


async def test_a_frozen_instance_is_out_in_time_and_comes_back_by_one_probe(fleet):
    """SIGSTOP: no new calls within 3 s, none late; after SIGCONT one call is answered first."""
    run = await scenarios.freeze_one(fleet, frozen=LOOKED_AT, until=is_readmitted(fleet[0]))
    check_every_call(run)
    check_out(run, fleet[0])
    check_one_probe(run, fleet[0])
    assert len(run.bare.failed()) > 10 * len(run.mesh.failed())


async def test_with_a_timeout_per_attempt_no_idempotent_call_notices_a_frozen_instance(fleet):
    """The calls it had go elsewhere within their own deadline."""
    with fleet.following(PER_ATTEMPT):
        run = await scenarios.freeze_one(fleet, frozen=2.0, after=0)
    check_every_call(run)
    assert run.mesh.failed_by(run.lag, GET) == []
    assert len(run.bare.failed(GET)) > 10


async def test_an_instance_that_was_started_again_comes_back_slowly(fleet):
    """For two seconds it gets less than half of its share, and no idempotent call fails."""
    with fleet.following(ONE_AT_A_TIME):
        run = await scenarios.restart_one(fleet, after=2.5)
    check_killed(run)
    back = min(each.began for each in run.attempts_at(fleet[0], run.marks["healed"]))
    assert 0 < share(run, "mesh", fleet[0], back, back + 2) < 0.5 / 4


@pytest.mark.soak
async def test_an_instance_behind_a_black_hole_is_out_in_time(wired):
    """A proxy that passes nothing on: no new calls within 3 s, none late, one probe after."""
    run = await scenarios.blackhole_one(wired, until=is_readmitted(wired[0]))
    check_every_call(run)
    check_out(run, wired[0])
    check_one_probe(run, wired[0])
    assert len(run.bare.failed()) > 10 * len(run.mesh.failed())


async def test_an_instance_whose_answers_get_lost_is_out_in_time(apart, rig):
    """A blackhole route, one way, in the kernel: the same."""
    network = rig.network
    run = await scenarios.lose_packets(
        apart, network.swallow, network.pass_on, cut=LOOKED_AT, until=is_readmitted(apart[0])
    )
    check_every_call(run)
    check_out(run, apart[0])
    check_one_probe(run, apart[0])
    assert len(run.bare.failed()) > 10 * len(run.mesh.failed())


@pytest.mark.soak
async def test_an_instance_whose_link_is_down_is_out_in_time(apart, rig):
    """Nothing gets through, either way, in the kernel: the same."""
    network = rig.network
    run = await scenarios.lose_packets(
        apart, network.cut, network.join, until=is_readmitted(apart[0])
    )
    check_every_call(run)
    check_out(run, apart[0])
    check_one_probe(run, apart[0])


async def test_calls_are_fast_again_though_an_instance_is_slow(fleet):
    """Twenty times slower, it gets less than a quarter of its share after a second; within ten, the
    p99 is at most twice that of calls to healthy instances. A bare channel's is the slow one's."""
    run = await scenarios.slow_one(fleet, healthy=0.5, slow=14.0, until=is_fast)
    check_every_call(run)
    assert run.mesh.failed_by(run.lag) == []
    begin, end = run.marks["fault"] + 1, run.marks["healed"]
    assert share(run, "mesh", fleet[0], begin, end) < 0.25 / 4
    assert share(run, "bare", fleet[0], begin, end) > 0.2
    assert fast_after(run, "mesh") <= 10
    assert p99(run.bare.meant(begin, end)) >= TAKES * SLOWER


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_calls_stay_fast_while_an_instance_is_slow(fleet):
    """The same, for a minute: of all calls from the tenth second on."""
    run = await scenarios.slow_one(fleet, slow=60.0)
    begin, end = run.marks["fault"] + 10, run.marks["healed"]
    assert p99(run.mesh.meant(begin, end)) <= 2 * unaffected_p99(run, begin, end)
    assert p99(run.bare.meant(begin, end)) >= TAKES * SLOWER


async def test_an_instance_that_fails_every_call_is_ejected(fleet):
    """Five failures at most reach callers' attempts; idempotent calls succeed; one probe after."""
    run = await scenarios.misbehave_one(
        fleet, "fail", bad=3.0, after=4.0, until=is_readmitted(fleet[0])
    )
    check_every_call(run)
    assert run.mesh.failed_by(run.lag, GET) == []
    tried = [
        a for a in run.attempts_at(fleet[0], run.marks["fault"]) if a.began < run.marks["healed"]
    ]
    assert 1 <= len(tried) <= 5
    check_one_probe(run, fleet[0])
    assert len(run.bare.failed()) > 10 * len(run.mesh.failed())


@pytest.mark.parametrize("word", ["block", pytest.param("hang", marks=pytest.mark.soak)])
async def test_an_instance_that_does_not_answer_is_out_in_time(fleet, word):
    """Its event loop is blocked by a handler, or its handlers never return."""
    run = await scenarios.misbehave_one(fleet, word, bad=LOOKED_AT, after=0)
    check_every_call(run)
    late = run.attempts_at(fleet[0], run.marks["fault"] + OUT_WITHIN)
    assert len(late) <= 1  # a probe
    assert len(run.bare.failed()) > 10 * len(run.mesh.failed())


async def test_refused_connections_cost_no_idempotent_call(wired):
    """Connections are reset once, then refused, then accepted again."""
    run = await scenarios.refuse_one(wired, refusing=1.0, until=is_readmitted(wired[0]))
    check_killed(run)


@pytest.mark.soak
async def test_a_flapping_instance_costs_no_idempotent_call(fleet):
    """Killed and started again, twice; once is told by `started_again` above."""
    check_killed(await scenarios.flap_one(fleet, times=2, down=0.5, up=1.0))


@pytest.mark.soak
async def test_an_instance_that_flaps_for_long_costs_no_idempotent_call(fleet):
    """Killed and started again, five times, down for two seconds and up for two."""
    check_killed(await scenarios.flap_one(fleet, times=5))

"""A limit of 100/s over six processes: what is admitted, and how far beyond it things can go.

The bound is that of docs/rate-limits.md: at any time the shares in use add up to no more than the
whole, and a first share for each process that control has not answered yet; and no window admits
more than what they allow in it, and the burst, and one call for each process.
"""

import math

import pytest

from meshrpc.limits.shares import FIRST, WHOLE
from meshrpc.policy.model import RateLimit, ShareMode
from tests.simulation.fleet_limit import CHANGE_OF_STREAM, DEMAND, LIMIT, Fleet, excess

QUICK = range(1, 4)
MANY = range(4, 51)
SEEDS = [*QUICK, *(pytest.param(seed, marks=pytest.mark.soak) for seed in MANY)]
FIRST_SHARE = FIRST / WHOLE
LEASE = 15.0
ANSWERED = 1.0
"""Seconds after its first report within which a process's first share is no longer on top."""


def fleet_of_six(seed):
    fleet = Fleet(seed)
    for number, rate in enumerate(DEMAND):
        fleet.start(f"p{number}", a=rate)
    return fleet


def windows(fleet, start, end, width=5.0, step=0.25):
    """How much was admitted a second, in each window between start and end."""
    count = int((end - width - start) / step) + 1
    return [
        fleet.admitted(start + n * step, start + n * step + width) / width for n in range(count)
    ]


def largest_sum(fleet, start, end):
    """The most that the shares in use added up to between start and end."""
    before = [total for at, total in fleet.sums if at <= start]
    return max([before[-1], *(total for at, total in fleet.sums if start <= at < end)])


def stays_in_its_bound(fleet):
    """No window at all admits more than what the shares in use allow, the burst, and one each."""
    processes = len({name for _, name, _, _ in fleet.calls})
    return excess(fleet) <= LIMIT.burst + processes


@pytest.mark.parametrize("seed", SEEDS)
def test_in_steady_state_skewed_demand_gets_the_whole_limit(seed):
    """300, 60, 20, 10, 5 and 1 calls a second: 95 to 103 are admitted a second in each 5 s window,
    and the small ones get what they want."""
    fleet = fleet_of_six(seed)
    fleet.run(60.0)
    admitted = windows(fleet, 20.0, 60.0)
    assert min(admitted) >= 95.0
    assert max(admitted) <= 103.0
    assert largest_sum(fleet, 0.0, 60.0) <= 1.0
    assert stays_in_its_bound(fleet)
    for number, rate in enumerate(DEMAND[2:], start=2):
        assert fleet.admitted(20.0, 60.0, f"p{number}") >= 0.7 * rate * 40
    # The two that want more than that have equal parts of what is left.
    most = [fleet.admitted(20.0, 60.0, name) for name in ("p0", "p1")]
    assert max(most) - min(most) <= 0.03 * max(most)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_share_of_one_that_dies_comes_back_with_its_lease(seed):
    """Until then its share is missing and nobody has it twice; then the others have the whole."""
    fleet = fleet_of_six(seed)
    fleet.run(40.0)
    share = fleet.processes["p0"].share("") / WHOLE
    fleet.die("p0")
    fleet.run(90.0)
    assert largest_sum(fleet, 40.001, 40.0 + LEASE - 1.5) <= 1.0 - share + 0.01
    assert largest_sum(fleet, 20.0, 90.0) <= 1.0
    assert sum(p.share("") for p in fleet.processes.values()) >= 0.99 * WHOLE
    # 96 are wanted by those who are left.
    assert min(windows(fleet, 40.0 + LEASE + 5.0, 90.0)) >= 0.95 * sum(DEMAND[1:])
    assert stays_in_its_bound(fleet)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_that_starts_adds_its_first_share_until_it_is_answered(seed):
    """A tenth more than the whole, for less than a second and a half; then the whole again."""
    fleet = fleet_of_six(seed)
    fleet.run(40.0)
    fleet.start("p6", a=150.0)
    fleet.run(70.0)
    assert 1.0 < largest_sum(fleet, 40.0, 45.0) <= 1.0 + FIRST_SHARE
    assert largest_sum(fleet, 40.0 + CHANGE_OF_STREAM + ANSWERED, 70.0) <= 1.0
    assert min(windows(fleet, 45.0, 70.0)) >= 95.0
    assert max(windows(fleet, 40.0, 70.0)) <= 103.0 + FIRST_SHARE * LIMIT.rate / 5 + LIMIT.burst / 5
    assert stays_in_its_bound(fleet)


@pytest.mark.parametrize("seed", SEEDS)
def test_shares_follow_demand_that_turns_round(seed):
    """The smallest becomes the largest: within ten seconds the whole limit is in use again, and
    at no time more than the whole is given."""
    fleet = fleet_of_six(seed)
    fleet.run(40.0)
    for process, rate in zip(fleet.processes.values(), reversed(DEMAND), strict=True):
        process.call("a", rate)
    fleet.run(80.0)
    assert largest_sum(fleet, 20.0, 80.0) <= 1.0
    assert fleet.processes["p5"].share("") > 0.25 * WHOLE
    assert min(windows(fleet, 50.0, 80.0)) >= 93.0  # what changed little is learned slowly
    assert max(windows(fleet, 40.0, 80.0)) <= 103.0 + LIMIT.burst / 5
    assert stays_in_its_bound(fleet)


@pytest.mark.parametrize("seed", SEEDS)
def test_while_control_is_away_everyone_goes_on_and_its_return_raises_nobody(seed):
    """A minute without control, a restart of it, and nothing changes; who starts meanwhile has its
    first share on top, until control has taken in who holds what."""
    fleet = fleet_of_six(seed)
    fleet.run(40.0)
    before = {name: process.share("") for name, process in fleet.processes.items()}
    fleet.restart_control(60.0)
    fleet.run(70.0)
    assert {name: process.share("") for name, process in fleet.processes.items()} == before
    assert min(windows(fleet, 40.0, 70.0)) >= 94.0  # the shares of one moment, for all of it
    assert max(windows(fleet, 40.0, 70.0)) <= 103.0
    fleet.start("p6", a=150.0)
    fleet.run(100.0)
    assert largest_sum(fleet, 70.0, 100.0) <= 1.0 + FIRST_SHARE
    fleet.run(100.0 + LEASE + 0.5)
    assert largest_sum(fleet, 100.0, 100.0 + LEASE + 0.5) <= 1.0 + FIRST_SHARE
    fleet.run(150.0)
    assert largest_sum(fleet, 100.0 + LEASE + ANSWERED + 1.0, 150.0) <= 1.0
    assert min(windows(fleet, 100.0 + LEASE + 3.0, 150.0)) >= 95.0
    assert stays_in_its_bound(fleet)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_that_dies_while_control_is_away_is_replaced_only_after_the_recovery(seed):
    """Control that has come back knows nothing of it, and gives its share to nobody before it can
    be sure that it is gone."""
    fleet = fleet_of_six(seed)
    fleet.run(40.0)
    share = fleet.processes["p0"].share("") / WHOLE
    fleet.restart_control(10.0)
    fleet.run(45.0)
    fleet.die("p0")
    fleet.run(50.0 + LEASE)
    assert largest_sum(fleet, 45.001, 50.0 + LEASE) <= 1.0 - share + 0.001
    fleet.run(90.0)
    assert sum(p.share("") for p in fleet.processes.values()) >= 0.99 * WHOLE
    assert largest_sum(fleet, 20.0, 90.0) <= 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_each_key_has_its_own_division(seed):
    """One caller goes to one process only, another is spread: each has its 20 a second, and the
    many that want little are not touched."""
    limit = RateLimit("per-caller", 20.0, 10, ("caller",), share=ShareMode.FLEET)
    fleet = Fleet(seed, limit, keys=("stuck", "spread", "nobody"))
    for number in range(4):
        small = {f"small{number}{each}": 0.2 for each in range(5)}
        fleet.start(f"p{number}", spread=20.0, stuck=50.0 if number == 0 else 0.0, **small)
    fleet.run(60.0)

    def admitted(caller):
        return sum(ok for at, _, who, ok in fleet.calls if at >= 20.0 and who == caller) / 40.0

    assert 19.0 <= admitted("stuck") <= 20.6
    assert 19.0 <= admitted("spread") <= 20.6
    assert largest_sum(fleet, 0.0, 60.0) <= 1.0
    refused = [who for _, _, who, ok in fleet.calls if not ok]
    assert {who for who in refused if who.startswith("small")} == set()
    for caller in ("stuck", "spread"):
        assert excess(fleet, caller) <= limit.burst + len(fleet.processes)


@pytest.mark.parametrize("seed", [1, 2])
def test_saturated_everywhere_it_admits_99_percent(seed):
    """Where each process wants more than its part, nothing is kept back for anybody."""
    fleet = Fleet(seed)
    for number in range(6):
        fleet.start(f"p{number}", a=60.0)
    fleet.run(60.0)
    assert fleet.admitted(20.0, 60.0) >= 0.99 * 40 * LIMIT.rate
    assert fleet.admitted(20.0, 60.0) <= math.ceil(40 * LIMIT.rate) + LIMIT.burst + 6

"""A zone is lost: one of three zones has five of its thirty servers for a while."""

import pytest

from tests.simulation.zone_lost import BACK, EVEN, LEFT, LOST, SERVERS, UNEVEN, UNTIL, ZONES, run

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (2, 3, 4))]
PHASES = {
    "before": (0.0, LOST, SERVERS),
    "lost": (LOST, BACK, LEFT),
    "after": (BACK, UNTIL, SERVERS),
}


def mean(points, start, end):
    values = [value for at, value in points if start <= at < end]
    return sum(values) / len(values)


def parts(callers, working):
    """Each zone's part of the servers and of the callers."""
    servers = dict(zip(ZONES, (working, SERVERS, SERVERS), strict=True))
    return {
        zone: (servers[zone] / sum(servers.values()), count / sum(callers))
        for zone, count in zip(ZONES, callers, strict=True)
    }


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("callers", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_call_leaves_its_zone_that_need_not(seed, callers, phase):
    """What stays is the zone's part of the servers over its part of the callers, all of it at most."""
    start, end, working = PHASES[phase]
    out = run(callers, seed=seed)
    for zone, (servers, demand) in parts(callers, working).items():
        stays = min(1.0, servers / demand)
        # At least 200 callers' 5 calls: the share of some 5,000 calls, within five deviations.
        assert mean(out.local[zone], start, end) == pytest.approx(100 * stays, abs=3.5)
        if stays == 1.0:
            assert all(value == 100.0 for at, value in out.local[zone] if start <= at < end)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("callers", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_server_has_the_same_load_whatever_its_zone(seed, callers, phase):
    """The five that are left no more than the others: within 10 %, five deviations of their 2,600 calls."""
    start, end, _ = PHASES[phase]
    out = run(callers, seed=seed)
    for zone in ZONES:
        assert mean(out.load[zone], start, end) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_who_is_not_told_of_the_callers_loads_zones_by_them(seed):
    """Half of the callers in one of three equal zones make one and a half times its load."""
    out = run(UNEVEN, seed=seed, told=False)
    for zone, (servers, demand) in parts(UNEVEN, SERVERS).items():
        assert mean(out.load[zone], 0.0, LOST) == pytest.approx(demand / servers, abs=0.1)

"""What a supervisor does that is told to stop at a bad moment: it ends, and nothing outlives it."""

import asyncio
import random
import signal

import pytest

from tests.faults import crowd
from tests.faults.customers import REPEATABLE
from tests.faults.lives import until
from tests.faults.teams import Shop

# Not alone: customers have patience, and what failed while the machine stood still is left out.
pytestmark = pytest.mark.process

SLOW = {"put": 30.0, "slow": 5.0}
GRACE = 30.0
STARTING = 1.5
"""Seconds, from the start of a supervisor, in which it may be told to stop."""
TRIES = 12
DIED_OF_IT = -signal.SIGTERM
"""The exit code of a supervisor that has no worker yet, nor anything else."""


async def rolling(shop, team):
    """Begin to roll a team; return when the first new worker starts."""
    before = shop.processes().keys()
    team.signal(signal.SIGHUP)
    await until(lambda: shop.processes().keys() - before, f"{team.name} starts a worker")


async def test_a_team_that_is_stopped_while_it_rolls_ends_and_costs_no_call(shop):
    """Its old workers drain, its new ones are ended, whatever they are at; others serve."""
    await shop.ready()
    stays = shop.teams["slow"]
    async with crowd.shopping(shop, rates=SLOW, takes=(0.5, 1.0)) as account:
        others = shop.processes().keys()
        team = shop.open("slow")
        await team.ready()
        await rolling(shop, team)
        assert await team.stop() == 0
        shop.teams["slow"] = stays
        assert shop.processes().keys() == others
    assert account.failed() == []
    assert {each.kind for each in account.ended} == set(SLOW)


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_a_second_signal_ends_a_team_that_rolls_at_once():
    """Calls that its workers still have are lost; no others are, and nothing is left of it."""
    with Shop(grace=GRACE) as shop:
        await shop.ready()
        team = shop.teams["slow"]
        async with crowd.shopping(shop, rates=REPEATABLE, endless=4) as account:
            others = shop.processes().keys() - team.processes
            await rolling(shop, team)
            team.signal(signal.SIGTERM)
            await until(lambda: "SIGTERM: " in team.said(), "it has heard the first one")
            async with asyncio.timeout(GRACE / 2):
                assert await team.stop() == 1
            assert shop.processes().keys() == others
        assert account.failed() == []


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_a_team_that_is_stopped_while_it_starts_leaves_nothing():
    """At any moment: before it has workers, while they load, and while they register."""
    rng = random.Random(5)
    with Shop(grace=3.0) as shop:
        await shop.ready()
        before = shop.processes().keys()
        for _ in range(TRIES):
            team = shop.open("slow")
            await asyncio.sleep(rng.uniform(0.0, STARTING))
            assert await team.stop() in (0, DIED_OF_IT)
            assert shop.processes().keys() == before

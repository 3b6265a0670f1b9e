"""The mesh's channel is a grpc.aio channel: see `tests/drop_in/battery.py` and docs/drop-in.md."""

import asyncio
import importlib
import re
from pathlib import Path

import pytest

from tests.drop_in.battery import SCENARIOS, SIDES
from tests.drop_in.world import World

ROOT = Path(__file__).parents[2]
DIFFERENCES = ROOT / "docs" / "drop-in.md"

for file in sorted((ROOT / "tests" / "drop_in").glob("*.py")):
    importlib.import_module(f"tests.drop_in.{file.stem}")  # puts its scenarios into the battery

WITHIN = 20.0
"""Seconds a scenario may take; one that hangs on either side is told by its name."""


async def observe(side, scenario, *, warm):
    """Return what one side observes, and whether it used the channel that may be warm."""
    async with asyncio.timeout(WITHIN), World(side, warm=warm) as world:
        returned = await scenario.run(world)
        return returned, world.events, world.channel_used


async def compare(scenario, *, warm):
    """Check a scenario on both sides; return whether either used the channel that may be warm."""
    grpcio, meshrpc = [await observe(side, scenario, warm=warm) for side in SIDES]
    when = "connected before" if warm else "not connected before"
    if scenario.differs is None:
        assert meshrpc[:2] == grpcio[:2], when
    else:
        assert scenario.differs.grpcio != scenario.differs.meshrpc
        assert grpcio[0] == scenario.differs.grpcio, when
        assert meshrpc[0] == scenario.differs.meshrpc, when
    return grpcio[2] or meshrpc[2]


@pytest.mark.parametrize("name", sorted(SCENARIOS))
async def test_a_scenario_is_the_same_on_both_sides_or_a_listed_difference(name):
    """Values, codes, the order of events, and what the server saw, connected before or not."""
    if await compare(SCENARIOS[name], warm=False):
        await compare(SCENARIOS[name], warm=True)


def test_each_listed_difference_is_shown_and_each_shown_is_listed():
    """docs/drop-in.md has a heading for every difference, and for nothing else."""
    listed = re.findall(r"^### (.+)$", DIFFERENCES.read_text(), re.MULTILINE)
    shown = {each.differs.heading for each in SCENARIOS.values() if each.differs}
    assert len(listed) == len(set(listed))
    assert set(listed) == shown


def test_the_battery_is_as_large_as_promised():
    """150 scenarios at least."""
    assert len(SCENARIOS) >= 150

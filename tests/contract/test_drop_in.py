"""The mesh's channel is a grpc.aio channel: see `tests/drop_in/battery.py` and docs/drop-in.md."""

import asyncio
import importlib
import re
from pathlib import Path

import pytest

from tests.drop_in import battery

SCENARIO_FILES = sorted(
    path.stem for path in Path(battery.__file__).parent.glob("*.py") if path.stem != "battery"
)
for name in SCENARIO_FILES:
    importlib.import_module(f"tests.drop_in.{name}")

DIFFERENCES = Path(battery.__file__).parents[2] / "docs" / "drop-in.md"

WITHIN = 20.0
"""Seconds a scenario may take; one that hangs on either side is told by its name."""


async def observe(side, scenario, *, warm):
    async with asyncio.timeout(WITHIN), battery.World(side, warm=warm) as world:
        returned = await scenario.run(world)
        return returned, world.events


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("name", sorted(battery.SCENARIOS))
async def test_a_scenario_is_the_same_on_both_sides_or_a_listed_difference(name, warm):
    """Values, codes, the order of events, and what the server saw, connected before or not."""
    scenario = battery.SCENARIOS[name]
    grpcio, meshrpc = [await observe(side, scenario, warm=warm) for side in battery.SIDES]
    if scenario.differs is None:
        assert meshrpc == grpcio
    else:
        assert scenario.differs.grpcio != scenario.differs.meshrpc
        assert grpcio[0] == scenario.differs.grpcio
        assert meshrpc[0] == scenario.differs.meshrpc


def test_each_listed_difference_is_shown_and_each_shown_is_listed():
    """docs/drop-in.md has a heading for every difference, and for nothing else."""
    listed = re.findall(r"^### (.+)$", DIFFERENCES.read_text(), re.MULTILINE)
    shown = {each.differs.heading for each in battery.SCENARIOS.values() if each.differs}
    assert len(listed) == len(set(listed))
    assert set(listed) == shown


def test_the_battery_is_as_large_as_promised():
    """150 scenarios at least."""
    assert len(battery.SCENARIOS) >= 150

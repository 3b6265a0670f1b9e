"""What watchers were told, over everything that can happen between them and control."""

from __future__ import annotations

import pytest

from tests.simulation.watching import run


@pytest.mark.parametrize("seed", range(12))
async def test_what_a_watcher_is_told_is_controls_history_in_order(seed, monkeypatch):
    """Every state that it hears of is one that control was in, after the one before; at rest it has
    control's list. So no change is lost, none overtakes another and nobody rises from the dead."""
    await run(seed, 200, monkeypatch)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first", range(0, 1000, 100))
async def test_a_thousand_histories_are_in_order(first, monkeypatch):
    """As above, for many more seeds and longer."""
    for seed in range(first, first + 100):
        await run(1000 + seed, 300, monkeypatch)

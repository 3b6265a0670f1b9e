"""Draw the curves of docs/simulations.md: `make curves`.

Each is a chart that a scenario makes; its picture goes to docs/curves as SVG, its values beside it as
CSV. test_curves.py runs the same and fails when what is committed is not what comes out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.simulation import (
    cold_start,
    distribution,
    flapping,
    fleet_limit,
    many_bad,
    reported_load,
    retry_storm,
    rolling_deploy,
    skewed_keys,
    slow_middle,
    start_together,
    total_failure,
    zone_lost,
)
from tests.simulation.chart import Chart, as_csv, as_svg

FOLDER = Path(__file__).parents[2] / "docs" / "curves"

CHARTS: dict[str, Callable[[], Chart]] = {
    "flapping": flapping.chart,
    "cold_start": cold_start.chart,
    "total_failure": total_failure.chart,
    "collapse": total_failure.collapse_chart,
    "retry_storm": retry_storm.chart,
    "many_bad": many_bad.chart,
    "distribution": distribution.chart,
    "start_together": start_together.chart,
    "slow_middle": slow_middle.chart,
    "rolling_deploy": rolling_deploy.chart,
    "zone_lost": zone_lost.chart,
    "skewed_keys": skewed_keys.chart,
    "reported_load": reported_load.chart,
    "fleet_limit": fleet_limit.chart,
}


def draw(names: list[str]) -> None:
    """Write the pictures and values of the charts with these names; of all, with none."""
    if unknown := set(names) - set(CHARTS):
        sys.exit(f"no curve {', '.join(sorted(unknown))}; there are: {', '.join(CHARTS)}")
    FOLDER.mkdir(exist_ok=True)
    for name in names or CHARTS:
        chart = CHARTS[name]()
        (FOLDER / f"{name}.csv").write_text(as_csv(chart))
        (FOLDER / f"{name}.svg").write_text(as_svg(chart))
        sys.stdout.write(f"docs/curves/{name}.svg  {chart.title}\n")


if __name__ == "__main__":
    draw(sys.argv[1:])

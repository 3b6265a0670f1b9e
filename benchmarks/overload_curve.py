"""The pictures of docs/overload.md: goodput over what was offered, and over a recovery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.overload_account import Step, is_good
from benchmarks.overload_load import Sent
from tests.simulation.chart import Chart, Panel, Shade, as_csv, as_svg, line

FOLDER = Path(__file__).parents[1] / "docs" / "curves"

LABELS = {
    "mesh": ("meshrpc at both ends", "ours"),
    "server": ("meshrpc's server only", "more"),
    "bare": ("bare grpc.aio", "bare"),
}
_BIN = 0.5


def goodput(loads: Mapping[float, tuple[float, Sequence[Step]]]) -> Chart:
    """Return goodput over load; given are the deadline and the steps of each handler CPU."""
    panels = []
    for cpu, (deadline, steps) in loads.items():
        least, most = (f(step.offered for step in steps) for f in (min, max))
        lines = [line("possible", [(least, 100 * min(least, 1)), (1, 100), (most, 100)], "ideal")]
        for arm, (label, look) in LABELS.items():
            own = [step for step in steps if step.arm == arm]
            points = [(step.offered, 100 * step.of_peak) for step in own]
            if points:
                lines.append(line(label, points, look))
        panels.append(
            Panel(
                title=f"Handlers of {cpu * 1000:g} ms, deadline {deadline * 1000:g} ms",
                x="calls offered, in multiples of the capacity",
                y="% answered in time",
                lines=tuple(lines),
            )
        )
    return Chart(
        "overload",
        "Goodput under overload",
        "Calls answered within their deadline, of what the server can do at most. One core.",
        tuple(panels),
    )


def recovery(cpu: float, deadline: float, runs: Mapping[str, Recovery]) -> Chart:
    """Return goodput and latency over time, from 10 times the capacity back to half of it."""
    any_run = next(iter(runs.values()))
    shades = (Shade(0.0, any_run.overload),)
    good, slow = [], []
    for arm, (label, look) in LABELS.items():
        run = runs.get(arm)
        if run is not None:
            good.append(line(label, run.answered(deadline), look))
            slow.append(line(label, run.latency(deadline), look))
    x = "seconds"
    return Chart(
        "overload_recovery",
        "Ten times the capacity, and back to half of it",
        f"Handlers of {cpu * 1000:g} ms, deadline {deadline * 1000:g} ms, one core; each half second.",
        (
            Panel(
                "Calls answered in time",
                x,
                "a second",
                tuple(good),
                shades=shades,
                shade_label="overload",
            ),
            Panel("The slowest of them", x, "ms", tuple(slow), shades=shades),
        ),
    )


class Recovery:
    """All calls of one arm: `overload` seconds of too many, and what followed."""

    def __init__(self, sent: Sequence[Sent], overload: float, end: float) -> None:
        self.overload = overload
        self._sent = sent
        self._bins = int(end / _BIN)

    def answered(self, deadline: float) -> list[tuple[float, float]]:
        """Return good calls a second over time."""
        bins = self._good(deadline)
        return [((n + 0.5) * _BIN, len(took) / _BIN) for n, took in enumerate(bins)]

    def latency(self, deadline: float) -> list[tuple[float, float]]:
        """Return the slowest good call over time, in milliseconds."""
        bins = self._good(deadline)
        return [((n + 0.5) * _BIN, 1000 * max(took)) for n, took in enumerate(bins) if took]

    def _good(self, deadline: float) -> list[list[float]]:
        bins: list[list[float]] = [[] for _ in range(self._bins)]
        for call in self._sent:
            number = int(call.due / _BIN)
            if number < self._bins and is_good(call, deadline):
                bins[number].append(call.took)
        return bins


def draw(charts: Sequence[Chart]) -> None:
    """Write the pictures, and the values beside them."""
    for chart in charts:
        (FOLDER / f"{chart.name}.csv").write_text(as_csv(chart))
        (FOLDER / f"{chart.name}.svg").write_text(as_svg(chart))

"""The curves in docs/curves are what the simulations give today."""

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.simulation.chart import (
    Bar,
    Chart,
    Panel,
    Shade,
    as_csv,
    as_svg,
    line,
)
from tests.simulation.curves import CHARTS, FOLDER, draw

LARGEST = 60_000
"""Bytes of a picture: a page with all of them opens at once."""

LONG = {"start_together", "slow_middle", "skewed_keys"}
"""Those that take four seconds and more; the others go stale with nearly every change of theirs."""

STALE = "docs/curves is stale: run 'make curves', look at the pictures and commit them"


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="exp() and log() differ in the last bit between systems, and a run with them",
)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.soak] * (name in LONG)) for name in CHARTS],
)
def test_a_committed_curve_is_what_its_simulation_gives(name):
    """Values and picture alike, to the last byte; and the picture is small."""
    chart = CHARTS[name]()
    assert chart.name == name
    assert (FOLDER / f"{name}.csv").read_text() == as_csv(chart), STALE
    svg = (FOLDER / f"{name}.svg").read_text()
    assert svg == as_svg(chart), STALE
    assert len(svg) <= LARGEST


def test_nothing_else_lies_with_the_curves():
    """A picture that nothing draws any more would go stale unseen."""
    measured = ("overload", "overload_recovery")  # by benchmarks/overload.py
    assert {path.name for path in FOLDER.iterdir()} == {
        f"{name}.{kind}" for name in (*CHARTS, *measured) for kind in ("svg", "csv")
    }


def test_every_curve_is_shown():
    """docs/simulations.md has each picture once, with its table."""
    page = (FOLDER.parent / "simulations.md").read_text()
    for name in CHARTS:
        assert page.count(f"](curves/{name}.svg)") == 1
        assert page.count(f"](curves/{name}.csv)") == 1


def test_an_unknown_curve_is_an_error_that_names_the_known_ones():
    """Before anything is drawn."""
    with pytest.raises(SystemExit, match="no curve nonsense; there are: flapping, "):
        draw(["nonsense"])


def small_chart():
    return Chart(
        "small",
        "A & B",
        "About <them>.",
        (
            Panel(
                "Lines",
                "time (s)",
                "calls",
                (
                    line("up", [(0, 0), (1, 1.23456), (2, 2)]),
                    line("steps", [(0, 1), (1, 3), (2, 0)], "bare", steps=True),
                ),
                shades=(Shade(1, 5),),
                shade_label="bad",
            ),
            Panel("Bars", "attempts", bars=(Bar("ours", 1.1), Bar("theirs", 27.0, "bare"))),
        ),
    )


def test_a_table_has_all_values_with_four_digits():
    """Of lines and of bars."""
    assert as_csv(small_chart()).splitlines() == [
        "panel,series,x,y",
        *("Lines,up,0,0", "Lines,up,1,1.235", "Lines,up,2,2"),
        *("Lines,steps,0,1", "Lines,steps,1,3", "Lines,steps,2,0"),
        *("Bars,ours,,1.1", "Bars,theirs,,27"),
    ]


def test_a_picture_is_well_formed_and_shows_every_word():
    """Titles, legends, axes and values; the colours are those of both schemes."""
    svg = as_svg(small_chart())
    words = {element.text for element in ET.fromstring(svg).iter() if element.text}  # noqa: S314 - ours
    assert {"A & B", "About <them>.", "time (s)", "calls", "up", "steps", "bad"} <= words
    assert {"ours", "theirs", "1.1", "27", "attempts"} <= words
    assert svg.count("prefers-color-scheme:dark") == 1


def test_nothing_is_drawn_outside_of_a_picture():
    """Every coordinate of every line lies within it, shades that end later included."""
    root = ET.fromstring(as_svg(small_chart()))  # noqa: S314 - ours
    width, height = float(root.get("width")), float(root.get("height"))
    for element in root.iter():
        if points := element.get("points"):
            for x, y in (pair.split(",") for pair in points.split()):
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height
        if element.get("class") == "s":
            assert float(element.get("x")) + float(element.get("width")) <= width


def test_lines_are_cut_where_the_axis_ends():
    """What lies outside of the stretch that is shown is in the table only."""
    panel = Panel("Cut", "x", "y", (line("a", [(0, 1), (5, 2), (9, 3)]),), span=(4.0, 6.0))
    svg = as_svg(Chart("cut", "Cut", "", (panel,)))
    (element,) = ET.fromstring(svg).iterfind("{*}polyline")  # noqa: S314 - ours
    assert len(element.get("points").split()) == 1


@pytest.mark.parametrize("name", CHARTS)
def test_no_word_of_a_committed_picture_runs_over_its_edge(name):
    """At about 7 pixels a letter, as the legends are set."""
    root = ET.fromstring((FOLDER / f"{name}.svg").read_text())  # noqa: S314 - ours
    for element in root.iterfind("{*}text"):
        if element.get("class") == "t":
            assert float(element.get("x")) + 7.0 * len(element.text) <= float(root.get("width"))


def test_every_picture_is_told_how_it_was_made():
    """The page names the command, and the Makefile has it."""
    root = Path(__file__).parents[2]
    assert "make curves" in (root / "docs" / "simulations.md").read_text()
    assert "\ncurves: " in (root / "Makefile").read_text()

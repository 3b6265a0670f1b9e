"""Charts as data, drawn as SVG: small, the same to the byte each time, readable by day and night.

A chart is panels below one another, a panel lines or bars over one pair of axes. Values are rounded
to four digits where they enter, so that the picture and the table beside it (`as_csv`) say the same.
The picture brings its own ground and follows the reader's colour scheme. No plotting library: what
is drawn here fits a page, and none of them draws it twice alike over its releases.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 860
_LEFT, _RIGHT = 74, 24
_TOP = 62
"""Room for the title and what stands below it."""
_HEAD, _PLOT, _FOOT = 42, 168, 54
"""A panel: its title and legend, the plot itself, ticks and the label below."""
_BAR = 34

_STYLE = """
.g{fill:#fff}.t{fill:#1f2328}.m{fill:#59636e}.x{stroke:#d1d9e0}.z{stroke:#59636e}.s{fill:#818b98;opacity:.14}
.ours{stroke:#0969da}.bare{stroke:#cf4a0a}.more{stroke:#1a7f37}.else{stroke:#8250df}.ideal{stroke:#818b98;stroke-dasharray:5 4}
rect.ours{fill:#0969da}rect.bare{fill:#cf4a0a}rect.more{fill:#1a7f37}rect.else{fill:#8250df}rect.ideal{fill:#818b98}
@media(prefers-color-scheme:dark){
.g{fill:#0d1117}.t{fill:#f0f6fc}.m{fill:#9198a1}.x{stroke:#3d444d}.z{stroke:#9198a1}.s{fill:#9198a1;opacity:.18}
.ours{stroke:#58a6ff}.bare{stroke:#ff8a4c}.more{stroke:#3fb950}.else{stroke:#bc8cff}.ideal{stroke:#9198a1}
rect.ours{fill:#58a6ff}rect.bare{fill:#ff8a4c}rect.more{fill:#3fb950}rect.else{fill:#bc8cff}rect.ideal{fill:#9198a1}}
text{font:13px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
.h{font-size:17px;font-weight:600}.b{font-weight:600}.e{text-anchor:end}.c{text-anchor:middle}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}line{stroke-width:1}.k{stroke-width:3}
"""


def rounded(value: float) -> float:
    """Return `value` with four digits; what is not a number is none."""
    return float(f"{value:.4g}")


@dataclass(frozen=True, slots=True)
class Line:
    """Points joined by a line; `look` is one of ours, bare, more, else, ideal.

    `steps`: each value holds from its x to the next one's, as a state or a queue does.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    look: str = "ours"
    steps: bool = False


def line(
    label: str, points: Iterable[tuple[float, float]], look: str = "ours", *, steps: bool = False
) -> Line:
    """Return a line through `points`, rounded."""
    kept = tuple((rounded(x), rounded(y)) for x, y in points)
    return Line(label, kept, look, steps)


@dataclass(frozen=True, slots=True)
class Bar:
    """One value with a name."""

    label: str
    value: float
    look: str = "ours"


@dataclass(frozen=True, slots=True)
class Shade:
    """A stretch of x that something is wrong in."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over one pair of axes, or bars."""

    title: str
    x: str
    """What the axis below is, with its unit; for bars what their values are."""
    y: str = ""
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    shades: tuple[Shade, ...] = ()
    shade_label: str = ""
    span: tuple[float, float] | None = None
    """The stretch of x that is shown; None: that of the lines."""
    top: float | None = None
    """Where the axis on the left ends; None: above all values."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture with a name, which is that of its file."""

    name: str
    title: str
    about: str
    panels: tuple[Panel, ...] = field(default_factory=tuple)


def as_csv(chart: Chart) -> str:
    """Return all values of a chart as a table."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("panel", "series", "x", "y"))
    for panel in chart.panels:
        for bar in panel.bars:
            table.writerow((panel.title, bar.label, "", f"{rounded(bar.value):g}"))
        for each in panel.lines:
            for x, y in each.points:
                table.writerow((panel.title, each.label, f"{x:g}", f"{y:g}"))
    return text.getvalue()


def as_svg(chart: Chart) -> str:
    """Return a chart as the text of an SVG file."""
    parts: list[str] = []
    top = _TOP
    for panel in chart.panels:
        drawn, height = _bars(panel, top) if panel.bars else _plot(panel, top)
        parts += drawn
        top += height
    return "\n".join(
        (
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
                f'width="{WIDTH}" height="{top}" role="img">'
            ),
            f"<title>{escape(chart.title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="g" width="{WIDTH}" height="{top}" rx="8"/>',
            _text(_LEFT - 54, 30, chart.title, "t h"),
            _text(_LEFT - 54, 50, chart.about, "m"),
            *parts,
            "</svg>\n",
        )
    )


def _text(x: float, y: float, text: str, look: str, extra: str = "") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{look}"{extra}>{escape(text)}</text>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _legend(panel: Panel, y: float) -> list[str]:
    parts, x = [], float(_LEFT)
    entries = [(each.label, each.look) for each in panel.lines]
    if panel.shade_label:
        entries.append((panel.shade_label, "s"))
    for label, look in entries:
        if look == "s":
            parts.append(f'<rect class="s" x="{_n(x)}" y="{_n(y - 10)}" width="22" height="12"/>')
        else:
            parts.append(
                f'<line class="{look} k" x1="{_n(x)}" x2="{_n(x + 22)}" '
                f'y1="{_n(y - 4)}" y2="{_n(y - 4)}"/>'
            )
        parts.append(_text(x + 28, y, label, "t"))
        x += 28 + 7.3 * len(label) + 20
    return parts


def _plot(panel: Panel, top: int) -> tuple[list[str], int]:
    xs = [x for each in panel.lines for x, _ in each.points]
    ys = [y for each in panel.lines for _, y in each.points]
    left, right = panel.span or (min(xs), max(xs))
    y_ticks = _ticks(0.0, panel.top or max(ys) or 1.0)
    ceiling = panel.top or y_ticks[-1]
    above, below = top + _HEAD, top + _HEAD + _PLOT

    def at_x(x: float) -> float:
        return _LEFT + (x - left) / (right - left or 1.0) * (WIDTH - _LEFT - _RIGHT)

    def at_y(y: float) -> float:
        return below - min(y, ceiling) / ceiling * _PLOT

    parts = [_text(_LEFT, top + 12, panel.title, "t b"), *_legend(panel, top + 32)]
    for shade in panel.shades:
        start, end = at_x(max(shade.start, left)), at_x(min(shade.end, right))
        parts.append(
            f'<rect class="s" x="{_n(start)}" y="{above}" width="{_n(end - start)}" '
            f'height="{_PLOT}"/>'
        )
    for tick in y_ticks:
        y = _n(at_y(tick))
        parts.append(f'<line class="x" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(_text(_LEFT - 8, at_y(tick) + 4, f"{tick:g}", "m e"))
    for tick in _ticks(left, right, 10):
        if tick > right:
            continue
        x = _n(at_x(tick))
        parts.append(f'<line class="z" x1="{x}" x2="{x}" y1="{below}" y2="{below + 4}"/>')
        parts.append(_text(at_x(tick), below + 18, f"{tick:g}", "m c"))
    parts.append(f'<line class="z" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{below}" y2="{below}"/>')
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, below + 37, panel.x, "m c"))
    middle = (above + below) / 2
    turn = f' transform="rotate(-90 20 {_n(middle)})"'
    parts.append(_text(20, middle, panel.y, "m c", turn))
    # Ours is drawn last, over what it is compared with.
    for each in sorted(panel.lines, key=lambda each: each.look == "ours"):
        shown = [(x, y) for x, y in each.points if left <= x <= right]
        points = list(_stairs(shown) if each.steps else shown)
        path = " ".join(f"{_n(at_x(x))},{_n(at_y(y))}" for x, y in points)
        parts.append(f'<polyline class="{each.look}" points="{path}"/>')
    return parts, _HEAD + _PLOT + _FOOT


def _stairs(points: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    before: float | None = None
    for x, y in points:
        if before is not None and before != y:
            yield x, before
        if before != y or x == points[-1][0]:
            yield x, y
        before = y


def _bars(panel: Panel, top: int) -> tuple[list[str], int]:
    room = 300  # for names on the left
    most = max(bar.value for bar in panel.bars)
    parts = [_text(_LEFT - 54, top + 12, panel.title, "t b")]
    for number, bar in enumerate(panel.bars):
        y = top + 26 + number * _BAR
        width = bar.value / most * (WIDTH - room - _RIGHT - 70)
        parts += (
            _text(room - 10, y + 17, bar.label, "t e"),
            (
                f'<rect class="{bar.look}" x="{room}" y="{y}" width="{_n(max(width, 1))}" '
                f'height="{_BAR - 10}" rx="2" stroke="none"/>'
            ),
            _text(room + width + 8, y + 17, f"{rounded(bar.value):g}", "t b"),
        )
    below = top + 26 + len(panel.bars) * _BAR
    parts.append(_text(room, below + 12, panel.x, "m"))
    return parts, below + 30 - top


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers from `low` to the first one from `high` on."""
    rough = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.ceil(high / step - 1e-9) + 1)]

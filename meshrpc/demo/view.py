"""What the demo shows: a live board while it runs, then a summary with one trace as a tree.

On a terminal the board is redrawn in place; into a pipe or a log goes a line per event and one
of totals every few seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from meshrpc.demo.books import Audit
from meshrpc.demo.customers import Sales
from meshrpc.demo.spans import Span
from meshrpc.demo.traffic import Figures, Traffic
from meshrpc.registry.instance import Instance

_LINE_EVERY = 5.0
"""Seconds between lines of totals where nothing can be redrawn."""
_EVENTS_SHOWN = 8
_COLUMNS = {
    "INSTANCE": 18,
    "VERSION": 7,
    "STATE": 8,
    "CALLS/S": 7,
    "CALLS": 6,
    "ERRORS": 6,
    "P50 MS": 7,
    "P99 MS": 7,
}
"""The board's columns, as wide as what they hold gets: one that grew would make the board jump."""
_FIGURES = tuple(_COLUMNS)[3:]
_LEFT_OUT = ("VERSION", "CALLS")
"""What a terminal of less than 80 columns does without."""
_STATE_STYLES = {"active": "green", "draining": "yellow", "frozen": "cyan", "gone": "red"}


@dataclass(slots=True)
class Board:
    """What is known right now, for the view to draw."""

    duration: float
    services: tuple[str, ...]
    traffic: Traffic = field(default_factory=Traffic)
    instances: dict[str, Instance] = field(default_factory=dict)
    """Every instance ever seen, by id."""
    present: set[str] = field(default_factory=set)
    """Ids of those in the registry now."""
    frozen: set[str] = field(default_factory=set)
    policy: str = ""
    elapsed: float = 0.0
    events: list[str] = field(default_factory=list)


class View:
    """Draws a board, in place where the console can."""

    def __init__(self, console: Console, board: Board) -> None:
        self._console = console
        self._board = board
        self._live: Live | None = None
        self._next_line = 0.0
        self._scrolled_away = 0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the board on the terminal while the block lasts."""
        if not self._console.is_terminal:
            yield
            return
        self._scrolled_away = len(self._board.events)  # these stand above the board already
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield
        self._live = None

    def event(self, text: str) -> None:
        """Note something that happened, with the time."""
        line = f"{self._board.elapsed:5.1f} s  {text}"
        self._board.events.append(line)
        if self._live is None:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def refresh(self, now: float, sales: Sales) -> None:
        """Draw the board as it is now."""
        if self._live is not None:
            self._live.update(self._draw(now, sales), refresh=True)
        elif self._board.elapsed >= self._next_line:
            self._next_line = self._board.elapsed + _LINE_EVERY
            figures = self._board.traffic.service(self._board.services[0], now)
            self._console.print(
                f"{self._board.elapsed:5.1f} s  {sales.placed} orders placed, "
                f"{len(sales.paid)} paid, {sum(sales.failed.values())} failed; "
                f"{figures.calls_per_second:.0f} calls/s, p99 {_ms(figures.p99)}",
                highlight=False,
                soft_wrap=True,
            )

    def _draw(self, now: float, sales: Sales) -> RenderableType:
        board = self._board
        title = Text.assemble(
            ("meshrpc demo", "bold"),
            f"  {board.elapsed:.0f} of {board.duration:.0f} s   {sales.placed} orders, "
            f"{len(sales.paid)} paid, {sum(sales.failed.values())} failed   {board.policy}",
        )
        events = Text("\n".join(board.events[self._scrolled_away :][-_EVENTS_SHOWN:]), style="dim")
        for line in (title, events):
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(title, Text(), self._table(now), Text(), events)

    def _table(self, now: float) -> Table:
        is_narrow = self._console.width < 80
        shown = [name for name in _COLUMNS if not (is_narrow and name in _LEFT_OUT)]
        table = Table(box=None, pad_edge=False, padding=(0, 1 if is_narrow else 2, 0, 0))
        for name in shown:
            justify: JustifyMethod = "right" if name in _FIGURES else "left"
            table.add_column(name, min_width=_COLUMNS[name], justify=justify, no_wrap=True)

        def add(cells: Mapping[str, str | Text], style: str = "") -> None:
            table.add_row(*(cells.get(name, "") for name in shown), style=style)

        traffic = self._board.traffic
        for service in self._board.services:
            add({"INSTANCE": service, **_cells(traffic.service(service, now))}, "bold")
            for instance in self._of(service):
                state = self._state(instance)
                add(
                    {
                        "INSTANCE": f"  {instance.id}",
                        "VERSION": instance.version or "-",
                        "STATE": Text(state, style=_STATE_STYLES.get(state, "")),
                        **_cells(traffic.instance(service, instance.id, now)),
                    }
                )
        return table

    def _of(self, service: str) -> list[Instance]:
        found = (i for i in self._board.instances.values() if i.service == service)
        return sorted(found, key=lambda instance: (instance.version or "", instance.id))

    def _state(self, instance: Instance) -> str:
        if instance.id in self._board.frozen:
            return "frozen"
        if instance.id not in self._board.present:
            return "gone"
        return instance.state.value

    def summarise(self, sales: Sales, audit: Audit, trace: Sequence[Span]) -> None:
        """Print how it went."""
        console, board = self._console, self._board
        console.print()
        table = Table(title="Summary", title_justify="left", box=None, show_header=False)
        table.add_row("orders placed", str(sales.placed))
        paid = ", ".join(f"{n} by {v}" for v, n in sorted(Counter(sales.paid.values()).items()))
        table.add_row("paid", f"{len(sales.paid)} ({paid})" if paid else "0")
        table.add_row("failed", str(sum(sales.failed.values())))
        for why, count in sales.failed.most_common(5):
            table.add_row("", Text(f"{count} x {why}"))
        table.add_row("sent again by customers", str(sales.tried_again))
        table.add_row("payments taken", str(audit.payments))
        table.add_row("lost", _must_be_none(audit.lost))
        table.add_row("duplicates", _must_be_none(audit.duplicates))
        console.print(table, highlight=False)
        console.print()
        split = Table(title="Split by instance", title_justify="left", box=None, pad_edge=False)
        for name in ("service", "instance", "version"):
            split.add_column(name.upper())
        split.add_column("CALLS", justify="right")
        split.add_column("ERRORS", justify="right")
        for service in board.services:
            for instance in self._of(service):
                figures = board.traffic.instance(service, instance.id, 0.0)
                split.add_row(
                    service,
                    instance.id,
                    instance.version or "-",
                    str(figures.calls),
                    str(figures.errors),
                )
        console.print(split, highlight=False)
        console.print()
        console.print(trace_tree(trace), highlight=False)


def trace_tree(trace: Sequence[Span]) -> RenderableType:
    """Draw a trace: each call under the one that made it, with where and how long."""
    if not trace:
        return Text("One trace: none arrived whole")
    ids = {span.id for span in trace}
    (root,) = (span for span in trace if span.parent not in ids)
    tree = Tree(Text(f"One trace: {trace[0].trace.hex()}", style="bold"))
    _grow(tree, root, trace)
    return tree


def _grow(tree: Tree, span: Span, trace: Sequence[Span]) -> None:
    side = f"calls {span.callee}" if span.is_client else f"served by {span.instance}"
    line = Text(f"{span.service}  {span.name}  {side}  {_ms(span.duration)}")
    if span.code is not grpc.StatusCode.OK:
        line.append(f"  {span.code.name}", style="red")
    branch = tree.add(line)
    for attempt in span.attempts:
        branch.add(
            Text(f"attempt on {attempt.instance}  {attempt.code.name}, tried elsewhere", "yellow")
        )
    for child in sorted((s for s in trace if s.parent == span.id), key=lambda s: s.start):
        _grow(branch, child, trace)


def _cells(figures: Figures) -> dict[str, str]:
    cells = (
        f"{figures.calls_per_second:.1f}",
        str(figures.calls),
        str(figures.errors),
        _ms(figures.p50).removesuffix(" ms"),
        _ms(figures.p99).removesuffix(" ms"),
    )
    return dict(zip(_FIGURES, cells, strict=True))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _must_be_none(found: Sequence[str]) -> Text:
    if not found:
        return Text("0", style="green")
    return Text(f"{len(found)}: {', '.join(found[:5])}", style="bold red")

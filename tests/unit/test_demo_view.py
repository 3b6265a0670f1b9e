"""The demo's board, as terminals of different widths show it."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from meshrpc.demo.customers import Sales
from meshrpc.demo.view import Board, View
from meshrpc.registry.instance import Instance

IDS = ("order-0000000a", "payment-0000000b", "payment-0000000c")


def drawn(width):
    """The lines of a board with one event before it is shown and two while it is."""
    console = Console(file=io.StringIO(), width=width, height=40, force_terminal=True)
    board = Board(duration=20.0, services=("order", "payment"))
    for id_ in IDS:
        service = id_.partition("-")[0]
        board.instances[id_] = Instance(
            id=id_, service=service, address="127.0.0.1:1", version="v1"
        )
    board.present = set(IDS[:2])
    view = View(console, board)
    view.event("before")
    with view.shown():
        view.event("short")
        view.event("long " * 40)
        with console.capture() as captured:
            console.print(view._draw(0.0, Sales(placed=1)))
    return [Text.from_ansi(line).plain.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_board_fits_and_names_every_instance(width):
    """Each instance has one line with its state, and no line is broken."""
    lines = drawn(width)
    assert max(map(len, lines)) <= width
    rows = {line.split()[0]: line.split() for line in lines if line.startswith("  ")}
    assert set(IDS) <= rows.keys()
    assert "active" in rows[IDS[0]]
    assert "gone" in rows[IDS[2]]
    assert len(lines) == 3 + 5 + 1 + 2
    assert not any("before" in line for line in lines)


@pytest.mark.parametrize(("width", "has"), [(60, False), (80, True)])
def test_a_narrow_terminal_does_without_two_columns(width, has):
    """Version and calls are what can be missed most."""
    heading = drawn(width)[2]
    assert ("VERSION" in heading) is has
    assert "P99 MS" in heading

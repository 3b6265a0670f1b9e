"""`meshrpc demo`: the order and payment services on a mesh, end to end."""

from __future__ import annotations

import asyncio
import sys

import click
from rich.console import Console

from meshrpc.demo.scenario import Demo, Script
from meshrpc.interrupts import INTERRUPTED


@click.command()
@click.option(
    "--duration",
    type=click.FloatRange(min=5.0),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds that customers place orders.",
)
@click.option("--chaos", is_flag=True, help="Kill one payment worker and freeze another.")
@click.option("--registry", metavar="URL", help="Use this registry, such as consul://HOST:8500.")
def demo(duration: float, chaos: bool, registry: str | None) -> None:
    """Run the shop: order x2 and payment x3 as processes, customers, and a live view.

    It changes a policy while it runs, and ends with a summary and one trace. The exit code is 0
    only if no order was lost and none was charged twice.
    """
    # Redirected output has no width of its own; the trace needs some.
    console = Console(width=None if sys.stdout.isatty() else 120)
    scenario = Demo(Script(duration, chaos), registry=registry, console=console)
    try:
        went_well = asyncio.run(scenario.run())
    except asyncio.CancelledError:
        went_well = False  # interrupted twice
    if scenario.interrupted:
        raise click.exceptions.Exit(INTERRUPTED)
    if not went_well:
        raise click.exceptions.Exit(1)

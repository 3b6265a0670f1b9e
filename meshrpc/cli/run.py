"""`meshrpc run`: a service as supervised worker processes."""

from __future__ import annotations

import logging
import os
from dataclasses import fields
from pathlib import Path

import click

from meshrpc.settings import Settings
from meshrpc.workers.logs import log_to_stderr
from meshrpc.workers.supervisor import Supervisor


@click.command()
@click.argument("service", metavar="MODULE:SERVICE")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many processes; each is an instance with its own port.",
)
@click.option(
    "--app-dir",
    type=click.Path(path_type=Path),
    default=Path(),
    help="The folder MODULE is imported from; the current one unless given.",
)
@click.option("--control", metavar="HOST:PORT", help="The control service, or `none`.")
@click.option("--registry", metavar="URL", help="Where the service registers.")
@click.option("--namespace", metavar="NAME", help="The part of the registry it belongs to.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Where to listen; worker 1 has this port, worker 2 the next. Port 0: any free one each.",
)
@click.option("--zone", metavar="NAME", help="Where the processes run.")
def run(service: str, workers: int, app_dir: Path, **settings: str | None) -> None:
    """Run the service SERVICE of the module MODULE as worker processes.

    A worker that dies is started again. The first Ctrl-C or SIGTERM lets the workers finish what
    they do, a second one ends them at once. Settings given here count as environment
    (MESHRPC_CONTROL and its like): those the service's own code gives win over them.
    """
    log_to_stderr(logging.INFO)
    given = {name: value for name, value in settings.items() if value is not None}
    Settings.resolve({}, **given)  # a bad value is told here, under the name it was given by
    environment = {
        field.metadata["environment"]: given[field.name]
        for field in fields(Settings)
        if field.name in given
    }
    Supervisor(
        service,
        count=workers,
        folder=app_dir.resolve(),
        environment={**os.environ, **environment},
    ).run()

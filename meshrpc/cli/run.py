"""`meshrpc run`: a service as supervised worker processes."""

from __future__ import annotations

import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from meshrpc.cli.options import log_format_option
from meshrpc.errors import MeshError
from meshrpc.settings import Settings
from meshrpc.workers.announcing import Announcer
from meshrpc.workers.logs import ENVIRONMENT as LOG_FORMAT
from meshrpc.workers.logs import LogFormat, Who, log_to_stderr
from meshrpc.workers.rolling import READY_WITHIN
from meshrpc.workers.supervisor import Supervisor
from meshrpc.workers.team import LIVENESS

LONGEST_START = 86_400
"""Seconds: a day. Whoever gives more means milliseconds."""
MOST_WORKERS = 1_000
"""More is a slip of the finger, and would take the whole machine."""


class _Count(click.ParamType):  # type: ignore[type-arg]  # older click has no argument there
    """`N`, or `MIN..MAX`; both ends are 1 to `MOST_WORKERS`."""

    name = "N|MIN..MAX"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,  # noqa: ARG002
    ) -> tuple[int, int]:
        first, dots, last = str(value).partition("..")
        ends = [first, last] if dots else [first, first]
        if not all(end.isascii() and end.isdecimal() for end in ends):
            self.fail(f"{value!r} is neither a number, such as 4, nor a range, such as 2..8", param)
        least, most = map(int, ends)
        if not 1 <= least <= most:
            self.fail(f"{value!r}: there is at least 1, and no more at first than at most", param)
        if most > MOST_WORKERS:
            self.fail(f"{value!r}: {MOST_WORKERS} workers at most on one machine", param)
        return least, most


@click.command()
@click.argument("service", metavar="MODULE:SERVICE")
@click.option(
    "--workers",
    type=_Count(),
    default="1",
    show_default=True,
    help="How many processes, each an instance with its own port; MIN..MAX: as many as are busy.",
)
@click.option(
    "--app-dir",
    type=click.Path(path_type=Path),
    default=Path(),
    help="The folder MODULE is imported from; the current one unless given.",
)
@click.option(
    "--reload",
    is_flag=True,
    help="Replace the workers when a Python file in the folder changes; for development.",
)
@click.option(
    "--ready-within",
    type=click.IntRange(1, LONGEST_START),
    metavar="SECONDS",
    default=int(READY_WITHIN),
    show_default=True,
    help="How long a new worker of a reload may take to become ready before the reload has failed.",
)
@click.option("--control", metavar="HOST:PORT", help="The control service, or `none`.")
@click.option("--registry", metavar="URL", help="Where the service registers.")
@click.option("--namespace", metavar="NAME", help="The part of the registry it belongs to.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Where to listen; worker 1 has this port, worker 2 the next. Port 0: any free one each.",
)
@click.option(
    "--shared-listen",
    metavar="HOST:PORT",
    help="One more port, shared by all workers, for clients outside the mesh.",
)
@click.option("--zone", metavar="NAME", help="Where the processes run.")
@log_format_option
def run(
    service: str,
    workers: tuple[int, int],
    app_dir: Path,
    reload: bool,
    ready_within: int,
    log_format: LogFormat,
    **settings: str | None,
) -> None:
    """Run the service SERVICE of the module MODULE as worker processes.

    A worker that dies is started again. SIGHUP replaces the workers one after the other, by ones
    that run the newest code. The first Ctrl-C or SIGTERM lets the workers finish what they do, a
    second one ends them at once. Settings given here count as environment (MESHRPC_CONTROL and its
    like): those the service's own code gives win over them.
    """
    if os.name != "posix":
        raise MeshError("workers need Linux or macOS; elsewhere run the service by service.run()")
    who = Who()
    log_to_stderr(logging.INFO, format=log_format, who=who)
    given = {name: value for name, value in settings.items() if value is not None}
    Settings.resolve({}, **given)  # a bad value is told here, under the name it was given by
    environment = {
        field.metadata["environment"]: given[field.name]
        for field in fields(Settings)
        if field.name in given
    }
    environment = {**os.environ, **environment, LOG_FORMAT: log_format.value}
    least, most = workers
    Supervisor(
        service,
        count=least,
        most=most,
        folder=app_dir.resolve(),
        environment=environment,
        watch=reload,
        # A breakpoint stops the event loop too: while developing, nobody is killed for that.
        liveness=None if reload else LIVENESS,
        ready_within=ready_within,
        announcer=Announcer(service, environment, who=who),
    ).run()

"""The `meshrpc` command: a table of subcommands, and the one place where errors become exit codes.

Only the chosen subcommand is imported, so that `meshrpc --help` answers at once. A `MeshError` is
one clear line on stderr and exit code 1; wrong usage exits 2, as click has it; an interrupt exits
130. Anything else is a bug, and keeps its traceback.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import meshrpc
from meshrpc import interrupts
from meshrpc.errors import MeshError, PolicyError
from meshrpc.workers.logs import log_to_stderr

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What is wrong with where the output goes, not with this program: a full disk, a lost terminal."""


@dataclass(frozen=True, slots=True)
class Subcommand:
    """Where a subcommand's code is, and what `meshrpc --help` says of it without importing it."""

    target: str
    help: str


SUBCOMMANDS: Mapping[str, Subcommand] = {
    "run": Subcommand("meshrpc.cli.run:run", "Run a service as supervised worker processes."),
    "control": Subcommand("meshrpc.cli.control:control", "Run the control service."),
    "demo": Subcommand("meshrpc.cli.demo:demo", "Run the order and payment demo, end to end."),
    "registry": Subcommand("meshrpc.cli.registry:registry", "Look into a registry, and repair it."),
    "policy": Subcommand("meshrpc.cli.policy:policy", "Validate, apply and read policies."),
    "status": Subcommand("meshrpc.cli.status:status", "Show every connected process."),
    "events": Subcommand("meshrpc.cli.events:events", "Show what the mesh did by itself."),
    "call": Subcommand("meshrpc.cli.call:call", "Call one method through the mesh."),
}


class Failure(click.ClickException):
    """What went wrong, in the words of the error, as the last thing on stderr."""

    def show(self, file: Any = None) -> None:
        for line in self.message.splitlines():
            click.echo(f"error: {line}", file=file, err=file is None)


class Commands(click.Group):
    """A group that imports a subcommand when it is chosen."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in SUBCOMMANDS:
            return None
        module, _, attribute = SUBCOMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        interrupts.raise_exception()
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in SUBCOMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            # Here, so that a reader who left (`| head`) is met inside click's own handling.
            sys.stdout.flush()
        except PolicyError as error:
            raise Failure(str(error)) from error
        except MeshError as error:
            raise Failure(" ".join(str(error).splitlines())) from error
        except KeyboardInterrupt:
            ctx.exit(interrupts.INTERRUPTED)
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            # What is still to be written would fail again, and loudly, when Python ends.
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as we run
            raise Failure(f"cannot write: {os.strerror(error.errno).lower()}") from error
        return result


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(meshrpc.__version__, prog_name="meshrpc", message="%(prog)s %(version)s")
@click.option("--until-stdin-ends", is_flag=True, hidden=True)
def main(*, until_stdin_ends: bool) -> None:
    """The service mesh inside your Python gRPC processes."""
    _replace_closed_streams()
    log_to_stderr(logging.WARNING)
    if until_stdin_ends:
        threading.Thread(target=_end_with_stdin, name="lifeline", daemon=True).start()


def _replace_closed_streams() -> None:
    """Let a stream that was closed before this began (`<&-`) be an empty one: Python has None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - as long as we run


def _end_with_stdin() -> None:
    """End as SIGTERM would once stdin does: a pipe from whoever started this process, and died."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)

"""`meshrpc status`: every process connected to control, and whether it has what was pushed."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from meshrpc.cli.options import control_options
from meshrpc.cli.output import Output, output_option, show_records
from meshrpc.control.client import ControlClient
from meshrpc.settings import Settings
from meshrpc.v1 import control_pb2

COLUMNS = ("service", "instance", "version", "revision", "state", "reason", "age")


@click.command()
@control_options
@output_option
def status(control: str | None, namespace: str | None, output: Output) -> None:
    """Show every connected process and the policy revision it has.

    STATE is synced (has all that was pushed to it), pending (has not answered yet) or refused
    (keeps what it had, for the reason given); AGE is how long ago it last answered a push.
    """
    settings = Settings.resolve(control=control, namespace=namespace)
    answer = asyncio.run(_ask(settings))
    records = [_record(process) for process in answer.processes]
    records.sort(key=lambda record: (record["service"], record["instance"]))
    if output != "table":
        show_records(records, output, columns=COLUMNS)
        return
    for record in records:
        record["age"] = f"{record['age']:.1f}s"
    show_records(records, output, columns=COLUMNS)
    click.echo(f"control is at revision {answer.revision}")


async def _ask(settings: Settings) -> control_pb2.StatusResponse:
    async with ControlClient(settings.control, namespace=settings.namespace) as client:
        return await client.status()


def _record(process: control_pb2.ProcessStatus) -> dict[str, Any]:
    state = control_pb2.ProcessStatus.State.Name(process.state)
    return {
        "service": process.service,
        "instance": process.instance,
        "version": process.version or None,
        "revision": process.revision,
        "state": state.removeprefix("STATE_").lower(),
        "reason": process.reason,
        "age": round(process.age_seconds, 3),
    }

"""`meshrpc registry services` and `instances`: what a registry lists, and what a caller sees of it.

What a process makes of a service is asked of control, which asks the process on the stream it
holds: nothing but the process itself knows whom it doubts, and whom it has left out.
"""

from __future__ import annotations

import asyncio
from typing import Any

import click

from meshrpc.cli.options import registry_settings
from meshrpc.cli.output import Output, output_option, show_records
from meshrpc.cli.reflection import did_you_mean
from meshrpc.cli.registry_access import known_instances, of_each, open_registry
from meshrpc.control.client import ControlClient
from meshrpc.errors import ControlError
from meshrpc.registry.instance import Instance
from meshrpc.settings import Settings
from meshrpc.v1 import control_pb2

COLUMNS = ("id", "service", "address", "version", "zone", "weight", "labels", "health", "state")
SEEN_COLUMNS = (*COLUMNS, "connectivity", "pending")


@click.command()
@registry_settings
@output_option
def services(settings: Settings, output: Output) -> None:
    """List the services that have instances."""

    async def ask() -> dict[str, tuple[Instance, ...]]:
        async with open_registry(settings) as opened:
            return await of_each(await opened.services(), opened.instances)

    records = [
        {"service": name, "instances": len(found)} for name, found in asyncio.run(ask()).items()
    ]
    show_records(records, output, columns=("service", "instances"))


@click.command()
@click.argument("name")
@click.option(
    "--as-seen-by",
    "caller",
    metavar="INSTANCE",
    help="What this connected process makes of them; asked of the control service.",
)
@registry_settings
@output_option
def instances(name: str, caller: str | None, settings: Settings, output: Output) -> None:
    """List the instances of service NAME, draining ones included.

    With --as-seen-by they are those that this process calls just now, or leaves out: STATE is
    active, draining, held (the registry has it no more, which the process doubts) or ejected (it
    failed); then its connection, and how many calls are under way. `meshrpc status` lists who can
    be asked.
    """
    if caller is None:
        found = asyncio.run(_listed(name, settings))
        show_records([each.to_json() for each in found], output, columns=COLUMNS)
        return
    view = asyncio.run(_seen(name, caller, settings))
    for note in _notes(view, caller):
        click.echo(f"note: {note}", err=True)
    show_records([_seen_record(each) for each in view.instances], output, columns=SEEN_COLUMNS)


async def _listed(name: str, settings: Settings) -> tuple[Instance, ...]:
    async with open_registry(settings) as opened:
        return await known_instances(opened, name, settings)


async def _seen(name: str, caller: str, settings: Settings) -> control_pb2.ViewResponse:
    async with ControlClient(settings.control, namespace=settings.namespace) as client:
        status = await client.status()
        if caller not in (connected := [process.instance for process in status.processes]):
            raise ControlError(
                f"no process {caller!r} is connected to control in namespace "
                f"{settings.namespace}{did_you_mean(caller, connected, kind='connected')}"
            )
        view = await client.view(caller, name)
    if not view.is_called:
        raise ControlError(
            f"{caller} does not call {name!r}: a process looks a service up when it makes a channel "
            "to it and calls; without --as-seen-by the registry itself is asked"
        )
    return view


def _notes(view: control_pb2.ViewResponse, caller: str) -> list[str]:
    """Return what else the process says, a line each."""
    notes = []
    if view.away:
        notes.append(f"{caller} keeps what it last knew, its registry does not answer: {view.away}")
    if view.age_seconds:
        notes.append(f"{caller} has this from its disk, it is {view.age_seconds:.0f} s old")
    notes.extend(f"{caller} skipped {line}" for line in view.skipped)
    return [" ".join(note.splitlines()) for note in notes]


def _seen_record(seen: control_pb2.SeenInstance) -> dict[str, Any]:
    record = Instance.from_wire(seen.instance).to_json()
    if seen.state:
        record["state"] = seen.state
    return {**record, "connectivity": seen.connectivity or None, "pending": seen.pending}

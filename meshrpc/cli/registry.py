"""`meshrpc registry`: who serves what, in any kind of registry, and repairing what it says.

The commands see what a process with the same settings sees: they open the registry as it does.
Only `mesh:` needs the control service; its address is tried first, so that a control service
that is not there is one clear error and not a wait.
"""

from __future__ import annotations

import click

from meshrpc.cli.options import registry_options
from meshrpc.cli.registry_change import deregister, drain, undrain
from meshrpc.cli.registry_check import check
from meshrpc.cli.registry_list import instances, services
from meshrpc.cli.registry_register import register
from meshrpc.cli.registry_watch import watch


@click.group()
@registry_options
@click.pass_context
def registry(
    context: click.Context, registry_url: str | None, control: str | None, namespace: str | None
) -> None:
    """Look into a registry, and repair it.

    The options can be given here or after the command.
    """
    given = {"registry_url": registry_url, "control": control, "namespace": namespace}
    said = {name: value for name, value in given.items() if value is not None}
    context.default_map = dict.fromkeys(registry.commands, said)


for _command in (services, instances, watch, check, register, deregister, drain, undrain):
    registry.add_command(_command)

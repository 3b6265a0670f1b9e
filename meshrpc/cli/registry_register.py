"""`meshrpc registry register`: a record made by hand, for a server that is none of ours.

It is permanent: nobody renews it, and it stays until it is deregistered; the registry itself looks
whether the server answers. Said again it replaces what it said before, so that a script can be
run twice. The record of a running process is never replaced: the process would take it back.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import click

from meshrpc.cli.options import registry_settings
from meshrpc.cli.output import Output, output_option, show_record
from meshrpc.cli.registry_access import open_registry, require_changeable
from meshrpc.errors import RegistryError, SettingsError
from meshrpc.registry.instance import Instance
from meshrpc.settings import Settings, dialable, valid_name


def _labels(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    labels: dict[str, str] = {}
    for given in values:
        key, equals, value = (part.strip() for part in given.partition("="))
        if not key or not equals:
            raise click.BadParameter(f"{given!r}: a label is key=value, such as tier=gold")
        if key in labels:
            raise click.BadParameter(f"{given!r}: there is a label {key!r} already")
        labels[key] = value
    return labels


@click.command()
@click.argument("service")
@click.argument("address", metavar="HOST:PORT")
@click.option(
    "--id",
    "id_",
    metavar="ID",
    help="What it is called.  [default: SERVICE-HOST-PORT, as one word]",
)
@click.option("--version", metavar="NAME", help="Its version, which routes can tell.")
@click.option("--zone", metavar="NAME", help="Where it stands.")
@click.option("--weight", metavar="N", help="Its share of calls, 1 to 10000.  [default: 1]")
@click.option(
    "--label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_labels,
    help="What else tells it from others; repeatable.",
)
@registry_settings
@output_option
def register(
    *,
    service: str,
    address: str,
    id_: str | None,
    version: str | None,
    zone: str | None,
    weight: str | None,
    labels: dict[str, str],
    settings: Settings,
    output: Output,
) -> None:
    """Register a server that does not register itself.

    The server at HOST:PORT is an instance of SERVICE until it is deregistered. The same command
    with other options replaces the record; that of a running process is never replaced.
    """
    record = Settings.resolve({}, version=version, zone=zone, weight=weight, labels=labels)
    address = _checked("HOST:PORT", address, dialable)
    _checked("SERVICE", service, valid_name)
    instance = Instance(
        id=_checked("--id", default_id(service, address) if id_ is None else id_, valid_name),
        service=service,
        address=address,
        namespace=settings.namespace,
        version=record.version,
        zone=record.zone,
        weight=record.weight,
        labels=record.labels,
        permanent=True,
    )
    before, after = asyncio.run(_register(instance, settings))
    if output != "table":
        show_record(after.to_json(), output)
        return
    done = "registered" if before is None else "unchanged" if before == after else "replaced"
    click.echo(f"{done} {after.id} of {after.service} at {after.address}")


def default_id(service: str, address: str) -> str:
    """Return the id of an instance that was given none: the same for the same address."""
    return f"{service}-{re.sub(r'[^A-Za-z0-9.]+', '-', address).strip('-')}"


async def _register(instance: Instance, settings: Settings) -> tuple[Instance | None, Instance]:
    """Register; return the record that was there before, and the one that is there now."""
    async with open_registry(settings) as opened:
        require_changeable(opened, f"register {instance.id!r}")
        before = next(
            (one for one in await opened.instances(instance.service) if one.id == instance.id), None
        )
        if before is not None and not before.permanent:
            raise RegistryError(
                f"{instance.id!r} of {instance.service!r} is a process that registered itself, at "
                f"{before.address}: give this one another --id"
            )
        if before is not None:
            # What is not said here stays: an operator's mark, and what was found at this address.
            instance = replace(instance, incarnation=before.incarnation, state=before.state)
            if before.address == instance.address:
                instance = replace(instance, health=before.health)
        await opened.register(instance)
    return before, instance


def _checked(what: str, given: str, check: Callable[[str], str]) -> str:
    try:
        return check(given)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{what} {given!r}: {error}") from error

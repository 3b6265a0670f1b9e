"""`meshrpc registry`: who serves what, in any kind of registry.

The commands see what a process with the same settings sees: they open the registry as it does.
Only `mesh:` needs the control service; its address is tried first, so that a control service
that is not there is one clear error and not a wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import click

from meshrpc.cli.options import control_options
from meshrpc.cli.output import (
    Output,
    ending_with_reader,
    output_option,
    show_next,
    show_records,
)
from meshrpc.cli.reflection import did_you_mean
from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.control.client import reachable
from meshrpc.errors import RegistryError
from meshrpc.mesh import Mesh
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import Registry, Snapshot, Watch
from meshrpc.settings import Settings

RELIST_EVERY = 2.0
"""Seconds between looks for new services: registries watch one service, not the list of them."""

COLUMNS = ("id", "service", "address", "version", "zone", "weight", "labels", "health", "state")
CHANGE_COLUMNS = ("change", "service", "id", "address", "version", "health", "state")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def registry_options(command: _Command) -> _Command:
    """Give a command `-r/--registry`, `--control` and `--namespace`; None when not given."""
    registry_option = click.option(
        "-r",
        "--registry",
        "registry_url",
        metavar="URL",
        help="The registry.  [env: MESHRPC_REGISTRY; default: mesh:, control's own]",
    )
    return registry_option(control_options(command))


@click.group()
def registry() -> None:
    """Look into a registry."""


@registry.command()
@registry_options
@output_option
def services(
    registry_url: str | None, control: str | None, namespace: str | None, output: Output
) -> None:
    """List the services that have instances."""
    settings = Settings.resolve(registry=registry_url, control=control, namespace=namespace)

    async def ask() -> list[dict[str, Any]]:
        async with open_registry(settings) as opened:
            return [
                {"service": name, "instances": len(await opened.instances(name))}
                for name in await opened.services()
            ]

    show_records(asyncio.run(ask()), output, columns=("service", "instances"))


@registry.command()
@click.argument("name")
@registry_options
@output_option
def instances(
    name: str,
    registry_url: str | None,
    control: str | None,
    namespace: str | None,
    output: Output,
) -> None:
    """List the instances of service NAME, draining ones included."""
    settings = Settings.resolve(registry=registry_url, control=control, namespace=namespace)

    async def ask() -> tuple[Instance, ...]:
        async with open_registry(settings) as opened:
            return await known_instances(opened, name, settings)

    found = asyncio.run(ask())
    show_records([instance.to_json() for instance in found], output, columns=COLUMNS)


@registry.command()
@click.argument("name", required=False)
@registry_options
@output_option
def watch(
    name: str | None,
    registry_url: str | None,
    control: str | None,
    namespace: str | None,
    output: Output,
) -> None:
    """Print what changes, a line each, until Ctrl-C.

    Each line says added, removed, draining or changed; the instances there are at first come as
    added. Without NAME all services are watched, new ones too.
    """
    settings = Settings.resolve(registry=registry_url, control=control, namespace=namespace)

    async def print_changes() -> None:
        async with open_registry(settings) as opened, ending_with_reader():
            if name is not None and name not in await opened.services():
                click.echo(f"no service named {name!r} yet: waiting for it", err=True)
            async for change in changes(opened, name, clock=SYSTEM_CLOCK):
                show_next(change, output, columns=CHANGE_COLUMNS)

    try:
        asyncio.run(print_changes())
    except KeyboardInterrupt:
        return  # the way to end it, so no failure


@asynccontextmanager
async def open_registry(settings: Settings) -> AsyncIterator[Registry]:
    """Open the registry of `settings`.

    Raises:
        ControlError: it is control's own, and control cannot be reached.
        RegistryError: it cannot be reached.
        SettingsError: its URL cannot be used.
    """
    control = (await reachable(settings.control),) if is_embedded(settings) else ()
    alone = replace(settings, control=control)
    async with Mesh.from_settings("meshrpc-registry", alone) as mesh:
        yield mesh.registry


def is_embedded(settings: Settings) -> bool:
    """Whether the registry is the control service's own."""
    url = settings.registry
    return isinstance(url, str) and url.partition(":")[0].strip().lower() == "mesh"


async def known_instances(
    opened: Registry, service: str, settings: Settings
) -> tuple[Instance, ...]:
    """Return the instances of `service`, which has some.

    Raises:
        RegistryError: no service has this name; says which there are.
    """
    found = await opened.instances(service)
    if not found:
        known = await opened.services()
        if service not in known:
            raise RegistryError(
                f"no service named {service!r} in registry {settings.registry}"
                f"{did_you_mean(service, known)}"
            )
    return found


async def changes(
    opened: Registry, name: str | None, *, clock: Clock
) -> AsyncIterator[Mapping[str, Any]]:
    """Yield each change to the instances of service `name`, or of all services, for ever.

    A change is the instance as `-o json` shows it, with a first key `change`.
    """
    arrived: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    watches: dict[str, Watch] = {}

    def follow(service: str) -> None:
        before: dict[str, Instance] = {}

        def on_snapshot(snapshot: Snapshot) -> None:
            nonlocal before
            after = {instance.id: instance for instance in snapshot.instances}
            for change, instance in _differences(before, after):
                arrived.put_nowait({"change": change, **instance.to_json()})
            before = after

        watches[service] = opened.watch(service, on_snapshot)

    try:
        if name is not None:
            follow(name)
        due = clock.now()
        while True:
            if name is None and clock.now() >= due:
                for service in await _listed(opened):
                    if service not in watches:
                        follow(service)
                due = clock.now() + RELIST_EVERY
            try:
                async with asyncio.timeout(max(0.0, due - clock.now()) if name is None else None):
                    change = await arrived.get()
            except TimeoutError:
                continue
            yield change
    finally:
        for running in watches.values():
            running.close()


async def _listed(opened: Registry) -> tuple[str, ...]:
    try:
        return await opened.services()
    except RegistryError:
        return ()  # like the watches, which keep what they know and go on trying


def _differences(
    before: Mapping[str, Instance], after: Mapping[str, Instance]
) -> list[tuple[str, Instance]]:
    """Return what happened to each instance between two snapshots, ordered by id."""
    differences: list[tuple[str, Instance]] = []
    for id_ in sorted(before.keys() | after.keys()):
        old, new = before.get(id_), after.get(id_)
        if new is None:
            differences.append(("removed", before[id_]))
        elif old is None:
            differences.append(("added", new))
        elif new.state is State.DRAINING and old.state is not State.DRAINING:
            differences.append(("draining", new))
        elif new != old:
            differences.append(("changed", new))
    return differences

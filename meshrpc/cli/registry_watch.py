"""`meshrpc registry watch`: what changes in a registry, a line each.

A load that moves is no change here: instances report one every few seconds, and it would hide
everything else. A registry that stops answering is told of on stderr, by the watches themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import click

from meshrpc.cli.options import registry_settings
from meshrpc.cli.output import Output, ending_with_reader, output_option, show_next, shown
from meshrpc.cli.registry_access import open_registry
from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import RegistryError
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import Registry, Snapshot, Watch
from meshrpc.settings import Settings

LOOK_EVERY = 2.0
"""Seconds between looks for new services: registries watch one service, not the list of them."""

COLUMNS = ("change", "service", "id", "address", "version", "health", "state")


@click.command()
@click.argument("name", required=False)
@registry_settings
@output_option
def watch(name: str | None, settings: Settings, output: Output) -> None:
    """Print what changes, a line each, until Ctrl-C.

    Each line says added, removed, draining or changed, and what of it changed; the instances
    there are at first come as added. Without NAME all services are watched, new ones too. What
    instances report of their load is left out.
    """

    async def print_changes() -> None:
        async with open_registry(settings) as opened, ending_with_reader():
            # Also without a name: a registry that is not there should be told of, not waited for.
            if name is None:
                await opened.services()
            elif not await opened.instances(name):
                click.echo(f"no service named {name!r} yet: waiting for it", err=True)
            async for change in changes(opened, name, clock=SYSTEM_CLOCK):
                _show(change, output)

    try:
        asyncio.run(print_changes())
    except KeyboardInterrupt:
        return  # the way to end it, so no failure


async def changes(
    opened: Registry, name: str | None, *, clock: Clock
) -> AsyncIterator[Mapping[str, Any]]:
    """Yield each change to the instances of service `name`, or of all services, for ever.

    A change is the instance as `-o json` shows it, with a first key `change` and a last one
    `changes`: what differs, as `{field: [before, after]}`.
    """
    arrived: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    watches: dict[str, Watch] = {}

    def follow(service: str) -> None:
        before: dict[str, Instance] = {}

        def on_snapshot(snapshot: Snapshot) -> None:
            nonlocal before
            after = {instance.id: instance for instance in snapshot.instances}
            for change in differences(before, after):
                arrived.put_nowait(change)
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
                due = clock.now() + LOOK_EVERY
            try:
                async with clock.timeout(max(0.0, due - clock.now()) if name is None else None):
                    change = await arrived.get()
            except TimeoutError:
                continue
            yield change
    finally:
        for running in watches.values():
            running.close()


def differences(
    before: Mapping[str, Instance], after: Mapping[str, Instance]
) -> list[Mapping[str, Any]]:
    """Return what happened to each instance between two snapshots, ordered by id."""
    found: list[Mapping[str, Any]] = []
    for id_ in sorted(before.keys() | after.keys()):
        old, new = before.get(id_), after.get(id_)
        if new is None:
            found.append(_change("removed", before[id_], {}))
        elif old is None:
            found.append(_change("added", new, {}))
        elif fields := _changed_fields(old, new):
            is_leaving = new.state is State.DRAINING and old.state is not State.DRAINING
            found.append(_change("draining" if is_leaving else "changed", new, fields))
    return found


def _change(word: str, instance: Instance, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"change": word, **instance.to_json(), "changes": fields}


def _changed_fields(old: Instance, new: Instance) -> dict[str, list[Any]]:
    """Return the fields that differ, load aside, each with its value before and after."""
    was = {**old.to_json(), "incarnation": old.incarnation}
    now = {**new.to_json(), "incarnation": new.incarnation}
    return {
        key: [was[key], value] for key, value in now.items() if key != "load" and was[key] != value
    }


def _show(change: Mapping[str, Any], output: Output) -> None:
    if output != "table":
        show_next(change, output, columns=COLUMNS)
        return
    what = ", ".join(
        f"{field} {shown(before)} -> {shown(after)}"
        for field, (before, after) in change["changes"].items()
        if (change["change"], field) != ("draining", "state")
    )
    if what:
        show_next({**change, "what": what}, output, columns=(*COLUMNS, "what"))
    else:
        show_next(change, output, columns=COLUMNS)


async def _listed(opened: Registry) -> tuple[str, ...]:
    try:
        return await opened.services()
    except RegistryError:
        return ()  # like the watches, which keep what they know and go on trying

"""`meshrpc registry drain`, `undrain` and `deregister`: what an operator does to one record.

The instance is found by its id, shown, and changed once somebody has confirmed it: a person at a
terminal, or `--yes`. The question stands between two looks at the registry and not inside of one:
nothing is kept open while a person thinks. What is so already is said, and no failure.
"""

from __future__ import annotations

import asyncio
import difflib
import select
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import click

from meshrpc.cli.options import registry_settings
from meshrpc.cli.output import Output, output_option, show_record, shown
from meshrpc.cli.registry_access import (
    known_instances,
    name_of,
    of_each,
    open_registry,
    require_changeable,
)
from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.errors import MeshError, RegistryError
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import RENEW_EVERY, Registry
from meshrpc.settings import Settings

MARK_SEEN_WITHIN = 1.0
"""Seconds from the draining mark to the end of the record, where nobody says that it was seen."""
LOOK_UP_EVERY = 0.2
"""Seconds until a Ctrl-C is noticed, at the latest, while a person is asked."""
LISTED = 10
"""So many ids are listed in an error; of more, the likeliest."""


def change_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument ID, `--service`, `--yes`, `-o` and the registry's options."""
    id_ = click.argument("id_", metavar="ID")
    service = click.option(
        "--service", metavar="NAME", help="The instance's service, where several have this id."
    )
    yes = click.option("-y", "--yes", "is_confirmed", is_flag=True, help="Do not ask.")
    return id_(service(yes(registry_settings(output_option(command)))))


@click.command()
@change_options
def drain(
    id_: str, service: str | None, is_confirmed: bool, settings: Settings, output: Output
) -> None:
    """Keep new calls away from instance ID, until `undrain`.

    It goes on running. The mark stays when the instance renews or registers again; not when it starts anew.
    """
    found = asyncio.run(_find(id_, service, settings, "drain"))
    if found.state is State.DRAINING:
        _say(found, "is draining already", output)
        return
    _confirm(found, "Keep new calls away from it?", is_confirmed=is_confirmed)
    _say(asyncio.run(_drain(found, settings)), "is draining: no new calls go to it", output)


@click.command()
@change_options
def undrain(
    id_: str, service: str | None, is_confirmed: bool, settings: Settings, output: Output
) -> None:
    """Let instance ID take calls again, after `drain`."""
    found = asyncio.run(_find(id_, service, settings, "undrain"))
    if found.state is not State.DRAINING:
        _say(found, "is not draining: it takes calls", output)
        return
    _confirm(found, "Let it take calls again?", is_confirmed=is_confirmed)
    _say(asyncio.run(_undrain(found, settings)), "takes calls again", output)


@click.command()
@change_options
def deregister(
    id_: str, service: str | None, is_confirmed: bool, settings: Settings, output: Output
) -> None:
    """Remove the record of instance ID.

    For records made by hand, and for those that nobody takes away. A process that runs registers
    again by itself; `drain` is what keeps calls away from it.
    """
    found = asyncio.run(_find(id_, service, settings, "deregister", may_be_unlisted=True))
    if not found.permanent:
        click.echo(
            f"warning: if {found.id} still runs it will register again by itself within "
            f"{RENEW_EVERY:g} s; what keeps calls away is: meshrpc registry drain {found.id}",
            err=True,
        )
    _confirm(found, "Remove its record?", is_confirmed=is_confirmed)
    asyncio.run(_deregister(found, settings))
    _say(found, "is deregistered", output)


async def _find(
    id_: str, service: str | None, settings: Settings, verb: str, *, may_be_unlisted: bool = False
) -> Instance:
    """Return the one instance of this id, of all services or of `service`.

    Raises:
        ReadOnlyRegistry: nothing can be changed there.
        RegistryError: there is none, or several services have one.
    """
    async with open_registry(settings) as opened:
        require_changeable(opened, f"{verb} {id_!r}")
        services = await opened.services() if service is None else (service,)
        answers = await of_each(services, opened.instances)
        known = [instance for listed in answers.values() for instance in listed]
        found = [instance for instance in known if instance.id == id_]
        if not found and may_be_unlisted:
            found = await _unlisted(opened, id_, services, settings.namespace)
        if not found and service is not None:
            await known_instances(opened, service, settings)  # or there is none of this name
    if not found:
        where = f"registry {name_of(settings)}" if service is None else f"service {service!r}"
        raise RegistryError(f"no instance {id_!r} in {where}{_others(id_, known)}")
    if len(found) > 1:
        names = ", ".join(sorted(instance.service for instance in found))
        raise RegistryError(f"{id_!r} is an instance of {names}: say which with --service NAME")
    return found[0]


async def _unlisted(
    opened: Registry, id_: str, services: Sequence[str], namespace: str
) -> list[Instance]:
    """Return records that are listed to nobody, because they are stale or bad, and stand there."""
    told = await of_each(services, opened.findings)
    return [
        Instance(id=id_, service=service, address="", namespace=namespace)
        for service, findings in told.items()
        if any(finding.id == id_ for finding in findings)
    ]


def _others(id_: str, known: Sequence[Instance]) -> str:
    """Return what else might have been meant."""
    ids = sorted({instance.id for instance in known})
    if len(ids) <= LISTED:
        return f" (known: {', '.join(ids) or 'none'})"
    close = difflib.get_close_matches(id_, ids)
    return f" (did you mean {', '.join(close)}?)" if close else f" (it has {len(ids)} others)"


def _confirm(instance: Instance, question: str, *, is_confirmed: bool) -> None:
    """Return if it is confirmed: by `--yes`, or by a person who has seen the record.

    Raises:
        MeshError: it is not.
    """
    if is_confirmed:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise MeshError(
            f"nobody can be asked whether {instance.id} of {instance.service} is meant, this is no "
            "terminal: give --yes"
        )
    for key, value in instance.to_json().items():
        click.echo(f"{key:<11}{shown(value)}", err=True)
    click.echo(f"{question} [y/N] ", nl=False, err=True)
    if _typed().strip().lower() not in ("y", "yes"):
        raise MeshError(f"not confirmed: {instance.id} stays as it was")


def _typed() -> str:
    """Return the line that a person types. Ctrl-C stays one: click's questions make it a no."""
    # A Ctrl-C that came a moment before a read would wait for its end, so none is begun in vain.
    while not select.select([sys.stdin], [], [], LOOK_UP_EVERY)[0]:
        pass
    return sys.stdin.readline()


async def _drain(instance: Instance, settings: Settings) -> Instance:
    async with open_registry(settings) as opened:
        await opened.drain(instance)
    return replace(instance, state=State.DRAINING)


async def _undrain(instance: Instance, settings: Settings) -> Instance:
    async with open_registry(settings) as opened:
        await opened.undrain(instance)
    return replace(instance, state=State.ACTIVE)


async def _deregister(instance: Instance, settings: Settings) -> None:
    async with open_registry(settings) as opened:
        if not opened.acknowledges:
            # Who sees the mark knows that the instance left: its absence is then no doubt.
            await opened.drain(instance)
            await SYSTEM_CLOCK.sleep(MARK_SEEN_WITHIN)
        await opened.deregister(instance)


def _say(instance: Instance, said: str, output: Output) -> None:
    if output == "table":
        click.echo(f"{instance.id} of {instance.service} {said}")
    else:
        show_record(instance.to_json(), output)

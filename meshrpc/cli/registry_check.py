"""`meshrpc registry check`: what is wrong with what a registry says.

The registry tells what it knows of its records; this adds what only shows from outside: several
instances at one address, addresses where nobody answers, and processes whose release of this
library is another one. It changes nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field

import click

import meshrpc
from meshrpc.cli.options import registry_settings
from meshrpc.cli.output import Output, output_option, show_records
from meshrpc.cli.registry_access import is_embedded, known_instances, of_each, open_registry
from meshrpc.cli.registry_reach import unreachable
from meshrpc.control.client import ControlClient
from meshrpc.errors import ControlError, RegistryError
from meshrpc.registry.finding import Finding, Problem
from meshrpc.registry.instance import Instance
from meshrpc.registry.registry import Registry
from meshrpc.settings import Settings
from meshrpc.v1 import control_pb2

COLUMNS = ("problem", "service", "id", "detail")
WORTH_PROGRESS = 50
"""Addresses from which on it is shown how far one is."""

Listed = Mapping[str, Sequence[Instance]]
"""Instances by service."""


@click.command()
@click.argument("name", required=False)
@registry_settings
@output_option
@click.pass_context
def check(context: click.Context, name: str | None, settings: Settings, output: Output) -> None:
    """Look for records that are wrong.

    Of all services, or of service NAME. PROBLEM is stale, lease_near_expiry, not_serving,
    bad_record, duplicate_address, unreachable (from here, within 2 s) or version_skew. The exit
    code is 1 if anything is found.
    """
    report = asyncio.run(_check(name, settings))
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    counts = f"{_count(report.instances, 'instance')} of {_count(report.services, 'service')}"
    if report.findings or output != "table":
        show_records([asdict(each) for each in report.findings], output, columns=COLUMNS)
        if output == "table":
            click.echo(f"{counts}: {_count(len(report.findings), 'problem')}", err=True)
    else:
        click.echo(f"{counts}: nothing found")
    if report.findings:
        context.exit(1)


@dataclass(slots=True)
class _Report:
    instances: int
    services: int
    findings: tuple[Finding, ...]
    notes: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""


async def _check(name: str | None, settings: Settings) -> _Report:
    async with open_registry(settings) as opened:
        if name is not None and not await opened.findings(name):  # of records that nobody sees
            await known_instances(opened, name, settings)  # or there is none of this name
        everything = await of_each(await _services(opened, name), opened.instances)
        wanted = everything if name is None else {name: everything[name]}
        told = await of_each(wanted, opened.findings)
    found = [finding for findings in told.values() for finding in findings]
    found += duplicates(everything, wanted)
    found += await _unreachable(wanted)
    skewed, notes = await _skewed(settings, wanted if name is not None else None)
    count = sum(map(len, wanted.values()))
    return _Report(count, len(wanted), merged([*found, *skewed]), notes)


async def _services(opened: Registry, name: str | None) -> tuple[str, ...]:
    """Return all services: an address may be another one's, too."""
    try:
        services = await opened.services()
    except RegistryError:
        if name is None:
            raise
        services = ()  # it cannot list, or not now: what was asked for can be looked at
    return services if name is None else tuple(sorted({*services, name}))


def duplicates(everything: Listed, wanted: Iterable[str]) -> list[Finding]:
    """Return a finding for each instance of `wanted` services whose address others have too."""
    at: dict[str, list[Instance]] = {}
    for instances in everything.values():
        for instance in instances:
            at.setdefault(instance.address, []).append(instance)
    return [
        Finding(
            Problem.DUPLICATE_ADDRESS,
            instance.service,
            instance.id,
            f"{instance.address} is also that of "
            + ", ".join(
                f"{other.id} of {other.service}"
                for other in at[instance.address]
                if other is not instance
            )
            + ": deregister the one that is gone",
        )
        for service in wanted
        for instance in everything[service]
        if len(at[instance.address]) > 1
    ]


async def _unreachable(listed: Listed) -> list[Finding]:
    instances = [instance for found in listed.values() for instance in found]
    addresses = sorted({instance.address for instance in instances})
    async with _progress(len(addresses)) as step:

        async def look(address: str) -> str | None:
            reason = await unreachable(address)
            step()
            return reason

        reasons = await of_each(addresses, look)
    return [
        Finding(
            Problem.UNREACHABLE,
            instance.service,
            instance.id,
            f"{instance.address}: {reason}; from here, callers may see it otherwise",
        )
        for instance in instances
        if (reason := reasons[instance.address]) is not None
    ]


async def _skewed(
    settings: Settings, services: Iterable[str] | None
) -> tuple[list[Finding], list[str]]:
    """Return who runs another release, as control knows, and what could not be asked."""
    if not settings.control:
        return [], ["releases are not compared: there is no control service to ask"]
    try:
        async with ControlClient(settings.control, namespace=settings.namespace) as client:
            status = await client.status()
    except ControlError as error:
        if is_embedded(settings):
            raise
        return [], [f"releases are not compared: {error}"]
    processes = [
        process
        for process in status.processes
        if services is None or process.service in frozenset(services)
    ]
    return skew(processes, meshrpc.__version__), []


def skew(processes: Iterable[control_pb2.ProcessStatus], own: str) -> list[Finding]:
    """Return a finding for each process whose release differs from `own` in more than the patch."""
    return [
        Finding(
            Problem.VERSION_SKEW,
            process.service,
            process.instance,
            f"runs meshrpc {process.library}, and this is {own}: neighbours understand each other; "
            "bring them together all the same",
        )
        for process in processes
        if process.library and _minor(process.library) != _minor(own)
    ]


def merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return each problem of each instance once, in the words that came first, in order."""
    first: dict[tuple[str, str, str, str], Finding] = {}
    for each in findings:
        # Of records without an id there may be several.
        detail = "" if each.id else each.detail
        first.setdefault((each.service, each.id, each.problem.value, detail), each)
    return tuple(first[key] for key in sorted(first))


def _minor(release: str) -> list[str]:
    return release.split(".")[:2]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


@asynccontextmanager
async def _progress(length: int) -> AsyncIterator[Callable[[], None]]:
    """Show how far one is, to people, if it takes a while."""
    if length < WORTH_PROGRESS or not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=length, label="asking addresses", file=sys.stderr) as bar:
        yield lambda: bar.update(1)

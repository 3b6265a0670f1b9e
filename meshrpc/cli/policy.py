"""`meshrpc policy`: policy documents, from files to control and back.

Files are loaded here by the same loader as in control, so that a mistake is reported with its
file, path, value and rule before anything is sent; control checks again, and stores all
documents of one command as one revision, or none.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click
import yaml

from meshrpc.cli import Failure
from meshrpc.cli.options import control_options
from meshrpc.cli.output import Output, output_option, show_record, show_records
from meshrpc.cli.reflection import did_you_mean
from meshrpc.control.client import ControlClient, DocumentsRefused
from meshrpc.errors import ControlError, MeshError, PolicyError, Problem
from meshrpc.policy.documents import Document, load_documents
from meshrpc.settings import Settings
from meshrpc.v1 import policy_pb2

SUFFIXES = (".yaml", ".yml", ".json")

_file_option = click.option(
    "-f",
    "--file",
    "files",
    metavar="FILE|DIR|-",
    multiple=True,
    required=True,
    help="A policy file, a folder of them (*.yaml, *.yml, *.json), or - for stdin; repeatable.",
)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A document, and the file it stands in."""

    source: str
    document: Document


@click.group()
def policy() -> None:
    """Validate, apply and read policies."""


@policy.command()
@_file_option
def validate(files: tuple[str, ...]) -> None:
    """Check policy files, without a control service."""
    for loaded in _load(files):
        for warning in loaded.document.warnings:
            click.echo(f"warning: {loaded.source}: {warning}", err=True)
        click.echo(f"{loaded.source}: {loaded.document.policy.service}: valid")


@policy.command()
@_file_option
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@control_options
@output_option
def apply(
    files: tuple[str, ...],
    dry_run: bool,
    control: str | None,
    namespace: str | None,
    output: Output,
) -> None:
    """Make the documents in policy files take effect: all of them, or none."""
    settings = Settings.resolve(control=control, namespace=namespace)
    documents = [loaded.document.canonical for loaded in _load(files)]

    async def ask() -> policy_pb2.ApplyResponse:
        async with ControlClient(settings.control, namespace=settings.namespace) as client:
            return await client.apply_policies(documents, dry_run=dry_run)

    try:
        answer = asyncio.run(ask())
    except DocumentsRefused as refused:
        raise Failure(str(refused)) from refused
    done = "would change" if dry_run else "changed"
    _show_change(answer.revision, tuple(answer.changed), tuple(answer.warnings), done, output)


@policy.command()
@click.argument("service")
@control_options
@output_option
def delete(service: str, control: str | None, namespace: str | None, output: Output) -> None:
    """Delete a service's document: the mesh's defaults then hold for it."""
    settings = Settings.resolve(control=control, namespace=namespace)

    async def ask() -> int:
        async with ControlClient(settings.control, namespace=settings.namespace) as client:
            if await client.policy(service) is None:
                await _raise_no_policy(client, service)
            return await client.delete_policy(service)

    _show_change(asyncio.run(ask()), (service,), (), "deleted", output)


@policy.command()
@click.argument("service")
@control_options
@click.option(
    "-o",
    "--output",
    type=click.Choice(["yaml", "json"]),
    default="yaml",
    show_default=True,
    help="How to show the document.",
)
def get(service: str, control: str | None, namespace: str | None, output: Output) -> None:
    """Show the document of SERVICE ("*": the mesh's defaults), as `apply` takes it."""
    settings = Settings.resolve(control=control, namespace=namespace)

    async def ask() -> policy_pb2.PolicyDocument:
        async with ControlClient(settings.control, namespace=settings.namespace) as client:
            found = await client.policy(service)
            return found if found is not None else await _raise_no_policy(client, service)

    document = json.loads(asyncio.run(ask()).document)
    # Documents are stored with sorted keys; people look for these two at the top.
    document = {key: document[key] for key in ("schema", "service")} | document
    if output == "json":
        show_record(document, output)
    else:
        click.echo(_yaml(document), nl=False)


@policy.command(name="list")
@control_options
@output_option
def list_(control: str | None, namespace: str | None, output: Output) -> None:
    """List the services with a document, and the revision that last changed it."""
    settings = Settings.resolve(control=control, namespace=namespace)

    async def ask() -> tuple[policy_pb2.PolicyDocument, ...]:
        async with ControlClient(settings.control, namespace=settings.namespace) as client:
            return await client.policies()

    records = [{"service": each.service, "revision": each.revision} for each in asyncio.run(ask())]
    show_records(records, output, columns=("service", "revision"))


async def _raise_no_policy(client: ControlClient, service: str) -> NoReturn:
    known = [document.service for document in await client.policies()]
    raise ControlError(f"no policy for service {service!r}{did_you_mean(service, known)}")


def _show_change(
    revision: int, changed: Sequence[str], warnings: Sequence[str], done: str, output: Output
) -> None:
    if output != "table":
        record = {"revision": revision, "changed": list(changed), "warnings": list(warnings)}
        show_record(record, output)
        return
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    said = f"{done} {', '.join(changed)}" if changed else "nothing changed"
    click.echo(f"{said} (revision {revision})")


def _load(files: Sequence[str]) -> list[_Loaded]:
    """Load every document of every file.

    Raises:
        Failure: with every problem of every file, a line each.
    """
    loaded: list[_Loaded] = []
    errors: list[MeshError] = []
    owners: dict[str, str] = {}
    for file in _expanded(files):
        source = "stdin" if file == "-" else file
        try:
            documents = load_documents(_read(file, source), source=source)
        except MeshError as error:
            errors.append(error)
            continue
        for document in documents:
            service = document.policy.service
            if service in owners:
                rule = f"{owners[service]} has a document for this service already"
                errors.append(PolicyError((Problem("service", service, rule),), source=source))
            owners[service] = source
            loaded.append(_Loaded(source, document))
    if errors:
        raise Failure("\n".join(map(str, errors)))
    return loaded


def _expanded(files: Sequence[str]) -> Iterator[str]:
    """Yield the files named, with folders replaced by the policy files in them."""
    for file in files:
        if file != "-" and (folder := Path(file)).is_dir():
            found = sorted(
                each
                for each in folder.iterdir()
                if each.suffix in SUFFIXES and not each.name.startswith(".")
            )
            if not found:
                suffixes = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
                raise MeshError(f"{file}: there are no policy files ({suffixes}) in this folder")
            yield from map(str, found)
        else:
            yield file


def _read(file: str, source: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return raw.decode()
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise MeshError(f"{source}: cannot be read: {cause}") from error
    except UnicodeDecodeError as error:
        raise MeshError(f"{source}: is not UTF-8 text: byte {error.start} is wrong") from error


class _PlainText(yaml.SafeDumper):
    """Writes text without quotes wherever the policy loader, for which all is text, allows it."""


_NULL = "tag:yaml.org,2002:null"
_PlainText.yaml_implicit_resolvers = {
    first: nulls
    for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    if (nulls := [resolver for resolver in resolvers if resolver[0] == _NULL])
}


def _yaml(document: dict[str, Any]) -> str:
    dumped: str = yaml.dump(document, Dumper=_PlainText, sort_keys=False, allow_unicode=True)
    return dumped

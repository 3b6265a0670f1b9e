"""`meshrpc call`: one call through the mesh, without generated code.

The process joins the mesh as any client does, so the call is balanced, retried and limited by
policy like every other. What the method takes and gives is learnt by server reflection. The
deadline covers all of it, from the first question to the last answer.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from meshrpc import wire
from meshrpc.cli.options import registry_options
from meshrpc.cli.reflection import find_method, message_from_json, message_to_json
from meshrpc.cli.registry_access import is_embedded, known_instances
from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.control.client import reachable
from meshrpc.errors import ControlError, MeshError
from meshrpc.mesh import Mesh
from meshrpc.policy.quantities import duration
from meshrpc.policy.schema import Place, RefusedError, Report
from meshrpc.settings import Settings

_TRAILERS: Final = (wire.RETRY_AFTER, wire.NOT_EXECUTED, wire.DRAIN)
"""Trailers that say what to do about a failure."""

_KEY = re.compile(r"[0-9a-z_.-]+")


def _seconds(context: click.Context, parameter: click.Parameter, value: str) -> float:
    report = Report()
    try:
        return duration(Place(value, "", report))
    except RefusedError as error:
        raise click.BadParameter(f"{value!r}: {error}") from error


def _metadata(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> wire.Metadata:
    pairs: list[tuple[str, str | bytes]] = []
    for given in values:
        key, equals, value = given.partition("=")
        key = key.strip().lower()
        if not equals or not _KEY.fullmatch(key):
            raise click.BadParameter(f"{given!r}: metadata is key=value, such as x-group=beta")
        if not key.endswith("-bin"):
            if not (value.isascii() and value.isprintable()):
                raise click.BadParameter(f"{given!r}: a metadata value is printable ASCII")
            pairs.append((key, value))
            continue
        try:
            pairs.append((key, base64.b64decode(value, validate=True)))
        except binascii.Error as error:
            raise click.BadParameter(f"{given!r}: the value of a -bin key is base64") from error
    return tuple(pairs)


@click.command()
@click.argument("service")
@click.argument("method")
@click.option(
    "-d",
    "--data",
    metavar="JSON|@FILE|-",
    multiple=True,
    help="The request as JSON, @FILE or - for stdin; repeat it for a stream of requests.",
)
@click.option(
    "-H",
    "--metadata",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_metadata,
    help="Request metadata, repeatable; the value of a -bin key is base64.",
)
@click.option(
    "--timeout",
    metavar="DURATION",
    default="10s",
    show_default=True,
    callback=_seconds,
    help="The deadline, such as 500ms or 5s.",
)
@registry_options
def call(
    *,
    service: str,
    method: str,
    data: tuple[str, ...],
    metadata: wire.Metadata,
    timeout: float,
    registry_url: str | None,
    control: str | None,
    namespace: str | None,
) -> None:
    """Call METHOD (pkg.Service/Method) of SERVICE through the mesh.

    Prints the answer as JSON; a stream of answers as one JSON object per line. SERVICE may also
    be static:HOST:PORT, a server outside the mesh.
    """
    settings = Settings.resolve(registry=registry_url, control=control, namespace=namespace)
    requests = [request for given in data for request in _read_json(given)]
    asyncio.run(_call(settings, service, method, data=requests, metadata=metadata, timeout=timeout))


async def _call(
    settings: Settings,
    service: str,
    name: str,
    *,
    data: Sequence[Any],
    metadata: wire.Metadata,
    timeout: float,  # noqa: ASYNC109 - it becomes the deadline of grpc calls
) -> None:
    deadline = SYSTEM_CLOCK.now() + timeout
    is_in_registry = ":" not in service
    if not is_in_registry:
        settings = replace(settings, registry="memory:")  # asked nothing
    try:
        settings = replace(settings, control=(await reachable(settings.control),))
    except ControlError:
        if is_embedded(settings):
            raise
        settings = replace(settings, control=())  # it has the policies; calls go without them
    async with Mesh.from_settings("meshrpc-call", settings) as mesh:
        if is_in_registry:
            await known_instances(mesh.registry, service, settings)
        channel = mesh.channel(service)
        try:
            within = max(0.0, deadline - SYSTEM_CLOCK.now())
            method = await find_method(channel, service, name, within=within)
            requests = _requests(method, data)
            within = max(0.0, deadline - SYSTEM_CLOCK.now())
            async for answer in _answers(channel, method, requests, metadata, within):
                _show(answer, one_line=method.server_streaming)
        except grpc.aio.AioRpcError as error:
            raise MeshError(_failure(error)) from error


def _requests(method: MethodDescriptor, data: Sequence[Any]) -> list[Message]:
    """Return the method's requests; for a stream of them, JSON lists are taken apart."""
    if method.client_streaming:
        flat = [one for given in data for one in (given if isinstance(given, list) else [given])]
        return [message_from_json(method.input_type, one) for one in flat]
    if len(data) > 1:
        raise MeshError(f"{method.name} takes one request, and {len(data)} were given with -d")
    return [message_from_json(method.input_type, data[0] if data else {})]


async def _answers(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    requests: Sequence[Message],
    metadata: wire.Metadata,
    within: float,
) -> AsyncIterator[Message]:
    """Make the call, of whichever kind it is, and yield what comes back."""

    async def stream() -> AsyncIterator[Message]:
        for request in requests:
            yield request

    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    make: Any = kinds[method.client_streaming, method.server_streaming]
    multicallable = make(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    request = stream() if method.client_streaming else requests[0]
    running = multicallable(request, timeout=within, metadata=metadata)
    if method.server_streaming:
        async for answer in running:
            yield answer
    else:
        yield await running


def _show(answer: Message, *, one_line: bool) -> None:
    data = message_to_json(answer)
    click.echo(json.dumps(data, indent=None if one_line else 2, ensure_ascii=False))


def _failure(error: grpc.aio.AioRpcError) -> str:
    """Say the status, its details, and the trailers that help, in one line."""
    details = " ".join((error.details() or "no details").split())
    trailers = dict(error.trailing_metadata() or ())
    hints = [f"{key}: {trailers[key]}" for key in _TRAILERS if key in trailers]
    return f"{error.code().name}: {details}" + (f" ({', '.join(hints)})" if hints else "")


def _read_json(given: str) -> list[Any]:
    """Return the JSON values in one `-d`: one after the other, as tools write streams of them."""
    source, text = "-d", given
    try:
        if given == "-":
            source, text = "stdin", sys.stdin.buffer.read().decode()
        elif given.startswith("@"):
            source = given[1:]
            text = Path(source).read_bytes().decode()
    except OSError as error:
        raise MeshError(f"{source}: cannot be read: {(error.strerror or '').lower()}") from error
    except UnicodeDecodeError as error:
        raise MeshError(f"{source}: is not UTF-8 text: byte {error.start} is wrong") from error
    decoder = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    values: list[Any] = []
    at = _skip_space(text, 0)
    try:
        while at < len(text) or not values:
            value, at = decoder.raw_decode(text, at)
            values.append(value)
            at = _skip_space(text, at)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise MeshError(f"{source}: this is no JSON: {error.msg} at {where}") from error
    except (ValueError, RecursionError) as error:
        raise MeshError(f"{source}: this JSON cannot be used: {error}") from error
    return values


def _skip_space(text: str, at: int) -> int:
    return at + len(text[at:]) - len(text[at:].lstrip(" \t\r\n"))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not in JSON; write it as text, {name!r}")

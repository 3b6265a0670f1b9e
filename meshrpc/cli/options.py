"""Options that several commands share: which registry, which control service, which namespace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from meshrpc.settings import Settings

_Command = TypeVar("_Command", bound=Callable[..., Any])


def control_options(command: _Command) -> _Command:
    """Give a command `--control` and `--namespace`; it receives `control` and `namespace`.

    Both are None when not given: `Settings.resolve` then looks into the environment.
    """
    namespace = click.option(
        "--namespace", metavar="NAME", help="The namespace.  [env: MESHRPC_NAMESPACE]"
    )
    control = click.option(
        "--control",
        metavar="HOST:PORT[,...]",
        help="The control service.  [env: MESHRPC_CONTROL; default: 127.0.0.1:7700]",
    )
    return control(namespace(command))


def registry_options(command: _Command) -> _Command:
    """Give a command `-r/--registry`, `--control` and `--namespace`; None when not given."""
    registry = click.option(
        "-r",
        "--registry",
        "registry_url",
        metavar="URL",
        help="The registry.  [env: MESHRPC_REGISTRY; default: mesh:, control's own]",
    )
    return registry(control_options(command))


def registry_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the same options; it receives `settings`, with what they say."""

    @functools.wraps(command)
    def resolved(
        *args: Any,
        registry_url: str | None,
        control: str | None,
        namespace: str | None,
        **others: Any,
    ) -> None:
        settings = Settings.resolve(registry=registry_url, control=control, namespace=namespace)
        command(*args, settings=settings, **others)

    return registry_options(resolved)

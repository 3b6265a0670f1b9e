"""Options that several commands share: which registry, control service, namespace, log format."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from meshrpc.settings import Settings
from meshrpc.workers.logs import ENVIRONMENT as LOG_FORMAT
from meshrpc.workers.logs import LogFormat

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


def log_format_option(command: _Command) -> _Command:
    """Give a command `--log-format`; it receives `log_format: LogFormat`."""
    option = click.option(
        "--log-format",
        type=click.Choice([each.value for each in LogFormat]),
        callback=lambda _context, _option, value: LogFormat(value),
        envvar=LOG_FORMAT,
        default=LogFormat.TEXT.value,
        show_default=True,
        show_envvar=True,
        help="How to log to stderr: for people, or a line of JSON per record.",
    )
    return option(command)


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

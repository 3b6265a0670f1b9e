"""Options that several commands share: which control service, and which namespace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

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

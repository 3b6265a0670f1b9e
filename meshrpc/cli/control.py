"""`meshrpc control`: the control service, in the foreground."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import click

from meshrpc.cli.options import log_format_option
from meshrpc.control.server import ControlServer
from meshrpc.settings import (
    DEFAULT_CONTROL_HTTP_PORT,
    DEFAULT_CONTROL_PORT,
    default_state_dir,
)
from meshrpc.workers.logs import LogFormat, Who, log_to_stderr


@click.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=f"127.0.0.1:{DEFAULT_CONTROL_PORT}",
    show_default=True,
    help="Where processes connect (gRPC).",
)
@click.option(
    "--http",
    metavar="HOST:PORT",
    default=f"127.0.0.1:{DEFAULT_CONTROL_HTTP_PORT}",
    show_default=True,
    help="Where people and probes read, and supervisors report events (HTTP).",
)
@click.option(
    "--store",
    metavar="sqlite:PATH",
    help="Where policies are kept; control.db in the state folder unless given.",
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without identity.")
@log_format_option
def control(
    listen: str, http: str, store: str | None, insecure: bool, log_format: LogFormat
) -> None:
    """Run the control service: it pushes policies and keeps the embedded registry."""
    log_to_stderr(logging.INFO, format=log_format, who=Who(service="control"))
    asyncio.run(_serve(listen, http, store or _default_store(), insecure=insecure))


async def _serve(listen: str, http: str, store: str, *, insecure: bool) -> None:
    async with ControlServer(listen=listen, http=http, store=store, insecure=insecure) as server:
        running = asyncio.ensure_future(server.run())
        # Its signal handlers stand before anybody can read that it is ready.
        await asyncio.sleep(0)
        click.echo(
            f"control ready: grpc {server.address}, http {server.http_address}, store {store}"
        )
        await running


def _default_store() -> str:
    folder = Path(os.environ.get("MESHRPC_STATE_DIR") or default_state_dir())
    return f"sqlite:{folder / 'control.db'}"

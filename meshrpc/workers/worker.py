"""The program of one worker process: load the service, run it, and never outlive the supervisor.

`python -m meshrpc.workers.worker`, started by `process.py` and by nobody else. What it has to say
goes up the reports pipe as lines of JSON: `{"event": "ready", "service", "id", "address", "pid"}`
once it serves (and `"stop_within"`, the seconds it needs at most to stop), or
`{"event": "failed", "error"}` if it cannot.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from meshrpc.errors import MeshError, SettingsError
from meshrpc.registry.instance import Instance
from meshrpc.settings import Settings, parse_address
from meshrpc.workers.logs import log_to_stderr

LEAVING = 15.0
"""Seconds that stopping may take beside the grace for running calls: 5 s each to tell a registry
that does not answer and to leave it, 3 s until callers know, and some for the last spans."""

_logger = logging.getLogger("meshrpc.workers")


class _Reports:
    """The pipe to the supervisor. Where that is gone, nobody is left to be told."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.is_ready = False

    def ready(self, instance: Instance, stop_within: float) -> None:
        self.is_ready = True
        self._send(
            event="ready",
            service=instance.service,
            id=instance.id,
            address=instance.address,
            pid=os.getpid(),
            stop_within=stop_within,
        )

    def failed(self, error: str) -> None:
        self._send(event="failed", error=" ".join(error.splitlines()))

    def _send(self, **report: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._fd, json.dumps(report).encode() + b"\n")


class _Lifeline:
    """What bounds this process's life by its supervisor's.

    Watched in a thread of its own, so that a blocked event loop cannot keep it from that.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.stop_within = LEAVING

    def watch(self) -> None:
        told_to_stop = os.read(self._fd, 1)
        if not told_to_stop:
            # The supervisor died. Had it told us, its SIGTERM would be here too, and a second one
            # would cut the drain short.
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self.stop_within)
        os._exit(1)


def main() -> None:
    """Run the worker; exit code 0 after a graceful stop."""
    parser = argparse.ArgumentParser(prog="meshrpc-worker")
    parser.add_argument("reference")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--app-dir", type=Path, required=True)
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--reports", type=int, required=True)
    parser.add_argument("--replaces")
    options = parser.parse_args()
    # Processes that the service starts must hold neither end open.
    os.set_inheritable(options.lifeline, False)
    os.set_inheritable(options.reports, False)
    lifeline = _Lifeline(options.lifeline)
    threading.Thread(target=lifeline.watch, name="lifeline", daemon=True).start()
    reports = _Reports(options.reports)
    sys.exit(_run(options, lifeline, reports))


def _run(options: argparse.Namespace, lifeline: _Lifeline, reports: _Reports) -> int:
    reference: str = options.reference
    try:
        # Here, so that an installation that cannot be imported is reported like any failure.
        from meshrpc.workers.loading import load_service  # noqa: PLC0415

        service = load_service(reference, options.app_dir)
        service.settings = settings_of_worker(service.settings, options.index)
        service.replaces = options.replaces
        lifeline.stop_within = service.grace + LEAVING
        # After the service's module, so that logging it configured stays as it is.
        log_to_stderr(logging.INFO)
        service.run(on_ready=lambda instance: reports.ready(instance, lifeline.stop_within))
    except MeshError as error:
        reports.failed(str(error))
        return 1
    except Exception as error:
        if reports.is_ready:
            _logger.exception("%s ended by an error", reference)
        else:
            reports.failed(f"{reference} cannot start: {type(error).__name__}: {error}")
        return 1
    return 0


def settings_of_worker(settings: Settings, index: int) -> Settings:
    """Return the settings of the worker `index`, counted from 0: a fixed port moves up by it.

    Raises:
        SettingsError: that port does not exist.
    """
    return dataclasses.replace(
        settings,
        listen=_moved("listen", settings.listen, index),
        advertise=settings.advertise and _moved("advertise", settings.advertise, index),
    )


def _moved(name: str, address: str, index: int) -> str:
    host, port = parse_address(address)
    if port == 0:
        return address
    if port + index > 65535:
        raise SettingsError(
            f"{name}={address!r}: worker {index + 1} would have port {port + index}, "
            "and 65535 is the last there is"
        )
    return f"{host}:{port + index}"


if __name__ == "__main__":
    main()

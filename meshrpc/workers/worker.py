"""The program of one worker process: load the service, run it, and never outlive the supervisor.

`python -m meshrpc.workers.worker`, started by `process.py` and by nobody else. What it has to say
goes up the reports pipe as lines of JSON:

* `loaded` once it has the service: its name and namespace, the seconds it needs at most to stop,
  where control takes events, and the port to share with the other workers, for which it then waits;
* `ready` once it serves: the instance it is, and whether it can be replaced before it leaves;
* `load` once a second from its event loop, which is its sign of life;
* `failed` if it cannot serve, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import faulthandler
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from meshrpc.errors import MeshError, SettingsError
from meshrpc.registry.instance import Instance
from meshrpc.settings import Settings, parse_address
from meshrpc.workers.heartbeat import Heartbeat
from meshrpc.workers.logs import ENVIRONMENT as LOG_FORMAT
from meshrpc.workers.logs import LogFormat, Who, log_to_stderr
from meshrpc.workers.pipes import LEAVING, Lifeline, Reports
from meshrpc.workers.process import DUMP_SIGNAL

_SET_PARENT_DEATH_SIGNAL = 1  # linux/prctl.h

_logger = logging.getLogger("meshrpc.workers")


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
    if sys.stderr is None:  # closed (`2>&-`): then what is said goes nowhere
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - as long as we run
    if DUMP_SIGNAL is not None:
        faulthandler.register(DUMP_SIGNAL, all_threads=True, chain=False)
    _wake_with_parents_death()
    lifeline = Lifeline(options.lifeline)
    threading.Thread(target=lifeline.watch, name="lifeline", daemon=True).start()
    reports = Reports(options.reports)
    sys.exit(_run(options, lifeline, reports))


def _wake_with_parents_death() -> None:
    """Have a frozen worker woken when its supervisor dies, or it could not read that it did.

    Linux alone can; elsewhere it stays frozen until somebody wakes it, and drains then.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGCONT))


def _run(options: argparse.Namespace, lifeline: Lifeline, reports: Reports) -> int:
    reference: str = options.reference
    try:
        # Here, so that an installation that cannot be imported is reported like any failure.
        from meshrpc.workers.loading import load_service  # noqa: PLC0415

        service = load_service(reference, options.app_dir)
        service.settings = settings_of_worker(service.settings, options.index)
        service.replaces = options.replaces
        lifeline.stop_within = service.grace + service.shutdown_within + LEAVING
        who = Who(service=service.name, worker=options.index + 1)
        # After the service's module, so that logging it configured stays as it is.
        log_to_stderr(logging.INFO, format=_log_format(), who=who)
        reports.loaded(service, stop_within=lifeline.stop_within)
        if service.settings.shared_listen is not None:
            lifeline.wait_to_go_on()
            service.shares_port = True

        def on_ready(instance: Instance) -> None:
            who.instance = instance.id
            reports.ready(instance, has_free_port=has_free_port(service.settings))
            Heartbeat(reports.load)

        service.run(on_ready=on_ready)
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


def _log_format() -> LogFormat:
    return LogFormat(os.environ.get(LOG_FORMAT) or LogFormat.TEXT)


def has_free_port(settings: Settings) -> bool:
    """Return whether two processes can have these settings at the same time."""
    given = [settings.listen, settings.advertise or settings.listen]
    return all(parse_address(address)[1] == 0 for address in given)


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

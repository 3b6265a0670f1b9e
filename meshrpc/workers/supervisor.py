"""The supervisor of a service's worker processes.

One loop, woken by three things: signals (through `signal.set_wakeup_fd`, SIGCHLD among them),
what workers report, and the time to restart one that died; it never sleeps to look again, never
forks and holds no gRPC object. A worker that cannot start for a reason it can name ends
everything, because starting it again would not mend it. Any other death costs a backoff
(`restarts.py`). The first SIGTERM or SIGINT lets the workers drain, a second ends them at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import selectors
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import MeshError
from meshrpc.workers.process import WorkerProcess, describe_exit
from meshrpc.workers.restarts import Restarts

KILL_AFTER = 5.0
"""Seconds beyond those a worker says it needs at most to stop, after which it is killed. It ends
itself before that, unless something in it keeps Python from running at all."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_logger = logging.getLogger("meshrpc.workers")


@dataclass(slots=True)
class _Worker:
    """One place in the team: its number, and at most one process at a time."""

    number: int
    restarts: Restarts
    process: WorkerProcess | None = None
    restart_at: float | None = None
    failure: str | None = None
    """Why this process cannot serve, in its own words."""
    stop_within: float = 0.0
    """Seconds this process needs at most to stop."""
    instance: str | None = None
    """The id of the instance that this worker last was."""
    first_start: bool = True
    """Whether a failure would be the first thing ever heard of this worker."""


class Supervisor:
    """Keeps `count` workers of the service `reference` (MODULE:SERVICE) running.

    `folder` is where its module is looked for first; `environment` is the workers' whole one.
    """

    def __init__(
        self,
        reference: str,
        *,
        count: int,
        folder: Path,
        environment: Mapping[str, str],
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        self._reference = reference
        self._folder = folder
        self._environment = environment
        self._clock = clock
        rng = rng or random.Random()
        self._workers = [_Worker(index + 1, Restarts(rng)) for index in range(count)]
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._kill_at: float | None = None
        self._cut_short = False
        self._cannot_start: str | None = None

    def __repr__(self) -> str:
        running = len(self._running())
        state = "stopping" if self._stopping else "running"
        return f"<Supervisor {self._reference} {state} workers={running}/{len(self._workers)}>"

    def run(self) -> None:
        """Run until a signal stops it. To be called once, in the main thread.

        Raises:
            MeshError: a worker could not be started at all, or did not drain to its end.
        """
        with self._selector, _signals() as signals_fd:
            self._selector.register(signals_fd, selectors.EVENT_READ)
            try:
                for worker in self._workers:
                    self._start(worker)
                while self._running() or self._next_start() is not None:
                    self._step(signals_fd)
            finally:
                # Any are left only after a failure of our own: the end of its lifeline drains one.
                for process in self._running():
                    process.close()
        if self._cannot_start is not None:
            raise MeshError(self._cannot_start)
        if self._cut_short:
            raise MeshError("workers ended before they had drained")

    def _running(self) -> list[WorkerProcess]:
        return [worker.process for worker in self._workers if worker.process is not None]

    def _step(self, signals_fd: int) -> None:
        """Wait for the next thing to happen and do what it asks for."""
        for key, _ in self._selector.select(self._seconds_to_wait()):
            if isinstance(key.data, _Worker):
                self._hear(key.data)
                continue
            for number in os.read(signals_fd, 4096):
                if number in _STOP_SIGNALS:
                    self._on_stop_signal(signal.Signals(number))
        for worker in self._workers:
            if worker.process is not None and (code := worker.process.exit_code()) is not None:
                self._on_death(worker, worker.process, code)
        now = self._clock.now()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill("out of time")
        for worker in self._workers:
            if worker.restart_at is not None and now >= worker.restart_at:
                self._start(worker)

    def _next_start(self) -> float | None:
        return min(
            (worker.restart_at for worker in self._workers if worker.restart_at is not None),
            default=None,
        )

    def _seconds_to_wait(self) -> float | None:
        due = [time for time in (self._next_start(), self._kill_at) if time is not None]
        return max(0.0, min(due) - self._clock.now()) if due else None

    def _start(self, worker: _Worker) -> None:
        worker.restart_at = None
        worker.failure = None
        worker.stop_within = 0.0
        try:
            process = WorkerProcess(
                self._reference,
                index=worker.number - 1,
                folder=self._folder,
                environment=self._environment,
                replaces=worker.instance,
            )
        except OSError as error:
            # The machine is out of processes, memory or file descriptors: that may pass.
            self._restart_later(worker, f"worker {worker.number} could not be started: {error}")
            return
        worker.process = process
        self._selector.register(process.reports_fd, selectors.EVENT_READ, worker)

    def _hear(self, worker: _Worker) -> None:
        """Take what a worker has reported."""
        process = worker.process
        if process is None or process.is_silent():
            return
        for report in process.reports():
            if report["event"] == "failed":
                worker.failure = report["error"]
                continue
            worker.restarts.ready(self._clock.now())
            worker.first_start = False
            worker.instance = report["id"]
            worker.stop_within = report["stop_within"]
            _logger.info(
                "%s worker %d ready at %s (pid %d, %s)",
                *(report["service"], worker.number, report["address"]),
                *(report["pid"], report["id"]),
            )
        if process.is_silent():
            self._selector.unregister(process.reports_fd)

    def _on_death(self, worker: _Worker, process: WorkerProcess, code: int) -> None:
        self._hear(worker)
        if not process.is_silent():
            self._selector.unregister(process.reports_fd)
        process.close()
        worker.process = None
        if self._stopping:
            # SIGTERM ends by itself only one that did not serve yet, nor does a failed one.
            if code not in (0, -signal.SIGTERM) and worker.failure is None:
                self._cut_short = True
            return
        if worker.failure is not None and worker.first_start:
            self._cannot_start = worker.failure
            self._stop(f"worker {worker.number} cannot start")
            return
        if worker.failure is None:
            how = f"died: {describe_exit(code)}"
        else:
            how = f"cannot start: {worker.failure}"
        self._restart_later(worker, f"worker {worker.number} (pid {process.pid}) {how}")

    def _restart_later(self, worker: _Worker, reason: str) -> None:
        now = self._clock.now()
        delay = worker.restarts.died(now)
        worker.restart_at = now + delay
        worker.first_start = False
        _logger.warning("%s; restarting in %.1f s", reason, delay)

    def _on_stop_signal(self, received: signal.Signals) -> None:
        if self._stopping:
            self._kill(f"{received.name} again")
        else:
            self._stop(received.name)

    def _stop(self, reason: str) -> None:
        """Let every worker drain and end."""
        self._stopping = True
        needed = max(worker.stop_within for worker in self._workers)
        self._kill_at = self._clock.now() + needed + KILL_AFTER
        for worker in self._workers:
            worker.restart_at = None
        for process in (running := self._running()):
            process.stop()
        if running:
            _logger.info("%s: %s to drain; once more ends them", reason, _workers(len(running)))

    def _kill(self, reason: str) -> None:
        """End every worker at once."""
        self._kill_at = None
        for process in (running := self._running()):
            process.kill()
        if running:
            _logger.warning("%s: %s killed", reason, _workers(len(running)))


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Turn stop signals and SIGCHLD into bytes, their numbers, to be read from the yielded fd."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    # First, since a signal that comes between the two must not be lost.
    wakeup_fd = signal.set_wakeup_fd(write_end)
    # Python writes the byte only where a handler stands; to stand there is all these do.
    handlers = {
        number: signal.signal(number, lambda *_: None)
        for number in (*_STOP_SIGNALS, signal.SIGCHLD)
    }
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(wakeup_fd)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)

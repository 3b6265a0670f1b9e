"""The supervisor of a service's worker processes.

One loop, woken by signals (through `signal.set_wakeup_fd`, SIGCHLD among them), by what workers
report, and by the time at which something is due. It never forks, holds no gRPC object and decides
nothing: what happens goes to the team (`team.py`), which says what to do. The first SIGTERM or
SIGINT lets the workers drain, a second one ends them at once; SIGHUP replaces them one by one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import selectors
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import MeshError, SettingsError
from meshrpc.workers.actions import Action, Dump, Kill, Start, Stop, Tell
from meshrpc.workers.announcing import Announcer
from meshrpc.workers.places import Load
from meshrpc.workers.process import WorkerProcess, describe_exit
from meshrpc.workers.rolling import READY_WITHIN
from meshrpc.workers.scaling import Scaler
from meshrpc.workers.shared_port import ReservedPort
from meshrpc.workers.team import LIVENESS, Team
from meshrpc.workers.terminal import Terminal
from meshrpc.workers.watching import LOOK_EVERY, Watch

OVERSLEPT = 2.0
"""Seconds that the loop may be late for; beyond, it was frozen itself, and judges nobody by what
was not heard meanwhile."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_RELOAD_SIGNAL: int | None = getattr(signal, "SIGHUP", None)  # Windows has none

_logger = logging.getLogger("meshrpc.workers")


class Supervisor:
    """Keeps workers of the service `reference` (MODULE:SERVICE) running.

    Args:
        reference: the service, as MODULE:SERVICE.
        count: how many workers.
        most: up to how many there may be when they are busy; `count` unless given.
        folder: where its module is looked for first.
        environment: the workers' whole one.
        watch: whether to replace the workers when a Python file in `folder` changes.
        liveness: seconds that a worker's event loop may give no sign of life; None: any number.
        ready_within: seconds that the new worker of a reload has to become ready.
        announcer: where lines and events go.
    """

    def __init__(
        self,
        reference: str,
        *,
        count: int,
        most: int | None = None,
        folder: Path,
        environment: Mapping[str, str],
        watch: bool = False,
        liveness: float | None = LIVENESS,
        ready_within: float = READY_WITHIN,
        announcer: Announcer | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        self._reference = reference
        self._folder = folder
        self._environment = environment
        self._clock = clock
        self._team = Team(
            count, rng=rng or random.Random(), liveness=liveness, ready_within=ready_within
        )
        self._scaler = Scaler(count, most) if most is not None and most > count else None
        self._processes: dict[int, WorkerProcess] = {}
        self._announcer = announcer or Announcer(reference, environment)
        self._selector = selectors.DefaultSelector()
        self._shared_port: ReservedPort | None = None
        self._terminal = Terminal()
        self._watch = Watch(folder) if watch else None
        self._look_at = clock.now() + LOOK_EVERY
        self._woke_at = clock.now()

    def __repr__(self) -> str:
        return f"<Supervisor {self._reference} {self._team!r}>"

    def run(self) -> None:
        """Run until a signal stops it. To be called once, in the main thread.

        Raises:
            MeshError: a worker could not be started at all, or did not drain to its end.
        """
        with self._selector, _signals() as signals_fd:
            self._selector.register(signals_fd, selectors.EVENT_READ)
            try:
                self._carry_out(self._team.begin(self._clock.now()))
                while not self._team.is_over:
                    self._step(signals_fd)
            finally:
                # Any are left only after a failure of our own: the end of its lifeline drains one.
                for process in self._processes.values():
                    process.close()
                if self._shared_port is not None:
                    self._shared_port.close()
                self._announcer.close()
        if self._team.cannot_start is not None:
            raise MeshError(self._team.cannot_start)
        if self._team.was_cut_short:
            raise MeshError("workers ended before they had drained")

    def _step(self, signals_fd: int) -> None:
        """Wait for the next thing to happen and do what it asks for."""
        seconds = self._seconds_to_wait()
        events = self._selector.select(seconds)
        now = self._clock.now()
        if seconds is not None and now - self._woke_at > seconds + OVERSLEPT:
            self._team.overslept(now)
        self._woke_at = now
        for key, _ in events:
            if isinstance(key.data, int):
                self._hear(key.data)
            else:
                for number in os.read(signals_fd, 4096):
                    self._on_signal(number)
        self._reap()
        self._look_for_changes()
        self._scale()
        self._carry_out(self._team.settle(self._clock.now()))

    def _seconds_to_wait(self) -> float | None:
        due = [self._team.wakes_at()]
        if self._watch is not None:
            due.append(self._look_at)
        times = [time for time in due if time is not None]
        return max(0.0, min(times) - self._clock.now()) if times else None

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start():
                    self._start(action)
                case Stop(life):
                    self._processes[life].stop()
                case Dump(life):
                    self._processes[life].dump()
                case Kill(life):
                    self._processes[life].kill()
                case Tell():
                    self._announcer.tell(action)

    def _start(self, action: Start) -> None:
        try:
            process = WorkerProcess(
                self._reference,
                index=action.number - 1,
                folder=self._folder,
                environment=self._environment,
                replaces=action.replaces,
            )
        except OSError as error:
            now = self._clock.now()
            self._carry_out(self._team.could_not_start(action.life, str(error), now))
            return
        self._processes[action.life] = process
        self._team.started(action.life, process.pid)
        self._selector.register(process.reports_fd, selectors.EVENT_READ, action.life)

    def _on_signal(self, number: int) -> None:
        now = self._clock.now()
        if number in _STOP_SIGNALS:
            self._carry_out(self._team.stop(signal.Signals(number).name, now))
        elif number == _RELOAD_SIGNAL:
            if self._terminal.is_lost():
                if not self._team.is_stopping:
                    self._carry_out(self._team.stop("the terminal was closed", now))
            else:
                self._carry_out(self._team.reload("SIGHUP", now))

    def _hear(self, life: int) -> None:
        """Take what a worker has reported."""
        process = self._processes[life]
        if process.is_silent():
            return
        for report in process.reports():
            self._on_report(life, process, report)
        if process.is_silent():
            self._selector.unregister(process.reports_fd)

    def _on_report(self, life: int, process: WorkerProcess, report: Mapping[str, Any]) -> None:
        match report["event"]:
            case "loaded":
                self._team.has_loaded(life, stop_within=report["stop_within"])
                self._announcer.introduce(
                    report["service"], report["namespace"], report["control_http"]
                )
                if report["shared_listen"] is not None:
                    self._share(life, process, report["shared_listen"])
            case "ready":
                _logger.info(
                    "%s worker %d ready at %s (pid %d, %s)",
                    *(report["service"], self._team.number(life), report["address"]),
                    *(report["pid"], report["id"]),
                )
                actions = self._team.has_become_ready(
                    life,
                    self._clock.now(),
                    instance=report["id"],
                    has_free_port=report["has_free_port"],
                )
                self._carry_out(actions)
            case "load":
                load = Load(report["busy"], report["queue_time"])
                self._team.was_heard(life, load, self._clock.now())
            case "failed":
                self._team.has_failed(life, report["error"])

    def _share(self, life: int, process: WorkerProcess, address: str) -> None:
        """Reserve the port that workers share, once, and let this one go on."""
        try:
            if self._shared_port is None:
                self._shared_port = ReservedPort(address)
            self._shared_port.must_be(address)
        except SettingsError as error:
            self._team.has_failed(life, str(error))
            process.kill()
        else:
            process.go_on()

    def _reap(self) -> None:
        for life, process in list(self._processes.items()):
            if (code := process.exit_code()) is None:
                continue
            self._hear(life)
            if not process.is_silent():
                self._selector.unregister(process.reports_fd)
            process.close()
            actions = self._team.has_ended(life, code, describe_exit(code), self._clock.now())
            del self._processes[life]
            self._carry_out(actions)

    def _look_for_changes(self) -> None:
        now = self._clock.now()
        if self._watch is None or now < self._look_at:
            return
        if changed := self._watch.changes():
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            self._carry_out(self._team.reload(f"{changed[0]}{more} changed", now))
        self._look_at = self._clock.now() + LOOK_EVERY

    def _scale(self) -> None:
        if self._scaler is None:
            return
        now = self._clock.now()
        if self._team.is_rolling:
            self._scaler.pause(now)
            return
        wanted = self._scaler.look(now, self._team.size, self._team.loads())
        if wanted is not None:
            self._carry_out(self._team.resize(wanted.size, wanted.why, now))


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Turn the signals it lives by into bytes, their numbers, to be read from the yielded fd."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    # First, since a signal that comes between the two must not be lost.
    wakeup_fd = signal.set_wakeup_fd(write_end)
    numbers = [*_STOP_SIGNALS, signal.SIGCHLD]
    if _RELOAD_SIGNAL is not None:
        numbers.append(signal.Signals(_RELOAD_SIGNAL))
    # Python writes the byte only where a handler stands; to stand there is all these do.
    handlers: dict[signal.Signals, Any] = {
        number: signal.signal(number, _stand) for number in numbers
    }
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(wakeup_fd)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)


def _stand(*_: object) -> None:
    pass

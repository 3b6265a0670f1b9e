"""One run of a worker process, as its supervisor holds it: the process and the two pipes to it.

A new interpreter in its own session, so that a terminal's Ctrl-C reaches the supervisor alone.
The write end of the lifeline exists nowhere but in the supervisor: however that dies, the worker
reads the end of it. What the worker has to say comes as lines of JSON on the other pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STOPPING = b"s"
"""On the lifeline: the supervisor is stopping this worker, and its SIGTERM comes from there."""
GO_ON = b"g"
"""On the lifeline: the port that workers share is theirs, and this one may listen there."""
DUMP_SIGNAL: int | None = getattr(signal, "SIGQUIT", None)
"""Has a worker write the stacks of its threads to stderr, as it does with other runtimes."""

_READ_SIZE = 65536


class WorkerProcess:
    """A started worker. Only the supervisor's thread touches it.

    `reports_fd` becomes readable when `reports` has something to return, or never will again.
    """

    def __init__(
        self,
        reference: str,
        *,
        index: int,
        folder: Path,
        environment: Mapping[str, str],
        replaces: str | None = None,
    ) -> None:
        """`replaces`: the id of the instance that died in this worker's place."""
        lifeline_end, self._lifeline = os.pipe()
        try:
            self.reports_fd, reports_end = os.pipe()
        except OSError:
            os.close(lifeline_end)
            os.close(self._lifeline)
            raise
        os.set_blocking(self.reports_fd, False)
        self._unfinished = b""
        self._silent = False
        command = [
            # -P: what lies in the current folder must not hide modules meshrpc itself needs.
            *(sys.executable, "-P", "-m", "meshrpc.workers.worker", reference),
            *("--index", str(index), "--app-dir", str(folder)),
            *("--lifeline", str(lifeline_end), "--reports", str(reports_end)),
            *(("--replaces", replaces) if replaces else ()),
        ]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(lifeline_end, reports_end),
                env=environment,
                start_new_session=True,
            )
        except OSError:
            self.close()
            raise
        finally:
            os.close(lifeline_end)
            os.close(reports_end)

    @property
    def pid(self) -> int:
        return self._process.pid

    def reports(self) -> list[dict[str, Any]]:
        """Return what the worker has reported since the last time, without waiting."""
        with contextlib.suppress(BlockingIOError):
            while read := os.read(self.reports_fd, _READ_SIZE):
                self._unfinished += read
            self._silent = True
        *lines, self._unfinished = self._unfinished.split(b"\n")
        return [json.loads(line) for line in lines]

    def is_silent(self) -> bool:
        """Whether the worker has closed its end, so that no report can follow."""
        return self._silent

    def exit_code(self) -> int | None:
        """Return the exit code (the negative signal number if one ended it), None if it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask the worker to drain and end; one that is frozen is woken to hear it."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._lifeline, STOPPING)
        self._process.send_signal(signal.SIGTERM)
        self._process.send_signal(signal.SIGCONT)

    def go_on(self) -> None:
        """Answer the worker that asked for the port which workers share."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._lifeline, GO_ON)

    def dump(self) -> None:
        """Have the worker write its stacks to stderr; one that is frozen does not."""
        if DUMP_SIGNAL is not None:
            self._process.send_signal(DUMP_SIGNAL)

    def kill(self) -> None:
        """End the worker at once."""
        self._process.kill()

    def close(self) -> None:
        """Let go of the pipes; a worker that still runs takes that as its supervisor's end."""
        os.close(self._lifeline)
        os.close(self.reports_fd)


def describe_exit(code: int) -> str:
    """Return an exit code in words: `exit code 1`, `killed by SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"

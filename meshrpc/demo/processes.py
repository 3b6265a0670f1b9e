"""The demo's own processes: started with a log each, awaited, and ended for certain.

Each runs in a session of its own, so that Ctrl-C in the terminal reaches only the demo, which
ends them in order. What a process has written is shown when it fails.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from meshrpc.errors import MeshError

STOP_WITHIN = 15.0
"""Seconds a process gets to end after SIGTERM; draining takes one to five of them."""
_LOOK_EVERY = 0.05
_TAIL_LINES = 15


class Process:
    """`python -m meshrpc ARGUMENTS` with its output in a file."""

    def __init__(
        self, name: str, arguments: list[str], *, environment: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "meshrpc", *arguments],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __repr__(self) -> str:
        code = self._process.poll()
        state = "running" if code is None else f"ended with {code}"
        return f"<Process {self.name} pid={self._process.pid} {state}>"

    def check(self) -> None:
        """Raise `MeshError` with the end of its log if the process has ended."""
        code = self._process.poll()
        if code is not None:
            tail = "\n".join(self._text().splitlines()[-_TAIL_LINES:])
            raise MeshError(f"{self.name} ended with exit code {code}; it said: {tail}")

    async def wait_for_line(self, pattern: str, within: float) -> re.Match[str]:
        """Return the match once a line of the log has one."""
        expression = re.compile(pattern, re.MULTILINE)
        try:
            async with asyncio.timeout(within):
                while (match := expression.search(self._text())) is None:
                    self.check()
                    await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError:
            raise MeshError(f"{self.name} was not ready within {within:.0f} s") from None
        return match

    async def stop(self) -> None:
        """End the process and all that it started, gently first."""
        self._signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, STOP_WITHIN)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also after a second Ctrl-C, which cancels the wait above.
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    def _text(self) -> str:
        return self._log.read_text(errors="replace")


class Processes:
    """All processes of one demo; leaving the block ends every one of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Process] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def start(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> Process:
        """Start a process that ends with this block at the latest."""
        process = Process(name, arguments, environment=environment, folder=self._folder)
        self._running.append(process)
        return process

    def check(self) -> None:
        """Raise `MeshError` if any process has ended."""
        for process in self._running:
            process.check()

    async def stop(self) -> None:
        """End them all: first what was started last, the first one at the very end.

        The first is the control service, which the others tell that they are leaving.
        """
        running, self._running = self._running, []
        for group in (running[1:], running[:1]):
            await asyncio.gather(*(process.stop() for process in group), return_exceptions=True)

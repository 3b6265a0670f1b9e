"""The demo's own processes: started with a log each, awaited, and ended for certain.

Each runs in a session of its own, so that Ctrl-C in the terminal reaches only the demo, which
ends them in order. Their stdin is a lifeline: when the demo dies without a word, they end by
themselves. What a process has written is shown when it fails.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from meshrpc.errors import MeshError

STOP_WITHIN = 15.0
"""Seconds a process gets to end after SIGTERM; draining takes one to five of them."""
END_WITHIN = 3.0
"""Seconds it gets when there is no time for draining."""
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
                [sys.executable, "-m", "meshrpc", "--until-stdin-ends", *arguments],
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __repr__(self) -> str:
        code = self._process.poll()
        state = "running" if code is None else f"ended with {code}"
        return f"<Process {self.name} pid={self._process.pid} {state}>"

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

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

    async def stop(self, within: float) -> None:
        """Ask the process to end, and wait for that."""
        self.terminate()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, within)

    def terminate(self) -> None:
        """Send SIGTERM, if the process has not ended."""
        self._process.terminate()

    def kill(self) -> None:
        """End the process, if it has not ended, and let go of it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _text(self) -> str:
        return self._log.read_text(errors="replace")


class Processes:
    """All processes of one demo; leaving the block ends every one of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Process] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._end()
        else:
            await self.stop()

    def start(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> Process:
        """Start a process that ends with this block at the latest."""
        process = Process(name, arguments, environment=environment, folder=self._folder)
        self._started.append(process)
        return process

    def check(self) -> None:
        """Raise `MeshError` if any process has ended."""
        for process in self._started:
            process.check()

    async def stop(self) -> None:
        """End them all gently, the first one after the others; if cancelled, all at once.

        The first is the control service, which the others tell that they are leaving.
        """
        try:
            for group in (self._started[1:], self._started[:1]):
                await asyncio.gather(*(process.stop(STOP_WITHIN) for process in group))
        finally:
            self._end()

    def _end(self) -> None:
        """End all that still run, without draining. Blocks, since nothing may come in between."""
        give_up = time.monotonic() + END_WITHIN
        while (left := [p for p in self._started if p.is_running]) and time.monotonic() < give_up:
            # More than once: the second signal makes `meshrpc run` kill its workers.
            for process in left:
                process.terminate()
            time.sleep(_LOOK_EVERY)
        for process in self._started:
            process.kill()
        self._started.clear()

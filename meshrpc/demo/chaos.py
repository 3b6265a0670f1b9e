"""What the demo breaks: one payment worker is killed, another frozen for a while."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal

from meshrpc.demo.view import Board, View
from meshrpc.registry.instance import Instance


class Chaos:
    """Kills and freezes workers of payment v1, which are on the board."""

    def __init__(self, board: Board, view: View, rng: random.Random) -> None:
        self._board = board
        self._view = view
        self._rng = rng
        self._killed: set[str] = set()

    async def kill(self, *, after: float) -> None:
        """Kill one worker."""
        await asyncio.sleep(after)
        victim = self._signal_one(signal.SIGKILL)
        if victim is not None:
            self._killed.add(victim.id)
            self._view.event(f"killed {victim.id} (pid {victim.pid}) with SIGKILL")

    async def freeze(self, *, after: float, seconds: float) -> None:
        """Freeze one worker for `seconds`."""
        await asyncio.sleep(after)
        victim = self._signal_one(signal.SIGSTOP)
        if victim is None:
            return
        self._board.frozen.add(victim.id)
        self._view.event(f"froze {victim.id} (pid {victim.pid}) with SIGSTOP")
        await asyncio.sleep(seconds)
        self.thaw_all()

    def thaw_all(self) -> None:
        """Let what is frozen go on."""
        for id_ in tuple(self._board.frozen):
            pid = self._board.instances[id_].pid
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self._board.frozen.discard(id_)
            self._view.event(f"thawed {id_}")

    def _signal_one(self, number: signal.Signals) -> Instance | None:
        """Send a signal to one worker and return its instance; None if there is none left."""
        workers = [
            (instance, instance.pid)
            for id_, instance in self._board.instances.items()
            if id_ in self._board.present - self._killed
            and (instance.service, instance.version) == ("payment", "v1")
            and instance.pid is not None
        ]
        if not workers:
            return None
        victim, pid = self._rng.choice(workers)
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return None  # it has just gone by itself
        return victim

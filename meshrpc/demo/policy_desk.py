"""Policies in the demo: those it starts with, the one it pushes, and seeing them land."""

from __future__ import annotations

import asyncio
from pathlib import Path

from meshrpc.control.client import ControlClient
from meshrpc.demo.view import Board, View
from meshrpc.errors import MeshError
from meshrpc.policy import Document, load_documents
from meshrpc.v1 import control_pb2

CHANGED = """
schema: meshrpc.policy/v1
service: payment
timeout: 2s
balancer: round_robin
retry: {attempts: 3, codes: [UNAVAILABLE], per_attempt_timeout: 500ms}
"""
"""What is pushed while the demo runs: payment's balancer goes from peak_ewma to round_robin."""

_LANDS_WITHIN = 10.0
_ASK_EVERY = 0.02


def shop_documents(folder: Path) -> tuple[Document, ...]:
    """Return the shop's own policies, from `policies/` in `folder`."""
    return tuple(
        document
        for file in sorted((folder / "policies").glob("*.yaml"))
        for document in load_documents(file.read_text(), source=file.name)
    )


class PolicyDesk:
    """Pushes policies and watches until every process has taken them."""

    def __init__(self, client: ControlClient, view: View, board: Board) -> None:
        self._client = client
        self._view = view
        self._board = board

    async def change(self, *, after: float) -> None:
        """Push the changed policy."""
        await asyncio.sleep(after)
        await self.push(load_documents(CHANGED), "payment is balanced by round_robin")

    async def push(self, documents: tuple[Document, ...], what: str = "") -> None:
        """Apply documents, say `what` that means, and when they have landed.

        Raises:
            MeshError: a process that can answer did not take them in time.
        """
        loop = asyncio.get_running_loop()
        applied = loop.time()
        answer = await self._client.apply_policies([each.canonical for each in documents])
        name = f"policy revision {answer.revision}"
        self._board.policy = name
        self._view.event(f"{name} pushed: {what or ', '.join(answer.changed)}")
        try:
            async with asyncio.timeout(_LANDS_WITHIN):
                while late := await self._not_synced():  # noqa: ASYNC110 - control is asked
                    await asyncio.sleep(_ASK_EVERY)
        except TimeoutError:
            raise MeshError(f"{name} was not taken by {', '.join(late)}") from None
        if processes := len((await self._client.status()).processes):
            took = (loop.time() - applied) * 1000
            self._view.event(f"{name} landed in {processes} processes after {took:.0f} ms")

    async def _not_synced(self) -> list[str]:
        status = await self._client.status()
        return [
            process.instance
            for process in status.processes
            if process.state != control_pb2.ProcessStatus.STATE_SYNCED
            # A frozen process answers when it is thawed.
            and process.instance not in self._board.frozen
        ]

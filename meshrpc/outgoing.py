"""What this process has still to tell control, until the stream takes it: the newest of each kind.

A control service that is slow, or frozen, does not read, and what changes meanwhile must not pile up.
So there is one place for each thing that can be told, which says what is true when its turn comes, not
what was true when it got in line. Who waits longest is next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable

from meshrpc.v1 import control_pb2

MAX_ANSWERS = 100
"""Questions that wait to be answered. Whoever asked them waits a few seconds; the newest count."""

Say = Callable[[], control_pb2.SubscribeRequest | None]
"""Makes a message when it is due; None: there is nothing to say any more."""

_log = logging.getLogger(__name__)


class Outgoing:
    """What waits to be written to one stream."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, Say] = {}
        self._answers: dict[Hashable, None] = {}
        self._has_some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<Outgoing waiting={len(self)}>"

    def tell(self, kind: str, say: Say) -> None:
        """Have this said soon, in place of what waits of its kind."""
        self._waiting[kind] = say
        self._has_some.set()

    def answer(self, question: str, say: Say) -> None:
        """Have a question answered soon; of too many the oldest stays without."""
        key = ("answer", question)
        self._waiting[key] = say
        self._answers[key] = None
        if len(self._answers) > MAX_ANSWERS:
            oldest = next(iter(self._answers))
            del self._answers[oldest], self._waiting[oldest]
        self._has_some.set()

    async def next(self) -> control_pb2.SubscribeRequest:
        """Return what is to be written now; wait until there is something."""
        while True:
            while self._waiting:
                key = next(iter(self._waiting))
                say = self._waiting.pop(key)
                self._answers.pop(key, None)
                try:
                    message = say()
                except Exception:  # noqa: BLE001 - what cannot be said silences nothing else
                    _log.exception("cannot tell control %s", key)
                    continue
                if message is not None:
                    return message
            self._has_some.clear()
            await self._has_some.wait()

"""One process's stream as the control service holds it: its waking, its end, what it is asked and given.

Questions, and shares of rate limits, go out at once, beside the pushes: they wait for no
acknowledgement and are none. What they are answered with comes on the same stream, or the stream ends.
"""

from __future__ import annotations

import asyncio
import itertools

import grpc

from meshrpc.control.quota_member import Grant
from meshrpc.v1 import control_pb2

_opened = itertools.count()


class StreamEnded(Exception):
    """The stream ended before an answer came."""


class Stream:
    """The waking of one handler, and why it is to end."""

    __slots__ = (
        "_answers",
        "_grant",
        "_ids",
        "_unsent",
        "has_ended",
        "opened",
        "wake",
        "why_ended",
    )

    def __init__(self) -> None:
        self.opened = next(_opened)
        """Tells which of two streams of one process is the newer one."""
        self.wake = asyncio.Event()
        self.has_ended = False
        self.why_ended: tuple[grpc.StatusCode, str] | None = None
        self._ids = itertools.count(1)
        self._unsent: dict[str, control_pb2.Question] = {}
        self._answers: dict[str, asyncio.Future[control_pb2.ViewResponse]] = {}
        self._grant: Grant | None = None

    def __repr__(self) -> str:
        state = "ended" if self.has_ended else "open"
        return f"<Stream {state} questions={len(self._answers)}>"

    def end(self, code: grpc.StatusCode | None = None, details: str = "") -> None:
        """Let the handler return; the first status that is given is what the process is told."""
        if not self.has_ended and code is not None:
            self.why_ended = (code, details)
        self.has_ended = True
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(StreamEnded())
        self.wake.set()

    async def ask(self, service: str) -> control_pb2.ViewResponse:
        """Return what the process makes of the service; bound it with a timeout.

        Raises:
            StreamEnded: it does not answer any more.
        """
        if self.has_ended:
            raise StreamEnded
        id_ = str(next(self._ids))
        self._unsent[id_] = control_pb2.Question(id=id_, service=service)
        answer: asyncio.Future[control_pb2.ViewResponse]
        answer = self._answers[id_] = asyncio.get_running_loop().create_future()
        self.wake.set()
        try:
            return await answer
        finally:
            del self._answers[id_]
            self._unsent.pop(id_, None)

    def questions(self) -> tuple[control_pb2.Question, ...]:
        """Return what is to be asked now, once."""
        questions = tuple(self._unsent.values())
        self._unsent.clear()
        return questions

    def give(self, grant: Grant) -> None:
        """Have shares of rate limits sent; there is one grant at a time."""
        self._grant = grant
        self.wake.set()

    def grant(self) -> Grant | None:
        """Return the shares that are to be sent now, once."""
        grant, self._grant = self._grant, None
        return grant

    def answered(self, answer: control_pb2.Answer) -> None:
        """Hand an answer to who waits for it; nobody may."""
        waiting = self._answers.get(answer.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.view)

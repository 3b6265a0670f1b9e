"""A stream of requests, as attempts see it.

Grpc pulls the first message before it knows whether an attempt reaches anybody, so that message
is kept: an attempt that was refused unseen can be followed by one that sends it again. From the
second message on the stream belongs to the attempt that took it. One message is pulled at a
time; what comes only after its attempt is over waits for the next attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any


class RequestStream:
    """The user's messages, serialised, with the first one kept for another attempt."""

    __slots__ = (
        "_first",
        "_late",
        "_messages",
        "_puller",
        "_pulling",
        "_serialize",
        "_taken",
        "_turn",
        "error",
    )

    def __init__(
        self, messages: AsyncIterable[Any] | Iterable[Any], serialize: Callable[[Any], bytes]
    ) -> None:
        self.error: BaseException | None = None
        """What the user's iterator, or serialising a message of it, raised."""
        self._serialize = serialize
        self._messages = self._pull(messages)
        self._first: bytes | None = None
        self._late: bytes | None = None
        self._taken = 0
        self._turn = 0
        self._pulling = asyncio.Lock()
        self._puller: asyncio.Task[Any] | None = None

    def take_back(self, *, cancelled: bool) -> bool:
        """Take the stream from an attempt that is over; return whether another can send it all.

        `cancelled`: this side ended the attempt, and with it a wait for the user's next message.
        """
        self._turn += 1
        if cancelled and self._puller is not None:
            return False
        return self._taken <= 1 and self.error is None

    def close(self) -> None:
        """Give up waiting for the user's next message: nobody will send it."""
        self._turn += 1
        if self._puller is not None:
            self._puller.cancel()

    def replay(self) -> AsyncIterator[bytes]:
        """Return every message, the first one again if it was taken before."""
        # The turn is read now: an attempt may be over before grpc asks for its first message.
        return self._replay(self._turn)

    async def _replay(self, turn: int) -> AsyncIterator[bytes]:
        if self._first is not None and turn == self._turn:
            yield self._first
        while (data := await self._next(turn)) is not None:
            yield data

    async def _next(self, turn: int) -> bytes | None:
        """Return the next message; None after the last, or once `turn` is over."""
        async with self._pulling:
            if self._late is None and turn == self._turn:
                self._puller = asyncio.current_task()
                try:
                    self._late = await anext(self._messages, None)
                finally:
                    self._puller = None
            if turn != self._turn:
                return None
            data, self._late = self._late, None
            if data is not None:
                self._taken += 1
                self._first = data if self._taken == 1 else None
            return data

    async def _pull(self, messages: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[bytes]:
        # Grpc cancels the call when an iterator raises, and forgets why; the reason is kept.
        try:
            if isinstance(messages, AsyncIterable):
                async for message in messages:
                    yield self._serialize(message)
            else:
                for message in messages:
                    yield self._serialize(message)
        except Exception as error:
            self.error = error
            raise

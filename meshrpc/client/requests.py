"""A stream of requests, as attempts see it.

Grpc pulls the first message before it knows whether an attempt reaches anybody, so that message
is kept: an attempt that was refused unseen can be followed by one that sends it again. From the
second message on the stream belongs to the attempt that took it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any


class RequestStream:
    """The user's messages, serialised, with the first one kept for another attempt."""

    __slots__ = ("_first", "_messages", "_serialize", "_taken", "error")

    def __init__(
        self, messages: AsyncIterable[Any] | Iterable[Any], serialize: Callable[[Any], bytes]
    ) -> None:
        self.error: BaseException | None = None
        """What the user's iterator, or serialising a message of it, raised."""
        self._serialize = serialize
        self._messages = self._pull(messages)
        self._first: bytes | None = None
        self._taken = 0

    @property
    def replayable(self) -> bool:
        """Whether another attempt can send all that was taken."""
        return self._taken <= 1 and self.error is None

    async def replay(self) -> AsyncIterator[bytes]:
        """Yield every message, the first one again if it was taken before."""
        if self._first is not None:
            yield self._first
        async for data in self._messages:
            self._taken += 1
            if self._taken == 1:
                self._first = data
            else:
                self._first = None
            yield data

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

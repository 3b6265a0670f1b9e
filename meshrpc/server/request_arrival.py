"""The one message of a request, and how long a server waits for it.

grpcio's asyncio server waits for ever. Who says which method it calls and never sends the message,
or sends it a byte at a time, keeps a call there that no interceptor, limit or handler knows of, and
where the message is said to be none, a call that is never answered at all. So methods that take
one message are served as if they took a stream, of which one is read, within a bound: what Envoy
calls `request_timeout`. A stream of requests has no such bound: it may rightly be silent.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from meshrpc.errors import SettingsError
from meshrpc.interceptors.method_handler import Behavior, Handler, behavior_of
from meshrpc.server.context import CallContext
from meshrpc.wire import DRAIN, NOT_EXECUTED, Metadata

OPTION: Final = "mesh.request_timeout_ms"
"""Its place among a server's options (`options.py`): grpc takes no notice of it."""

_NEVER_RAN: Final[Metadata] = ((NOT_EXECUTED, "1"),)
_LEAVING: Final[Metadata] = (*_NEVER_RAN, (DRAIN, "1"))


def request_timeout(options: Mapping[str, Any]) -> float | None:
    """Return what the options say, in seconds; None: no bound.

    Raises:
        SettingsError: they say something else.
    """
    given = options.get(OPTION, 0)
    if not (isinstance(given, int) and given >= 0):
        raise SettingsError(f"{OPTION}={given!r}: milliseconds, a whole number, 0 or more")
    return given / 1000 or None


class RequestArrival:
    """Waits `within` seconds, of real time, for the message of each call; used in one event loop."""

    def __init__(self, within: float) -> None:
        self._within = within
        # Since when, oldest first: one timer for all, since nearly every message is there at once.
        self._since: dict[Any, float] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._ending: dict[Any, asyncio.Task[NoReturn]] = {}

    def __repr__(self) -> str:
        return f"<RequestArrival within={self._within:g} waiting={len(self._since)}>"

    def around(self, handler: Handler) -> Handler:
        """Return a handler that waits for the one message that `handler` takes.

        `handler` is a coroutine over bytes, as the guard makes it.
        """
        if handler.request_streaming:
            return handler
        behavior = behavior_of(handler)

        async def arrive(_requests: Any, raw: Any) -> Any:
            self._since[raw] = time.monotonic()
            if self._looking is None:
                self._look_in(self._within)
            try:
                message = await raw.read()
            finally:
                del self._since[raw]
                if raw in self._ending:
                    # Raises: whoever was told that it never ran must not be served after all, though
                    # the message came in the same moment.
                    await self._ending.pop(raw)
            if message is grpc.aio.EOF:
                # Where the client has gone this fails, and so it should. Otherwise: as grpcio's
                # synchronous server says it.
                await CallContext(raw, None).abort(
                    grpc.StatusCode.UNIMPLEMENTED,
                    "this method takes exactly one message",
                    _NEVER_RAN,
                )
            return await behavior(message, raw)

        make: Callable[[Behavior], Handler] = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(arrive)

    def cut(self) -> None:
        """End every call that still waits, with UNAVAILABLE and `mesh-drain`."""
        for raw in self._since:
            self._end(raw, grpc.StatusCode.UNAVAILABLE, "the server is leaving", _LEAVING)

    def _look_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._looking = loop.call_later(seconds, self._look, context=contextvars.Context())

    def _look(self) -> None:
        self._looking = None
        now = time.monotonic()
        for raw, since in self._since.items():
            left = since + self._within - now
            if left > 0:
                self._look_in(left)
                return
            self._end(
                raw,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"the request has not arrived within {self._within:g} s",
                _NEVER_RAN,
            )

    def _end(self, raw: Any, code: grpc.StatusCode, details: str, trailers: Metadata) -> None:
        # Beside the reading, which ends with the call: a message that has just come when reading
        # is cancelled would never be freed by grpcio.
        if raw not in self._ending:
            self._ending[raw] = asyncio.create_task(
                CallContext(raw, None).abort(code, details, trailers), context=contextvars.Context()
            )

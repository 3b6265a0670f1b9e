"""The context that a plain `def` handler sees: grpcio's synchronous interface over the call's own.

A thread never waits for the event loop to end its call: `abort` notes the status and unwinds the
thread, and whoever ran it there carries the abort out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

_LOG = logging.getLogger("meshrpc.server")


class Aborted(Exception):
    """Leaves a thread after `abort`."""


class SyncContext(grpc.ServicerContext):
    """The context a `def` handler sees: grpcio's synchronous interface over the call's own."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._abort: tuple[grpc.StatusCode, str, Any] | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._is_active = True
        context.add_done_callback(self._done)

    def _done(self, _context: Any) -> None:
        self._is_active = False

    @property
    def is_aborted(self) -> bool:
        """Whether the handler has called `abort`, even if it goes on."""
        return self._abort is not None

    def run_callbacks(self) -> None:
        """Tell those who asked that the call is over."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001 - as in grpcio: the call's answer stands
                _LOG.exception("a callback of a call failed")

    async def carry_out_abort(self) -> None:
        """End the call if the handler aborted it, even where it caught what `abort` raised."""
        if self._abort is not None:
            await self._context.abort(*self._abort)

    def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> NoReturn:
        """End the call with this status; raises to leave the handler."""
        if self._abort is None:
            self._abort = (code, details, tuple(trailing_metadata))
        raise Aborted

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with this status; raises to leave the handler."""
        self.abort(status.code, status.details, status.trailing_metadata or ())

    def is_active(self) -> bool:
        """Whether the client still waits."""
        return self._is_active

    def time_remaining(self) -> float | None:  # type: ignore[override]  # None: no deadline
        """Return the seconds left; None without a deadline."""
        remaining: float | None = self._context.time_remaining()
        return remaining

    def cancel(self) -> bool:
        """End the call as CANCELLED; raises to leave the handler."""
        self.abort(grpc.StatusCode.CANCELLED, "cancelled by the handler")

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called when the handler is done; False when it already is."""
        if not self._is_active:
            return False
        self._callbacks.append(callback)
        return True

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send initial metadata now."""
        sending = self._context.send_initial_metadata(tuple(initial_metadata))
        asyncio.run_coroutine_threadsafe(sending, self._loop).result()

    def invocation_metadata(self) -> Any:
        """Return the request's metadata."""
        return self._context.invocation_metadata()

    def peer(self) -> str:
        """Return the client's address."""
        peer: str = self._context.peer()
        return peer

    def peer_identities(self) -> Any:
        """Return the client's proven identities, if any."""
        return self._context.peer_identities()

    def peer_identity_key(self) -> Any:
        """Return what kind of identity `peer_identities` holds."""
        return self._context.peer_identity_key()

    def auth_context(self) -> Any:
        """Return what the transport knows of the client."""
        return self._context.auth_context()

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress what is sent."""
        self._context.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        """Send the next message as it is."""
        self._context.disable_next_message_compression()

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set what is sent after the response."""
        self._context.set_trailing_metadata(tuple(trailing_metadata))

    def trailing_metadata(self) -> Any:
        """Return what will be sent after the response."""
        return self._context.trailing_metadata()

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the call's status."""
        self._context.set_code(code)

    def code(self) -> Any:
        """Return the status set so far."""
        return self._context.code()

    def set_details(self, details: str) -> None:
        """Set the text beside the status."""
        self._context.set_details(details)

    def details(self) -> Any:
        """Return the text set so far."""
        return self._context.details()

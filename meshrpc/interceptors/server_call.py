"""The call a handler is serving: who called, with what, and how long it may take.

Made once, on arrival, by the outermost wrapper. The deadline is read from grpcio once and kept
in monotonic time, because grpcio's own `time_remaining()` follows the wall clock. `CURRENT` is
set without ever being reset: a handler runs in a task of its own, and resetting a token from the
generator of a cancelled stream fails, since that one is closed from another context.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

from opentelemetry.trace import Span

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.wire import CALLER, UNKNOWN_CALLER, Metadata


class ServerCall:
    """One call that this process serves."""

    __slots__ = ("_clock", "caller", "deadline", "draining", "metadata", "method", "span")

    def __init__(
        self,
        method: str,
        metadata: Metadata = (),
        *,
        timeout: float | None = None,
        draining: asyncio.Event | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`timeout` is the seconds left on arrival; None: the caller set no deadline."""
        self.method = method
        """The method called, as `/pkg.Service/Method`."""
        self.metadata = metadata
        """The request's metadata, as received."""
        self.caller = UNKNOWN_CALLER
        """The calling service by its own word, or `unknown`."""
        for key, value in metadata:
            if key == CALLER and value:
                self.caller = value if isinstance(value, str) else value.decode("utf-8", "replace")
                break
        self.deadline = None if timeout is None else clock.now() + timeout
        """When the caller stops waiting, in monotonic seconds; None: never."""
        self.draining = asyncio.Event() if draining is None else draining
        """Set when this process begins to leave: long streams should then come to an end."""
        self.span: Span | None = None
        """The span of this call, when it is traced."""
        self._clock = clock

    def __repr__(self) -> str:
        remaining = self.time_remaining()
        left = "no deadline" if remaining is None else f"{remaining * 1000:.0f}ms left"
        return f"<ServerCall {self.method} from {self.caller} {left}>"

    def time_remaining(self) -> float | None:
        """Return the seconds left, never below 0; None without a deadline."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - self._clock.now())


CURRENT: ContextVar[ServerCall | None] = ContextVar("meshrpc_server_call", default=None)
"""The call being served in this context; None outside handlers."""


def current_call() -> ServerCall | None:
    """Return the call that the running handler serves; None outside handlers."""
    return CURRENT.get()

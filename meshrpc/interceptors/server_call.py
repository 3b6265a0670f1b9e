"""The call a handler is serving: who called, with what, and how long it may take.

Made once, on arrival, by the outermost wrapper. The deadline is read from grpcio once and kept
in monotonic time, because grpcio's own `time_remaining()` follows the wall clock. `CURRENT` is
set without ever being reset: a handler runs in a task of its own, and resetting a token from the
generator of a cancelled stream fails, since that one is closed from another context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from opentelemetry.trace import Span

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.interceptors.draining import Draining
from meshrpc.wire import CALLER, CRITICALITY, UNKNOWN_CALLER, Criticality, Metadata


class ServerCall:
    """One call that this process serves."""

    __slots__ = (
        "_clock",
        "_trailers",
        "caller",
        "criticality",
        "deadline",
        "dependency_failed",
        "draining",
        "is_refused",
        "is_stream",
        "lane",
        "metadata",
        "method",
        "span",
        "started_at",
        "threads",
    )

    def __init__(
        self,
        method: str,
        metadata: Metadata = (),
        *,
        is_stream: bool = False,
        threads: int = 0,
        timeout: float | None = None,
        draining: Draining | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`timeout` is the seconds left on arrival; None: the caller set no deadline."""
        self.method = method
        """The method called, as `/pkg.Service/Method`."""
        self.metadata = metadata
        """The request's metadata, as received."""
        self.caller = UNKNOWN_CALLER
        """The calling service by its own word, or `unknown`."""
        self.criticality = Criticality.DEFAULT
        """How much the call matters, by its caller's word."""
        for key, value in metadata:
            if key == CALLER and value:
                self.caller = value if isinstance(value, str) else value.decode("utf-8", "replace")
            elif key == CRITICALITY:
                self.criticality = _CRITICALITIES.get(value, Criticality.DEFAULT)
        self.deadline = None if timeout is None else clock.now() + timeout
        """When the caller stops waiting, in monotonic seconds; None: never."""
        self.draining = Draining() if draining is None else draining
        """Set when this process begins to leave: long streams should then come to an end."""
        self.dependency_failed = False
        """Whether a call made while serving this one has failed for good: trying this one again would
        only repeat what was tried there."""
        self.span: Span | None = None
        """The span of this call, when it is traced."""
        self.is_refused = False
        """Whether a concern ended it before its handler ran."""
        self.is_stream = is_stream
        """Whether more than one message may go either way."""
        self.threads = threads
        """Threads of which one runs the handler; 0: it runs on the event loop."""
        self.lane: object | None = None
        """Where it was admitted; None as `started_at`."""
        self.started_at: float | None = None
        """When it was admitted, in monotonic seconds; None where nobody counts handlers."""
        self._trailers: tuple[Callable[[], Metadata], ...] = ()
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

    @property
    def has_trailers(self) -> bool:
        """Whether a concern has added trailers."""
        return bool(self._trailers)

    def add_trailers(self, trailers: Callable[[], Metadata]) -> None:
        """Have what `trailers` returns sent with the call's status, whatever the way out.

        For the `begin` of a concern. It is asked when the status is sent, and must not raise; of
        a key that the handler sends itself, the handler's values go.
        """
        self._trailers = (*self._trailers, trailers)

    def with_trailers(self, trailers: Metadata) -> Metadata:
        """Return the handler's own trailers with those that concerns have added."""
        if not self._trailers:
            return trailers
        own = {key for key, _ in trailers}
        added = (pair for each in self._trailers for pair in each() if pair[0] not in own)
        return (*trailers, *added)


_CRITICALITIES: dict[str | bytes, Criticality] = {each.value: each for each in Criticality}

CURRENT: ContextVar[ServerCall | None] = ContextVar("meshrpc_server_call", default=None)
"""The call being served in this context; None outside handlers."""


def current_call() -> ServerCall | None:
    """Return the call that the running handler serves; None outside handlers."""
    return CURRENT.get()


@contextmanager
def detached() -> Iterator[None]:
    """Leave the scope of the call being served: for work that goes on when it has been answered.

        with meshrpc.detached():
            task = asyncio.create_task(notify(order))

    Calls made inside, and by tasks started there, have neither the handler's deadline nor its
    criticality, and `current_call()` is None. A trace goes on: who started the work stays known.
    """
    token = CURRENT.set(None)
    try:
        yield
    finally:
        # The generator of a cancelled stream is closed from another context, which has no token.
        with suppress(ValueError):
            CURRENT.reset(token)

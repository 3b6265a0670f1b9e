"""An attempt: one try of a call at one endpoint, and what its end means.

Every attempt is finished exactly once, from grpc's own done callback, whatever ended it:
an answer, an error, a cancellation, a lost connection. The status is read from the call inside
that callback (`code().send(None)` returns at once, for it is known), so that a call which
succeeds costs no task.
"""

from __future__ import annotations

import weakref
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from meshrpc.client.endpoint import Endpoint
from meshrpc.clock import Clock
from meshrpc.resilience.outcome import Outcome, classify
from meshrpc.wire import Metadata

T = TypeVar("T")


class Caller(Protocol):
    """The logical call that an attempt belongs to."""

    def on_attempt_done(self, attempt: Attempt, code: grpc.StatusCode) -> None:
        """Decide what follows; called exactly once for each attempt."""
        ...


def known(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that needs not wait for it."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("the call is not over yet")


class Attempt:
    """One try at one endpoint."""

    __slots__ = (
        "_caller",
        "_clock",
        "_keep",
        "_sampled",
        "_started",
        "bounded",
        "endpoint",
        "inner",
    )

    def __init__(
        self, endpoint: Endpoint, caller: Caller, clock: Clock, *, sampled: bool, bounded: bool
    ) -> None:
        """`sampled`: its duration is a latency; `bounded`: by `per_attempt_timeout`."""
        self.endpoint = endpoint
        self.bounded = bounded
        self.inner: Any = None
        self._clock = clock
        self._sampled = sampled
        self._started = clock.now()
        # Grpc holds the done callback until the call is over. Were the caller held with it, a
        # stream that its user forgot could never be collected, nor be cancelled for that.
        self._caller = weakref.ref(caller)
        self._keep: Caller | None = None

    def keep(self, caller: Caller) -> None:
        """Hold the caller until the attempt is over: somebody waits for it by callback."""
        self._keep = caller

    def start(self, inner: Any) -> None:
        """Count the attempt as pending at its endpoint until `inner` is over."""
        self.inner = inner
        self.endpoint.start()
        inner.add_done_callback(self._on_done)

    @property
    def interrupted(self) -> bool:
        """Whether this client ended it, by closing the endpoint under it."""
        return self.endpoint.closing and bool(self.inner.cancelled())

    def details(self) -> str:
        """Return the status details of an attempt that is over."""
        return known(self.inner.details()) or ""

    def trailers(self) -> Metadata:
        """Return the trailing metadata of an attempt that is over."""
        return tuple(known(self.inner.trailing_metadata()) or ())

    def _on_done(self, inner: Any) -> None:
        code: grpc.StatusCode = known(inner.code())
        if self.interrupted:
            code = grpc.StatusCode.UNAVAILABLE
        now = self._clock.now()
        answered = not inner.cancelled()
        self.endpoint.finish(
            classify(code) if answered else Outcome.IGNORED,
            now - self._started if answered and self._sampled else None,
            now,
        )
        caller = self._caller()
        self._keep = None
        if caller is not None:
            caller.on_attempt_done(self, code)

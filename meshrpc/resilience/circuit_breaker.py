"""Circuit breaker: a bound on the calls that one process has under way to one service.

When everything hangs, calls pile up until they meet their deadlines, and memory and connections
with them. Beyond the limit a call fails at once instead (Envoy's `max_requests`). It counts calls,
not their attempts, and knows nothing of how they end: what fails fast is the throttle's.
"""

from __future__ import annotations

from meshrpc.policy import model


class CircuitBreaker:
    """Counts calls in and out; every `acquire` that returned True is followed by one `release`."""

    __slots__ = ("_limit", "in_flight")

    in_flight: int
    """Calls under way."""

    def __init__(self, policy: model.CircuitBreaker) -> None:
        self._limit = policy.max_requests
        self.in_flight = 0

    def configure(self, policy: model.CircuitBreaker) -> None:
        """Change the limit; calls beyond a lower one go on, and no new ones start meanwhile."""
        self._limit = policy.max_requests

    def acquire(self) -> bool:
        """Count a call that starts; False, and nothing counted, when the limit is reached."""
        if self.in_flight >= self._limit:
            return False
        self.in_flight += 1
        return True

    def release(self) -> None:
        """Count a call that has ended.

        Raises:
            RuntimeError: none was under way, so one was counted out twice.
        """
        if self.in_flight == 0:
            raise RuntimeError("release() without acquire(): a call was counted out twice")
        self.in_flight -= 1

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.in_flight} of {self._limit}>"

"""Rate limits in front of handlers: more than was agreed gets RESOURCE_EXHAUSTED.

The refusal says which limit, for whom, and when to come back, once for gRPC clients and once for
people. Health checks and reflection are not counted: an instance that is busy is not dead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import grpc

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.interceptors.compose import Refused, ServerInterceptor
from meshrpc.interceptors.method_handler import is_infrastructure
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.limits.limit import LimitCounts
from meshrpc.limits.rate_limiter import RateLimiter, Refusal
from meshrpc.limits.shares import Claim, Share
from meshrpc.policy.model import RateLimit
from meshrpc.wire import NOT_EXECUTED, RETRY_AFTER, RETRY_PUSHBACK

_PER = ((1.0, "s"), (60.0, "m"), (3600.0, "h"))


class RateLimitInterceptor(ServerInterceptor):
    """Counts calls against rate limits and refuses those above them."""

    def __init__(self, limits: tuple[RateLimit, ...] = (), *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self._clock = clock
        self._limiter = RateLimiter(tuple(limits))

    def __repr__(self) -> str:
        return f"<RateLimitInterceptor {self._limiter!r}>"

    @property
    def counts(self) -> dict[str, LimitCounts]:
        """What became of calls so far, by the name of each limit."""
        return self._limiter.counts

    def restart(self, clock: Clock) -> None:
        """Forget limits and counts, and count by `clock` from now on."""
        self._clock = clock
        self._limiter = RateLimiter(())

    def configure(self, limits: tuple[RateLimit, ...]) -> None:
        """Replace the limits; those that keep name and key keep what they have counted."""
        self._limiter.configure(tuple(limits), self._clock.now())

    @property
    def has_fleet_limits(self) -> bool:
        """Whether any limit is one over the fleet."""
        return self._limiter.has_fleet_limits

    def look(self) -> bool:
        """Work out what is wanted of limits over the fleet; return whether that changed a lot."""
        return self._limiter.look(self._clock.now())

    def claims(self) -> tuple[Claim, ...]:
        """Return what this process wants and uses of limits over the fleet."""
        return self._limiter.claims()

    def take_shares(self, shares: Iterable[Share]) -> None:
        """Use these shares of limits over the fleet from now on."""
        self._limiter.take_shares(shares, self._clock.now())

    def applies_to(self, method: str) -> bool:
        """Every method but those of health checks and reflection."""
        return not is_infrastructure(method)

    def begin(self, call: ServerCall) -> None:
        """Refuse a call for which some limit has no token."""
        refusal = self._limiter.check(self._clock.now(), call.caller, call.method, call.metadata)
        if refusal is not None:
            raise _refused(refusal)


def _refused(refusal: Refusal) -> Refused:
    limit, over = refusal.limit, ""
    if refusal.share is not None:
        over = f" over the fleet, this instance's share is {_rate(refusal.share, digits=3)},"
    return Refused(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"rate limit {limit.name!r} of {_rate(refusal.rate)}{over}"
        + (f" refuses {refusal.key}" if refusal.key else " is used up"),
        (
            (NOT_EXECUTED, "1"),
            (RETRY_AFTER, str(max(1, math.ceil(refusal.wait)))),
            (RETRY_PUSHBACK, str(math.ceil(refusal.wait * 1000))),
        ),
    )


def _rate(per_second: float, digits: int = 6) -> str:
    """Write a rate in the unit in which it is a number of at least one, if there is one."""
    for seconds, unit in _PER:
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.{digits}g}/{unit}"
    return f"{per_second * 3600:.{digits}g}/h"

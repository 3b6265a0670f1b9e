"""What a rate limit decision costs: admitted and refused, one limit and three, by key.

The peer is an empty function called with the same arguments. Time stands still at `NOW`: buckets
for admitting are too deep to run dry, those for refusing are empty.
"""

from __future__ import annotations

import itertools

import stopwatch

from meshrpc.interceptors.rate_limit import RateLimitInterceptor
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.limits.rate_limiter import RateLimiter
from meshrpc.policy.model import RateLimit, RateOverride, ShareMode

NOW = 1_000.0
METHOD = "/payment.v1.PaymentService/Charge"
METADATA = (
    ("user-agent", "grpc-python-asyncio/1.82"),
    ("mesh-caller", "order"),
    ("mesh-target", "payment-1a2b3c4d"),
    ("x-tenant", "acme"),
)
CALLERS = tuple(f"caller-{number}" for number in range(5_000))

DEEP = {"rate": 1e6, "burst": 1_000_000_000}
EMPTY = {"rate": 1 / 3600, "burst": 1}
KEYS = {
    "no key": (),
    "by caller": ("caller",),
    "by metadata": ("metadata.x-tenant",),
    "by caller and method": ("caller", "method"),
}


def limiter(size: dict[str, float], *keys: tuple[str, ...]) -> RateLimiter:
    """Return a limiter with one limit for each key; empty buckets have given their one token."""
    limits = RateLimiter(tuple(RateLimit(f"{n}", key=key, **size) for n, key in enumerate(keys)))
    limits.check(NOW, "order", METHOD, METADATA)
    return limits


def peer(now: float, caller: str, method: str, metadata: object) -> None:
    """Decide nothing."""


def main() -> None:
    given = stopwatch.arguments("What a rate limit decision costs.")
    cases = stopwatch.Cases()
    call = {"now": NOW, "caller": "order", "method": METHOD, "metadata": METADATA}
    check = "check(now, caller, method, metadata)"
    three = (("caller",), ("method",), ())
    cases.add("peer: an empty call", check, check=peer, **call)
    cases.add("no limits", check, check=RateLimiter().check, **call)
    for name, key in KEYS.items():
        cases.add(f"admitted, 1 limit, {name}", check, check=limiter(DEEP, key).check, **call)
    cases.add("admitted, 3 limits", check, check=limiter(DEEP, *three).check, **call)
    cases.add(
        "admitted, 1 limit, 5,000 callers in turn",
        "check(now, next_caller(), method, metadata)",
        check=limiter(DEEP, ("caller",)).check,
        next_caller=itertools.cycle(CALLERS).__next__,
        **call,
    )
    fleet = RateLimit("fleet", key=("caller",), share=ShareMode.FLEET, **DEEP)
    cases.add("admitted, 1 limit over the fleet", check, check=RateLimiter((fleet,)).check, **call)
    override = RateOverride((("caller", "order"),), **DEEP)
    own = RateLimit("own", key=("caller",), overrides=(override,), **EMPTY)
    cases.add("admitted, 1 limit, by override", check, check=RateLimiter((own,)).check, **call)
    for name, key in KEYS.items():
        cases.add(f"refused, 1 limit, {name}", check, check=limiter(EMPTY, key).check, **call)
    cases.add("refused, 3 limits", check, check=limiter(EMPTY, *three).check, **call)

    interceptor = RateLimitInterceptor((RateLimit("per-caller", key=("caller",), **DEEP),))
    serving = ServerCall(METHOD, METADATA)
    cases.add(
        "admitted, as an interceptor, clock included",
        "begin(serving)",
        begin=interceptor.begin,
        serving=serving,
    )
    stopwatch.show(cases.measure(given.rounds), given.output)


if __name__ == "__main__":
    main()

"""The policy language as frozen data.

A field that a document does not set is None, so that documents can be laid over one another:
the mesh's defaults (`service: "*"`), then the service's own. `effective` does that, a whole
block at a time. Units are those of the field's docstring; durations are seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TypeAlias

import grpc


class BalancerKind(enum.StrEnum):
    """The balancers of the language."""

    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    WEIGHTED_ROUND_ROBIN = "weighted_round_robin"
    LEAST_REQUEST = "least_request"
    PEAK_EWMA = "peak_ewma"
    RING_HASH = "ring_hash"
    MAGLEV = "maglev"


@dataclass(frozen=True, slots=True)
class Balancer:
    """How callers choose among the instances of the service."""

    kind: BalancerKind = BalancerKind.PEAK_EWMA
    decay: float = 10.0
    """peak_ewma: how long a latency peak is remembered, as a time constant."""
    choices: int = 2
    """least_request: how many instances are drawn, of which the least loaded gets the call."""
    max_load: float | None = None
    """ring_hash, maglev: calls under way at one instance at most, in multiples of the mean."""
    blackout: float = 10.0
    """weighted_round_robin: how long an instance must have been there for its reports to count."""
    expiry: float = 180.0
    """weighted_round_robin: how long a report counts."""
    update: float = 1.0
    """weighted_round_robin: how often weights are worked out anew."""
    error_penalty: float = 1.0
    """weighted_round_robin: what a failing call adds to the utilization, in calls."""

    @property
    def is_keyed(self) -> bool:
        """Whether calls of one key go to one instance."""
        return self.kind in (BalancerKind.RING_HASH, BalancerKind.MAGLEV)


@dataclass(frozen=True, slots=True)
class StreamBounds:
    """How long streams may last. None: as long as they like."""

    idle: float | None = None
    """Seconds without a message in either direction."""
    max: float | None = None
    """Seconds in all, for a stream that brings no timeout of its own."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Wait before retry n: base x 2^(n-1), at most max, jittered by 20 % either way."""

    base: float = 0.025
    max: float = 0.25


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed attempt is followed by another, on another instance where there is one."""

    attempts: int = 3
    """In all, the first one included; 1 turns retries off."""
    codes: frozenset[grpc.StatusCode] = frozenset({grpc.StatusCode.UNAVAILABLE})
    per_attempt_timeout: float | None = None
    backoff: Backoff = field(default_factory=Backoff)
    non_idempotent: frozenset[str] = frozenset()
    """Methods (`pkg.Service/Method`) retried although their proto does not call them idempotent."""


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Retries a caller may send beyond its calls: ratio x calls + min_per_second."""

    ratio: float = 0.1
    min_per_second: float = 1.0


@dataclass(frozen=True, slots=True)
class Hedge:
    """A second attempt elsewhere when the first one takes longer than calls usually do."""

    percentile: float = 0.95
    """Of this caller's own latencies, as a fraction of 1: how long the first attempt is waited for."""
    max_extra: float = 0.05
    """Hedges at most, as a part of the calls."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """When an instance that fails more than it should gets no calls for a while."""

    consecutive_failures: int = 5
    success_rate_below: float = 0.8
    """Over 10 seconds with at least 5 outcomes."""
    base_ejection: float = 5.0
    """The first ejection's length; each further one lasts this much longer than the one before."""
    max_ejection: float = 300.0
    max_ejected: float = 0.1
    """Ejected at a time at most, as a part of the instances; one may always go, but never the last."""


@dataclass(frozen=True, slots=True)
class SlowStart:
    """How an instance that is new, or back, comes to its full share of the calls."""

    window: float = 30.0


@dataclass(frozen=True, slots=True)
class Throttle:
    """Calls a client refuses by itself while the service accepts too few of those it gets."""

    multiplier: float = 2.0
    """Calls let out per call that the service accepted lately."""
    window: float = 1.5
    """What "lately" means, in seconds. The longer, the later a recovery is believed."""
    max_rejected: float = 0.8
    """Refused at most, as a part of the calls; the others find out when the service is back."""


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """Calls that one process may have under way to the service."""

    max_requests: int = 1024


@dataclass(frozen=True, slots=True)
class Locality:
    """Whether calls stay in their caller's zone, as far as its instances can carry them."""

    zone: bool = False
    min_instances: int = 6
    """With fewer instances in all, zones make no difference."""


class KeySource(enum.StrEnum):
    """Where the key of a call stands."""

    METADATA = "metadata"
    FIELD = "field"


@dataclass(frozen=True, slots=True)
class HashKey:
    """What calls that belong together have in common."""

    source: KeySource
    name: str
    """A metadata key, or the path of a field of the request (`user.id`)."""


class Comparison(enum.StrEnum):
    """How a metadata value is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    PRESENT = "present"


@dataclass(frozen=True, slots=True)
class MetadataMatch:
    """What one metadata key of a call has to say."""

    key: str
    comparison: Comparison
    value: str
    """`true` or `false` for `present`."""


@dataclass(frozen=True, slots=True)
class Match:
    """Which calls a route is for: those that fit all of it."""

    method: str | None = None
    """`pkg.Service/Method` or `pkg.Service/*`."""
    caller: str | None = None
    """The calling service."""
    metadata: tuple[MetadataMatch, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """One subset of a split, and its share relative to the others'."""

    subset: str
    weight: int


class Fallback(enum.StrEnum):
    """What becomes of a call when no subset that it may go to has an instance."""

    NONE = "none"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Mirror:
    """Copies of calls, sent to a subset whose answers nobody waits for."""

    subset: str
    percent: float
    """Of the calls, as a fraction of 1."""
    max_active: int = 100
    """Copies under way in one process at most; what comes on top is not copied."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to calls on purpose, to see what becomes of them. Fractions of 1."""

    delay_percent: float = 0.0
    delay: float = 0.0
    abort_percent: float = 0.0
    abort_code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    max_active: int | None = None
    """Calls of one process that have a fault at a time at most; None: any number."""


@dataclass(frozen=True, slots=True)
class Route:
    """What holds for some of the calls. None, or nothing: what holds for all of them."""

    name: str
    match: Match = Match()
    split: tuple[Target, ...] = ()
    """Where they go; nothing: to all instances."""
    fallback: Fallback = Fallback.NONE
    mirror: Mirror | None = None
    fault: Fault | None = None
    timeout: float | None = None
    stream: StreamBounds | None = None
    retry: Retry | None = None
    hedge: Hedge | None = None
    hash_key: HashKey | None = None


class ShareMode(enum.StrEnum):
    """What a rate limit counts over."""

    INSTANCE = "instance"
    FLEET = "fleet"


class LimitMode(enum.StrEnum):
    """Whether a rate limit refuses or only counts what it would have refused."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class RateOverride:
    """Another size for one bucket of a rate limit."""

    values: tuple[tuple[str, str], ...]
    """Whose: what the call has for each key of the limit, by the key's name; sorted by it."""
    rate: float
    burst: int


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket per key: `rate` tokens a second, `burst` of them saved at most."""

    name: str
    rate: float
    """Calls per second."""
    burst: int
    key: tuple[str, ...] = ()
    """What tells buckets apart: `caller`, `method`, `metadata.<name>`; none: one bucket."""
    share: ShareMode = ShareMode.INSTANCE
    mode: LimitMode = LimitMode.ENFORCE
    max_keys: int = 10_000
    overrides: tuple[RateOverride, ...] = ()


class ConcurrencyMode(enum.StrEnum):
    """What decides how many handlers run at a time."""

    ADAPTIVE = "adaptive"
    FIXED = "fixed"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many handlers run at a time in one process, before calls wait or are refused."""

    mode: ConcurrencyMode = ConcurrencyMode.ADAPTIVE
    limit: int = 1000
    """fixed: so many; adaptive: so many at most; off: means nothing."""


Subsets: TypeAlias = Mapping[str, Mapping[str, str]]
"""By the name of each subset, the labels that an instance of it has."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One document, validated. None: the document does not say."""

    service: str
    timeout: float | None = None
    stream: StreamBounds | None = None
    balancer: Balancer | None = None
    retry: Retry | None = None
    retry_budget: RetryBudget | None = None
    hedge: Hedge | None = None
    outlier: Outlier | None = None
    slow_start: SlowStart | None = None
    throttle: Throttle | None = None
    circuit_breaker: CircuitBreaker | None = None
    hash_key: HashKey | None = None
    subset_size: int | None = None
    locality: Locality | None = None
    subsets: Subsets | None = field(default=None, hash=False)
    routes: tuple[Route, ...] | None = None
    rate_limits: tuple[RateLimit, ...] | None = None
    concurrency: Concurrency | None = None


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """What holds for a service once its documents and the defaults are laid together."""

    service: str
    timeout: float | None = None
    """Nothing has a deadline nobody asked for."""
    stream: StreamBounds = field(default_factory=StreamBounds)
    balancer: Balancer = field(default_factory=Balancer)
    retry: Retry = field(default_factory=Retry)
    retry_budget: RetryBudget = field(default_factory=RetryBudget)
    hedge: Hedge | None = None
    """Off unless asked for."""
    outlier: Outlier = field(default_factory=Outlier)
    slow_start: SlowStart = field(default_factory=SlowStart)
    throttle: Throttle = field(default_factory=Throttle)
    circuit_breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    hash_key: HashKey | None = None
    """None: only `call_options(hash_key=...)` gives calls a key."""
    subset_size: int = 100
    """Instances that one process connects to at most; of each subset so many more."""
    locality: Locality = field(default_factory=Locality)
    subsets: Subsets = field(default_factory=dict, hash=False)
    routes: tuple[Route, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    concurrency: Concurrency = field(default_factory=Concurrency)


def effective(service: str, documents: Mapping[str, Policy]) -> EffectivePolicy:
    """Lay the service's document over the mesh's (`*`) over the defaults, block by block."""
    said = {
        block.name: value
        for document in (documents.get("*"), documents.get(service))
        if document is not None
        for block in fields(EffectivePolicy)
        if block.name != "service" and (value := getattr(document, block.name)) is not None
    }
    return EffectivePolicy(service, **said)

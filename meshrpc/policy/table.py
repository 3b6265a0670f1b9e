"""The policy as one method sees it, compiled on first use.

What a call needs from the policy of the service it calls, with everything that depends on the
method and the caller alone already decided: which routes are left, and for each of them the
timeout, whether a call may be repeated, the subsets with their labels. What is left for the call
itself is metadata, and most methods have no route that looks at it. All of it is immutable: a call
keeps what it was given, whatever the policy becomes meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from google.protobuf import descriptor_pb2, descriptor_pool

from meshrpc.policy.hash_key import first_value
from meshrpc.policy.model import (
    Comparison,
    EffectivePolicy,
    Fault,
    HashKey,
    Hedge,
    MetadataMatch,
    Mirror,
    Retry,
    Route,
    StreamBounds,
)
from meshrpc.policy.split import Split
from meshrpc.policy.subset import Subset
from meshrpc.wire import Metadata

_REPEATABLE = frozenset(
    {
        descriptor_pb2.MethodOptions.IDEMPOTENT,
        descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
    }
)


_NO_RETRY = Retry(attempts=1)

_EVERY_CALL = Route("")

_UNBOUNDED = StreamBounds()


@dataclass(frozen=True, slots=True)
class MirrorTo:
    """Where copies of calls go, and how many."""

    subset: Subset
    percent: float
    """Of the calls, as a fraction of 1."""
    max_active: int
    """Copies under way in one process at most."""


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """What holds for calls of one method that take one route."""

    timeout: float | None
    """Seconds for a unary call that brings no timeout of its own."""
    retry: Retry
    idempotent: bool
    """Executing it twice is as good as once: its proto or the policy says so."""
    hedge: Hedge | None = None
    """Never of a method that is not idempotent."""
    route: str | None = None
    """Its name, for people; None: no route."""
    split: Split | None = None
    """None: calls go to all instances."""
    mirror: MirrorTo | None = None
    fault: Fault | None = None
    hash_key: HashKey | None = None
    stream: StreamBounds | None = None
    """None: streams have no bounds but those their callers give them."""

    @property
    def timed(self) -> MethodPolicy:
        """The same for a stream whose caller has said how long it may last."""
        return replace(self, stream=self.stream and replace(self.stream, max=None))

    @property
    def once(self) -> MethodPolicy:
        """The same for a call that is to be sent once and not again."""
        return replace(self, retry=_NO_RETRY, hedge=None)


class MethodRoutes:
    """The routes that calls of one method may take, in order."""

    __slots__ = ("_conditional", "_otherwise", "fixed")

    def __init__(
        self,
        conditional: tuple[tuple[tuple[MetadataMatch, ...], MethodPolicy], ...],
        otherwise: MethodPolicy,
    ) -> None:
        self._conditional = conditional
        self._otherwise = otherwise
        self.fixed: MethodPolicy | None = None if conditional else otherwise
        """What holds for every call, when no metadata has to be looked at."""

    def __repr__(self) -> str:
        each = [policy.route for _, policy in self._conditional] + [self._otherwise.route]
        return f"<MethodRoutes {' '.join(str(route) for route in each)}>"

    def choose(self, metadata: Metadata) -> MethodPolicy:
        """Return what holds for a call that has this metadata: the first route that fits."""
        for conditions, policy in self._conditional:
            if all(_fits(condition, metadata) for condition in conditions):
                return policy
        return self._otherwise


def is_idempotent(method: str) -> bool:
    """Return whether the proto of `pkg.Service/Method` declares it idempotent.

    A method whose descriptor is not loaded in this process counts as not idempotent.
    """
    pool = descriptor_pool.Default()
    try:
        descriptor = pool.FindMethodByName(method.replace("/", "."))
    except KeyError:
        return False
    return descriptor.GetOptions().idempotency_level in _REPEATABLE


class PolicyTable:
    """One service's effective policy, by method, as one caller sees it."""

    __slots__ = ("_methods", "_routes", "policy", "subsets")

    def __init__(self, policy: EffectivePolicy, caller: str = "unknown") -> None:
        """Compile `policy` for calls of the service `caller`."""
        self.policy = policy
        self.subsets: Mapping[str, Subset] = {
            name: Subset.of(name, labels) for name, labels in policy.subsets.items()
        }
        self._routes = [route for route in policy.routes if route.match.caller in (None, caller)]
        self._methods: dict[str, MethodRoutes] = {}

    def method(self, path: str) -> MethodRoutes:
        """Return the routes that calls of `/pkg.Service/Method` may take."""
        compiled = self._methods.get(path)
        if compiled is None:
            compiled = self._methods[path] = self._compile(path.removeprefix("/"))
        return compiled

    def subset(self, name: str) -> Subset:
        """Return the subset of this name; one that the policy lacks has no instances."""
        # A route can name such a one: it stands in the mesh's document, and the service's own has
        # other subsets.
        return self.subsets.get(name) or Subset.unknown(name)

    def _compile(self, method: str) -> MethodRoutes:
        declared = is_idempotent(method)
        conditional: list[tuple[tuple[MetadataMatch, ...], MethodPolicy]] = []
        for route in self._routes:
            if not _is_for(route, method):
                continue
            policy = self._policy(route, method, declared)
            if not route.match.metadata:  # nothing gets past it
                return MethodRoutes(tuple(conditional), policy)
            conditional.append((route.match.metadata, policy))
        return MethodRoutes(tuple(conditional), self._policy(_EVERY_CALL, method, declared))

    def _policy(self, route: Route, method: str, declared: bool) -> MethodPolicy:
        """Lay a route over the document, block by block."""
        document = self.policy
        retry = route.retry or document.retry
        idempotent = declared or method in retry.non_idempotent
        return MethodPolicy(
            timeout=document.timeout if route.timeout is None else route.timeout,
            retry=retry,
            idempotent=idempotent,
            hedge=(route.hedge or document.hedge) if idempotent else None,
            route=route.name or None,
            split=self._split(route),
            mirror=self._mirror(route.mirror),
            fault=route.fault,
            hash_key=route.hash_key or document.hash_key,
            stream=_bounds(route.stream or document.stream),
        )

    def _split(self, route: Route) -> Split | None:
        targets = tuple(
            (self.subset(target.subset), target.weight) for target in route.split if target.weight
        )
        return Split(route.name, targets, route.fallback) if targets else None

    def _mirror(self, mirror: Mirror | None) -> MirrorTo | None:
        if mirror is None or not mirror.percent:
            return None
        return MirrorTo(self.subset(mirror.subset), mirror.percent, mirror.max_active)


def _bounds(stream: StreamBounds) -> StreamBounds | None:
    return None if stream == _UNBOUNDED else stream


def _is_for(route: Route, method: str) -> bool:
    wanted = route.match.method
    if wanted is None or wanted == method:
        return True
    return wanted.endswith("/*") and method.startswith(wanted.removesuffix("*"))


def _fits(condition: MetadataMatch, metadata: Metadata) -> bool:
    value = first_value(metadata, condition.key)
    match condition.comparison:
        case Comparison.EXACT:
            return value == condition.value
        case Comparison.PREFIX:
            return value is not None and value.startswith(condition.value)
        case Comparison.PRESENT:
            return (value is not None) == (condition.value == "true")

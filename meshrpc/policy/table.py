"""The policy as one method sees it, compiled on first use.

What a call needs from the policy of the service it calls, with everything that depends on the
method alone already decided: its timeout, and whether it may be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from google.protobuf import descriptor_pb2, descriptor_pool

from meshrpc.policy.model import EffectivePolicy, Hedge, Retry

_REPEATABLE = frozenset(
    {
        descriptor_pb2.MethodOptions.IDEMPOTENT,
        descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
    }
)


_NO_RETRY = Retry(attempts=1)


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """What holds for calls of one method."""

    timeout: float | None
    """Seconds for a unary call that brings no timeout of its own."""
    retry: Retry
    idempotent: bool
    """Executing it twice is as good as once: its proto or the policy says so."""
    hedge: Hedge | None = None
    """Never of a method that is not idempotent."""

    @property
    def once(self) -> MethodPolicy:
        """The same for a call that is to be sent once and not again."""
        return replace(self, retry=_NO_RETRY, hedge=None)


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
    """One service's effective policy, by method."""

    __slots__ = ("_methods", "policy")

    def __init__(self, policy: EffectivePolicy) -> None:
        self.policy = policy
        self._methods: dict[str, MethodPolicy] = {}

    def method(self, path: str) -> MethodPolicy:
        """Return what holds for `/pkg.Service/Method`."""
        compiled = self._methods.get(path)
        if compiled is None:
            name = path.removeprefix("/")
            retry = self.policy.retry
            idempotent = name in retry.non_idempotent or is_idempotent(name)
            compiled = MethodPolicy(
                timeout=self.policy.timeout,
                retry=retry,
                idempotent=idempotent,
                hedge=self.policy.hedge if idempotent else None,
            )
            self._methods[path] = compiled
        return compiled

"""The registry protocol: what every kind of registry can do, and what it promises.

A registry answers two questions, who serves this service and tell me when that changes, and
keeps the leases of those who do. One battery of tests (`tests/contract/test_registry.py`) holds
every implementation to the contract written here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Protocol, Self

from meshrpc.registry.finding import Finding
from meshrpc.registry.instance import Instance

LEASE = 15.0
"""Seconds a record lives without being renewed."""
RENEW_EVERY = 5.0
"""Seconds between renewals: two may be lost before the lease is."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All instances of a service at one time, draining ones included, ordered by id.

    Who departed and what was skipped is no difference between two that say the same otherwise.
    """

    service: str
    instances: tuple[Instance, ...]
    departed: frozenset[str] = field(default=frozenset(), compare=False)
    """Ids of instances that left lately, by their own word or somebody's: their absence is certain.
    Those that are missing from `instances` without a word may only have been forgotten."""
    is_recovering: bool = False
    """Whether the registry has just started: who is missing may only not have come back yet."""
    skipped: tuple[str, ...] = field(default=(), compare=False)
    """Why records of this service cannot be used, a line for each that was left out."""


class Watch(Protocol):
    """A running watch.

    One that knows has a method `why_silent() -> str | None` besides: why the registry does not
    answer just now, for people; None while it does.
    """

    def close(self) -> None:
        """Stop: the callback is not called again."""
        ...


class Registry(Protocol):
    """Who serves what.

    Open it with `async with`; background tasks it needs live and end with that block. Calls
    raise `RegistryError` when the registry cannot be reached or refuses; watches never raise:
    they keep what they last knew and go on trying.
    """

    acknowledges: ClassVar[bool]
    """Whether `deregister` returns only once watchers have let go of the instance."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def register(self, instance: Instance) -> None:
        """Create or replace the instance's record and start its lease of `LEASE` seconds.

        A `permanent` one has no lease: it stays until it is deregistered, and the registry itself
        looks whether it answers and says so in its `health`. An instance that is marked as draining
        stays so when it registers again, unless as another incarnation.

        Raises:
            StaleIncarnation: a newer incarnation of the same id is registered.
            ReadOnlyRegistry: this registry registers nobody.
        """
        ...

    async def renew(self, instance: Instance) -> bool:
        """Extend the lease; False when this incarnation holds none: register again."""
        ...

    async def drain(self, instance: Instance) -> None:
        """Mark the instance as leaving, so that callers stop picking it. Unknown: no error."""
        ...

    async def undrain(self, instance: Instance) -> None:
        """Take the mark back. Unknown, or not marked: no error."""
        ...

    async def deregister(self, instance: Instance) -> None:
        """Remove the record. Unknown: no error."""
        ...

    async def services(self) -> tuple[str, ...]:
        """Return the names of all services that have instances, or records that are none, sorted."""
        ...

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """Return the service's instances, draining ones included, ordered by id."""
        ...

    async def findings(self, service: str) -> tuple[Finding, ...]:
        """Return what is wrong with the service's records, as far as the registry itself can tell."""
        ...

    def watch(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Call `on_snapshot` on this loop with the first snapshot and with each later one.

        The first comes also when it is empty. A callback returns quickly and does not raise;
        when it has returned, the snapshot counts as taken.
        """
        ...

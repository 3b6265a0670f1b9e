"""A registry inside one process, for tests and notebooks: `memory:`.

It is the lease table with watches. Watchers are called before the change returns to whoever made
it, so `deregister` acknowledges by itself. Give the same object to every `Mesh` that shall meet;
`in_namespace` is the same registry seen from another namespace. It lives in one event loop at a
time and is not thread-safe; several processes need a real registry. Permanent records are kept, and
checked by nobody.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from types import TracebackType
from typing import ClassVar, Self

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.registry.finding import Finding
from meshrpc.registry.instance import Instance
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.registry import Snapshot, Watch

log = logging.getLogger(__name__)


class MemoryRegistry:
    """Instances of this process, by `namespace`."""

    acknowledges: ClassVar[bool] = True

    def __init__(self, namespace: str = "default", *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.namespace = namespace
        self._shared = _Shared(clock)

    def __repr__(self) -> str:
        return f"<MemoryRegistry {self.namespace} {self._shared.table!r}>"

    def in_namespace(self, namespace: str) -> MemoryRegistry:
        """Return this same registry, seen from `namespace`."""
        other = MemoryRegistry(namespace)
        other._shared = self._shared
        return other

    async def __aenter__(self) -> Self:
        self._shared.enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._shared.leave()

    async def register(self, instance: Instance) -> None:
        """Create or replace the instance's record, in the namespace it names."""
        self._shared.register(instance)

    async def renew(self, instance: Instance) -> bool:
        """Extend the lease; False when this incarnation holds none."""
        return self._shared.table.renew(
            instance.namespace,
            instance.service,
            instance.id,
            instance.incarnation,
            self._shared.clock.now(),
        )

    async def drain(self, instance: Instance) -> None:
        """Mark the instance as leaving."""
        if self._shared.table.drain(instance.namespace, instance.service, instance.id):
            self._shared.publish(instance.namespace, instance.service)

    async def undrain(self, instance: Instance) -> None:
        """Take the mark back."""
        if self._shared.table.undrain(instance.namespace, instance.service, instance.id):
            self._shared.publish(instance.namespace, instance.service)

    async def deregister(self, instance: Instance) -> None:
        """Remove the record."""
        if self._shared.table.deregister(instance.namespace, instance.service, instance.id):
            self._shared.publish(instance.namespace, instance.service)

    async def services(self) -> tuple[str, ...]:
        """Return the names of this namespace's services, sorted."""
        return self._shared.table.services(self.namespace)

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """Return the service's instances in this namespace, ordered by id."""
        return self._shared.table.snapshot(self.namespace, service).instances

    async def findings(self, service: str) -> tuple[Finding, ...]:
        """Return which of the service's leases are about to run out."""
        return self._shared.table.findings(self.namespace, service, self._shared.clock.now())

    def watch(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Call `on_snapshot` at once, before this returns, and with each change."""
        return _MemoryWatch(self._shared, (self.namespace, service), on_snapshot)


class _Shared:
    """What all namespaces of one memory registry have in common."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.table = LeaseTable()
        self.watches: dict[tuple[str, str], list[_MemoryWatch]] = {}
        self._entered = 0
        self._expiry: asyncio.Task[None] | None = None
        self._leased = asyncio.Event()

    def enter(self) -> None:
        self._entered += 1
        if self._expiry is None:
            self._leased = asyncio.Event()  # the last one may belong to another loop
            self._expiry = asyncio.create_task(self._expire(), context=contextvars.Context())

    async def leave(self) -> None:
        self._entered -= 1
        if self._entered == 0 and self._expiry is not None:
            expiry, self._expiry = self._expiry, None
            expiry.cancel()
            await asyncio.wait([expiry])

    def register(self, instance: Instance) -> None:
        changed = self.table.register(instance, self.clock.now())
        self._leased.set()
        if changed:
            self.publish(instance.namespace, instance.service)

    def publish(self, namespace: str, service: str) -> None:
        for watch in tuple(self.watches.get((namespace, service), ())):
            watch.deliver()

    async def _expire(self) -> None:
        while True:
            gone = self.table.expire(self.clock.now())
            for namespace, service in {(each.namespace, each.service) for each in gone}:
                self.publish(namespace, service)
            # All leases are equally long, so a new one never ends before the one waited for.
            due = self.table.next_expiry()
            if due is None:
                self._leased.clear()
                await self._leased.wait()
            else:
                await self.clock.sleep(due - self.clock.now())


class _MemoryWatch:
    def __init__(
        self, shared: _Shared, key: tuple[str, str], on_snapshot: Callable[[Snapshot], None]
    ) -> None:
        self._shared = shared
        self._key = key
        self._on_snapshot = on_snapshot
        self._version = -1
        self._shared.watches.setdefault(key, []).append(self)
        self.deliver()

    def __repr__(self) -> str:
        return f"<MemoryWatch {'/'.join(self._key)} version={self._version}>"

    def why_silent(self) -> str | None:
        """Return None: a registry in this process always answers."""
        return None

    def close(self) -> None:
        watches = self._shared.watches.get(self._key, [])
        if self in watches:
            watches.remove(self)
            if not watches:
                del self._shared.watches[self._key]

    def deliver(self) -> None:
        """Hand over the newest snapshot, unless this watch has it or was closed."""
        version = self._shared.table.version(*self._key)
        if version == self._version or self not in self._shared.watches.get(self._key, ()):
            return
        # Noted first: a callback that changes the registry comes back here before it returns.
        self._version = version
        try:
            self._on_snapshot(self._shared.table.snapshot(*self._key))
        except Exception:
            log.exception("a watch of %s failed; it will be called again", "/".join(self._key))

"""The registry as one instance of a test has it: until it is cut off.

A process that is killed cannot deregister. In one event loop with everybody else it has to be
kept from it: once cut off, nothing that it asks for reaches the registry, and its lease runs out.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import ClassVar, Self

from meshrpc.registry.finding import Finding
from meshrpc.registry.instance import Instance
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registry import Snapshot, Watch


class RegistryAccess:
    """A `Registry` that passes everything on to another one, until it `is_cut`."""

    acknowledges: ClassVar[bool] = MemoryRegistry.acknowledges

    def __init__(self, registry: MemoryRegistry) -> None:
        self.is_cut = False
        self._registry = registry

    def __repr__(self) -> str:
        return f"<RegistryAccess {'cut' if self.is_cut else 'open'} {self._registry!r}>"

    async def __aenter__(self) -> Self:
        await self._registry.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._registry.__aexit__(kind, error, traceback)

    async def register(self, instance: Instance) -> None:
        """As `Registry.register`."""
        if not self.is_cut:
            await self._registry.register(instance)

    async def renew(self, instance: Instance) -> bool:
        """As `Registry.renew`."""
        return self.is_cut or await self._registry.renew(instance)

    async def drain(self, instance: Instance) -> None:
        """As `Registry.drain`."""
        if not self.is_cut:
            await self._registry.drain(instance)

    async def undrain(self, instance: Instance) -> None:
        """As `Registry.undrain`."""
        if not self.is_cut:
            await self._registry.undrain(instance)

    async def deregister(self, instance: Instance) -> None:
        """As `Registry.deregister`."""
        if not self.is_cut:
            await self._registry.deregister(instance)

    async def services(self) -> tuple[str, ...]:
        """As `Registry.services`."""
        return await self._registry.services()

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """As `Registry.instances`."""
        return await self._registry.instances(service)

    async def findings(self, service: str) -> tuple[Finding, ...]:
        """As `Registry.findings`."""
        return await self._registry.findings(service)

    def watch(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """As `Registry.watch`."""
        return self._registry.watch(service, on_snapshot)

"""Registries that list instances and register none: what all of them answer to a change."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from meshrpc.errors import ReadOnlyRegistry
from meshrpc.registry.finding import Finding
from meshrpc.registry.instance import Instance


class ReadOnly:
    """Refuses every change; for a registry to inherit."""

    acknowledges: ClassVar[bool] = False
    authority: str | None = None
    """What a server's certificate has to name, where that is not its address."""
    because: ClassVar[str]
    """What this kind of registry is, as the end of a sentence."""

    async def register(self, instance: Instance) -> NoReturn:
        """Raise `ReadOnlyRegistry`."""
        self._refuse(instance)

    async def renew(self, instance: Instance) -> NoReturn:
        """Raise `ReadOnlyRegistry`."""
        self._refuse(instance)

    async def drain(self, instance: Instance) -> NoReturn:
        """Raise `ReadOnlyRegistry`."""
        self._refuse(instance)

    async def undrain(self, instance: Instance) -> NoReturn:
        """Raise `ReadOnlyRegistry`."""
        self._refuse(instance)

    async def deregister(self, instance: Instance) -> NoReturn:
        """Raise `ReadOnlyRegistry`."""
        self._refuse(instance)

    async def findings(self, service: str) -> tuple[Finding, ...]:  # noqa: ARG002
        """Return nothing: it knows no more than addresses."""
        return ()

    def _refuse(self, instance: Instance) -> NoReturn:
        raise ReadOnlyRegistry(
            f"cannot change {instance.id!r} of {instance.service!r}: {self.because}"
        )

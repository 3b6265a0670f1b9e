"""A fixed list of instances: `static:payment=127.0.0.1:5001,127.0.0.1:5002;order=127.0.0.1:6001`.

For services outside the mesh, and for running without any registry. It never changes, knows
nobody's health and registers nobody; an instance's id is its address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

from meshrpc.errors import SettingsError
from meshrpc.registry.instance import Instance
from meshrpc.registry.read_only import ReadOnly
from meshrpc.registry.registry import Snapshot, Watch
from meshrpc.settings import dialable

SCHEME = "static:"
EXAMPLE = "static:payment=127.0.0.1:5001,127.0.0.1:5002;order=127.0.0.1:6001"


class StaticRegistry(ReadOnly):
    """The instances it was given, for ever.

    `services` is a `static:` URL or a mapping of service names to addresses (`host:port`).

    Raises:
        SettingsError: `services` names no service, or an address cannot be one.
    """

    because = "a static: registry is a fixed list and registers nobody"

    def __init__(
        self, services: str | Mapping[str, Iterable[str]], namespace: str = "default"
    ) -> None:
        self.namespace = namespace
        given = _parse(services) if isinstance(services, str) else services
        self._snapshots = {
            service: _snapshot(service, addresses, namespace)
            for service, addresses in given.items()
        }

    def __repr__(self) -> str:
        counts = (f"{name}={len(each.instances)}" for name, each in self._snapshots.items())
        return f"<StaticRegistry {' '.join(counts)}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    async def services(self) -> tuple[str, ...]:
        """Return the names of all services, sorted."""
        return tuple(sorted(self._snapshots))

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """Return the service's instances, ordered by id."""
        return self._snapshot(service).instances

    def watch(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Call `on_snapshot` once, before this returns."""
        on_snapshot(self._snapshot(service))
        return ToldWatch()

    def _snapshot(self, service: str) -> Snapshot:
        return self._snapshots.get(service) or Snapshot(service, ())


class ToldWatch:
    """A watch of what never changes, after it has told it."""

    def close(self) -> None:
        """Do nothing: there is nothing more to tell."""

    def why_silent(self) -> str | None:
        """Return None: nothing is waited for."""
        return None


def _parse(url: str) -> dict[str, list[str]]:
    services: dict[str, list[str]] = {}
    for part in url.removeprefix(SCHEME).split(";"):
        service, equals, addresses = (text.strip() for text in part.partition("="))
        if not service or not equals:
            raise SettingsError(f"registry {url!r}: expected services as in {EXAMPLE}")
        if service in services:
            raise SettingsError(f"registry {url!r}: {service!r} stands there twice")
        services[service] = addresses.split(",")
    return services


def _snapshot(service: str, addresses: Iterable[str], namespace: str) -> Snapshot:
    instances: dict[str, Instance] = {}
    for text in addresses:
        try:
            address = dialable(text)
        except ValueError as error:
            raise SettingsError(f"static registry: {service}={text!r}: {error}") from error
        instances[address] = Instance(
            id=address, service=service, address=address, namespace=namespace
        )
    return Snapshot(service, tuple(instances[id_] for id_ in sorted(instances)))

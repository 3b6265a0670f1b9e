"""Open a registry by its URL, as settings and the command line name it."""

from __future__ import annotations

import random
from collections.abc import Callable

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import SettingsError
from meshrpc.registry import dns_url, static
from meshrpc.registry.dns import DnsRegistry
from meshrpc.registry.file import FileRegistry
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registry import Registry
from meshrpc.registry.static import EXAMPLE, StaticRegistry

OUTSIDE = "dns://HOST:PORT or static:HOST:PORT,..."
"""The targets of channels to servers outside the mesh."""

SCHEMES = (
    "mesh:",
    "consul://HOST:PORT",
    "dns://SERVER:PORT",
    "file:///path.yaml",
    EXAMPLE,
    "memory:",
)


def create_registry(
    url: str,
    namespace: str,
    *,
    embedded: Callable[[], Registry],
    clock: Clock = SYSTEM_CLOCK,
    rng: random.Random | None = None,
) -> Registry:
    """Return the registry at `url`, not yet entered; `embedded` makes the one for `mesh:`.

    Raises:
        SettingsError: no such kind of registry, a malformed URL, or a part that is not installed.
    """
    url = url.strip()
    match url.partition(":")[0].strip().lower():
        case "mesh" if url in ("mesh:", "mesh"):
            return embedded()
        case "memory" if url in ("memory:", "memory"):
            return MemoryRegistry(namespace)
        case "static":
            return StaticRegistry(url, namespace)
        case "file":
            return FileRegistry(url, namespace, clock=clock)
        case "dns":
            return DnsRegistry(dns_url.Domain.parse(url), namespace, clock=clock, rng=rng)
        case "consul":
            return _consul(url, namespace)
        case _:
            raise SettingsError(
                f"registry {url!r}: no such registry; expected one of {', '.join(SCHEMES)}"
            )


def is_outside(target: str) -> bool:
    """Return whether a channel's target is a URL, for servers outside the mesh."""
    return target.startswith((dns_url.SCHEME, static.SCHEME))


def outside(
    target: str,
    namespace: str,
    *,
    clock: Clock = SYSTEM_CLOCK,
    rng: random.Random | None = None,
) -> DnsRegistry | StaticRegistry:
    """Return the registry of the one service that a channel's URL target names, as itself.

    Raises:
        SettingsError: the URL cannot be used.
    """
    if target.startswith(dns_url.SCHEME):
        return DnsRegistry(dns_url.Target.parse(target), namespace, clock=clock, rng=rng)
    addresses = target.removeprefix(static.SCHEME).split(",")
    return StaticRegistry({target: addresses}, namespace)


def _consul(url: str, namespace: str) -> Registry:
    try:
        from meshrpc.registry.consul import ConsulRegistry  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "consul":
            raise
        raise SettingsError(
            "a consul:// registry needs an optional part: pip install 'meshrpc[consul]'"
        ) from error
    return ConsulRegistry(url, namespace)

"""Open a registry by its URL, as settings and the command line name it."""

from __future__ import annotations

from collections.abc import Callable

from meshrpc.errors import SettingsError
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registry import Registry
from meshrpc.registry.static import EXAMPLE, StaticRegistry

SCHEMES = ("mesh:", "consul://HOST:PORT", EXAMPLE, "memory:")


def create_registry(url: str, namespace: str, *, embedded: Callable[[], Registry]) -> Registry:
    """Return the registry at `url`, not yet entered; `embedded` makes the one for `mesh:`.

    Raises:
        SettingsError: no such kind of registry, a malformed URL, or a part that is not installed.
    """
    scheme = url.partition(":")[0].strip().lower()
    match scheme:
        case "mesh" if url.strip() in ("mesh:", "mesh"):
            return embedded()
        case "memory" if url.strip() in ("memory:", "memory"):
            return MemoryRegistry(namespace)
        case "static":
            return StaticRegistry(url.strip(), namespace)
        case "consul":
            return _consul(url.strip(), namespace)
        case _:
            raise SettingsError(
                f"registry {url!r}: no such registry; expected one of {', '.join(SCHEMES)}"
            )


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

"""How commands open a registry, and look through all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from meshrpc.cli.reflection import did_you_mean
from meshrpc.control.client import reachable
from meshrpc.errors import ReadOnlyRegistry, RegistryError
from meshrpc.mesh import Mesh
from meshrpc.registry.instance import Instance
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.read_only import ReadOnly
from meshrpc.registry.registry import Registry
from meshrpc.settings import Settings

ASKED_AT_ONCE = 16
"""Questions that are open at the same time, to a registry or to instances."""

T = TypeVar("T")
Key = TypeVar("Key")


@asynccontextmanager
async def open_registry(settings: Settings) -> AsyncIterator[Registry]:
    """Open the registry of `settings`.

    Raises:
        ControlError: it is control's own, and control cannot be reached.
        RegistryError: it cannot be reached.
        SettingsError: its URL cannot be used.
    """
    control = (await reachable(settings.control),) if is_embedded(settings) else ()
    alone = replace(settings, control=control)
    async with Mesh.from_settings("meshrpc-registry", alone) as mesh:
        yield mesh.registry


def is_embedded(settings: Settings) -> bool:
    """Whether the registry is the control service's own."""
    url = settings.registry
    return isinstance(url, str) and url.partition(":")[0].strip().lower() == "mesh"


async def known_instances(
    opened: Registry, service: str, settings: Settings
) -> tuple[Instance, ...]:
    """Return the instances of `service`, which has some.

    Raises:
        RegistryError: no service has this name; says which there are, where that can be said.
    """
    found = await opened.instances(service)
    if found:
        return found
    none = f"no service named {service!r} in registry {name_of(settings)}"
    try:
        known = await opened.services()
    except RegistryError as error:
        raise RegistryError(none) from error  # not every registry can list
    if service not in known:
        raise RegistryError(none + did_you_mean(service, known))
    return found


def require_changeable(opened: Registry, what: str) -> None:
    """Return if the registry takes changes; `what` is to be done, for the error.

    Raises:
        ReadOnlyRegistry: it registers nobody.
        RegistryError: it is this process's own, and ends with it.
    """
    if isinstance(opened, ReadOnly):
        raise ReadOnlyRegistry(f"cannot {what}: {opened.because}")
    if isinstance(opened, MemoryRegistry):
        raise RegistryError(f"cannot {what}: a memory: registry is each process's own")


def name_of(settings: Settings) -> str:
    """Return the registry's URL for people: without its query, where a token may stand."""
    return str(settings.registry).partition("?")[0]


async def of_each(
    keys: Iterable[Key], ask: Callable[[Key], Awaitable[T]], *, at_once: int = ASKED_AT_ONCE
) -> dict[Key, T]:
    """Ask about each key, several at the same time; return the answers in the order of the keys.

    The first that fails fails it all, once none of the others runs any more.
    """
    gate = asyncio.Semaphore(at_once)

    async def asked(key: Key) -> T:
        async with gate:
            return await ask(key)

    keys = tuple(keys)
    tasks = [asyncio.ensure_future(asked(key)) for key in keys]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return dict(zip(keys, answers, strict=True))

"""A session: what a mesh is between entering and leaving, everything live.

The control stream, the registry, the policies, and the destinations that channels share.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import random
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import meshrpc
from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import Dialing
from meshrpc.client.view import view
from meshrpc.clock import Clock
from meshrpc.errors import SettingsError
from meshrpc.fleet_limits import FleetLimits
from meshrpc.last_known import LastKnown
from meshrpc.last_known.place import folder_of_control, folder_of_registry
from meshrpc.policies import Policies, PolicySource
from meshrpc.registry.embedded import EmbeddedRegistry
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registry import Registry, Watch
from meshrpc.registry.urls import create_registry, is_outside, outside
from meshrpc.settings import Settings
from meshrpc.subscription import Subscription
from meshrpc.v1 import control_pb2


class Member(Protocol):
    """The mesh, as its session needs it."""

    name: str
    id: str
    settings: Settings
    clock: Clock
    rng: random.Random
    policy_source: PolicySource | None
    fleet_limits: FleetLimits | None


class Session:
    """What a mesh is between entering and leaving: everything live."""

    def __init__(self, mesh: Member) -> None:
        self.loop = asyncio.get_running_loop()
        self.registry: Registry
        self.policies: Policies
        self._last_instances: LastKnown | None = None
        self._mesh = mesh
        self._exits = AsyncExitStack()
        self._destinations: dict[tuple[str, Dialing], _Shared] = {}
        self._releasing: set[asyncio.Task[None]] = set()
        self._last_known: dict[Path, LastKnown] = {}

    def __repr__(self) -> str:
        return f"destinations={len(self._destinations)}"

    async def open(self) -> None:
        """Connect in the background; nothing here waits for control or the registry."""
        try:
            await self._open()
        except BaseException:
            await self._exits.aclose()
            raise

    async def _open(self) -> None:
        settings = self._mesh.settings
        below = (settings.state_dir, settings.namespace)
        # Before what tells them anything, so as to be closed after it.
        of_control = await self._keep(folder_of_control(*below, settings.control))
        self._last_instances = await self._keep(
            folder_of_registry(*below, settings.registry, settings.control)
        )
        subscription = await self._subscribe(of_control)
        source = self._mesh.policy_source
        self.policies = Policies(subscription, of_control) if source is None else Policies(source)
        self.registry = await self._exits.enter_async_context(self._create_registry(subscription))

    async def close(self) -> None:
        """Close every destination, then the registry, then the control stream."""
        shared = tuple(self._destinations.values())
        self._destinations.clear()
        await asyncio.gather(*(each.close() for each in shared))
        await asyncio.gather(*self._releasing)
        await self._exits.aclose()

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """All that is called just now."""
        return tuple(shared.destination for shared in self._destinations.values())

    def destination(self, target: str, dialing: Dialing) -> Destination:
        """Return the destination for `target`, shared by all channels that dial alike."""
        key = (target, dialing)
        shared = self._destinations.get(key)
        if shared is None:
            shared = self._destinations[key] = self._open_destination(target, dialing)
        shared.channels += 1
        return shared.destination

    def forget(self, target: str, dialing: Dialing, destination: Destination) -> None:
        """Release a destination of this session in the background."""
        shared = self._destinations.get((target, dialing))
        if shared is None or shared.destination is not destination:
            return  # it belonged to the session before
        task = self.loop.create_task(self.release(target, dialing), context=contextvars.Context())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def release(self, target: str, dialing: Dialing) -> None:
        """Close a destination with the last channel that used it."""
        shared = self._destinations.get((target, dialing))
        if shared is None:
            return
        shared.channels -= 1
        if not shared.channels:
            del self._destinations[target, dialing]
            await shared.close()

    def _open_destination(self, target: str, dialing: Dialing) -> _Shared:
        mesh = self._mesh
        registry, own = self.registry, None
        if is_outside(target):
            registry = own = outside(
                target, mesh.settings.namespace, clock=mesh.clock, rng=mesh.rng
            )
            dialing = replace(dialing, authority=own.authority)
        destination = Destination(
            target,
            dialing,
            self.policies.effective(target),
            member=mesh.id,
            zone=mesh.settings.zone,
            clock=mesh.clock,
            rng=mesh.rng,
            last_known=self._last_instances if own is None else None,
        )
        policy = self.policies.follow(target, destination.configure)
        shared = _Shared(destination, policy, own)
        try:
            destination.open(registry)
        except BaseException:
            policy.close()
            raise
        return shared

    async def _keep(self, folder: Path | None) -> LastKnown | None:
        """Return what is kept in `folder`, one for all that is; None: nothing is."""
        if folder is None:
            return None
        if folder not in self._last_known:
            self._last_known[folder] = await self._exits.enter_async_context(LastKnown(folder))
        return self._last_known[folder]

    async def _subscribe(self, last_known: LastKnown | None) -> Subscription | None:
        mesh, settings = self._mesh, self._mesh.settings
        if not settings.control:
            return None
        hello = control_pb2.Hello(
            namespace=settings.namespace,
            service=mesh.name,
            instance=mesh.id,
            version=settings.version or "",
            pid=os.getpid(),
            library=meshrpc.__version__,
        )
        return await self._exits.enter_async_context(
            Subscription(
                settings.control,
                hello,
                clock=mesh.clock,
                rng=mesh.rng,
                keep_policy=None if last_known is None else last_known.keep_policy,
                view=lambda service: view(service, self.destinations),
                limits=mesh.fleet_limits,
            )
        )

    def _create_registry(self, subscription: Subscription | None) -> Registry:
        settings = self._mesh.settings
        if isinstance(settings.registry, MemoryRegistry):
            # One object may be shared by meshes of several namespaces.
            return settings.registry.in_namespace(settings.namespace)
        if not isinstance(settings.registry, str):
            return settings.registry

        def embedded() -> Registry:
            if subscription is None:
                raise SettingsError(
                    "registry 'mesh:' is the control service's own, and control is 'none': "
                    "name a control service, or another registry"
                )
            return EmbeddedRegistry(subscription, settings.namespace)

        return create_registry(
            settings.registry,
            settings.namespace,
            embedded=embedded,
            clock=self._mesh.clock,
            rng=self._mesh.rng,
        )


class _Shared:
    """A destination and how many channels use it."""

    __slots__ = ("_policy", "_registry", "channels", "destination")

    def __init__(self, destination: Destination, policy: Watch, registry: Registry | None) -> None:
        """`registry`: one that this destination has for itself."""
        self.destination = destination
        self.channels = 0
        self._policy = policy
        self._registry = registry

    async def close(self) -> None:
        """Close the destination and what only it needed."""
        self._policy.close()
        await self.destination.close(grace=0.0)
        if self._registry is not None:
            await self._registry.__aexit__(None, None, None)

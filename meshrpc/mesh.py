"""The mesh: one process's membership.

Its name and identity, the registry it looks instances up in, the control stream its policies
come from, and the destinations its channels share. A `Mesh` can be entered again, also in
another event loop; everything live is in the session between entering and leaving, and channels
made before or outlasting it bind to the next one.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import weakref
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

import meshrpc
from meshrpc.client.channel import Channel
from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import Dialing
from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import SettingsError
from meshrpc.policies import Policies, PolicySource
from meshrpc.policy.model import EffectivePolicy
from meshrpc.registry import static
from meshrpc.registry.embedded import EmbeddedRegistry
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registry import Registry, Watch
from meshrpc.registry.urls import create_registry
from meshrpc.settings import Settings, valid_name
from meshrpc.subscription import Subscription
from meshrpc.v1 import control_pb2


class Mesh:
    """This process as a member of a mesh: `async with Mesh("shop") as mesh:`.

    Args:
        name: what this process is called by the services it calls.
        settings: see `meshrpc.settings.Settings`; each can be given here or in the environment.

    Raises:
        SettingsError: a setting cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        **settings: Any,
    ) -> None:
        self.name = _checked("name", name)
        self.settings = Settings.resolve(**settings)
        self.id = f"{name}-{secrets.token_hex(4)}"
        """Tells this process from others of the same name; its instance's id if it serves."""
        self.clock = clock
        self.policy_source: PolicySource | None = None
        """Where policies come from, if not from control; to be set before the mesh is entered."""
        self.rng = rng or random.Random()
        self._session: _Session | None = None
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()

    def __repr__(self) -> str:
        state = "outside" if self._session is None else repr(self._session)
        return f"<Mesh {self.id} {state}>"

    @classmethod
    def from_settings(cls, name: str, settings: Settings, **options: Any) -> Mesh:
        """Return a mesh with settings resolved before."""
        mesh = cls(name, **options)
        mesh.settings = settings
        return mesh

    async def __aenter__(self) -> Self:
        if self._session is not None:
            raise RuntimeError(f"{self!r} is entered already")
        session = _Session(self)
        await session.open()
        self._session = session
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session, self._session = self._session, None
        for channel in tuple(self._channels):
            channel.unbind()
        if session is not None:
            await session.close()

    @property
    def registry(self) -> Registry:
        """The open registry.

        Raises:
            grpc.aio.UsageError: the mesh is not entered.
        """
        return self._entered().registry

    def on_policy(self, service: str, on_policy: Callable[[EffectivePolicy], None]) -> Watch:
        """Call `on_policy` with the effective policy of `service`, now and after each change."""
        return self._entered().policies.follow(service, on_policy)

    def channel(
        self,
        target: str,
        *,
        interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
        options: Sequence[tuple[str, Any]] | None = None,
        compression: grpc.Compression | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> Channel:
        """Return a channel to a service, for generated stubs; it may be made outside a loop.

        Args:
            target: a service name, or `static:HOST:PORT,...` for servers outside the mesh.
            interceptors: grpcio's client interceptors, run once per attempt.
            options: grpc channel arguments, over the mesh's own.
            compression: default compression of calls.
            credentials: TLS; none, and connections are in plain text.
        """
        dialing = Dialing(
            caller=self.name,
            options=tuple((key, value) for key, value in options or ()),
            compression=compression,
            credentials=credentials,
            interceptors=tuple(interceptors or ()),
        )
        if isinstance(target, str) and target.startswith(static.SCHEME):
            _outside(target)
        else:
            _checked("channel to", target, "; or static:HOST:PORT,... for servers outside the mesh")
        channel = Channel(target, dialing, self)
        self._channels.add(channel)
        return channel

    def destination(self, channel: Channel) -> Destination:
        """Return the live destination of a channel of this mesh."""
        return self._entered().destination(channel.target, channel.dialing)

    async def release(self, channel: Channel) -> None:
        """Close what only this channel used."""
        if self._session is not None:
            await self._session.release(channel.target, channel.dialing)

    def _entered(self) -> _Session:
        session = self._session
        if session is None:
            raise grpc.aio.UsageError(
                f"mesh {self.name!r} is not entered: calls go between `async with mesh:` (or "
                "inside a running service)"
            )
        if session.loop is not asyncio.get_running_loop():
            raise grpc.aio.UsageError(
                f"mesh {self.name!r} was entered in another event loop; enter it in this one"
            )
        return session


class _Session:
    """What a mesh is between entering and leaving: everything live."""

    def __init__(self, mesh: Mesh) -> None:
        self.loop = asyncio.get_running_loop()
        self.registry: Registry
        self.policies: Policies
        self._mesh = mesh
        self._exits = AsyncExitStack()
        self._destinations: dict[tuple[str, Dialing], _Shared] = {}

    def __repr__(self) -> str:
        return f"destinations={len(self._destinations)}"

    async def open(self) -> None:
        """Connect in the background; nothing here waits for control or the registry."""
        subscription = await self._subscribe()
        self.policies = Policies(self._mesh.policy_source or subscription)
        try:
            self.registry = await self._exits.enter_async_context(
                self._create_registry(subscription)
            )
        except BaseException:
            await self._exits.aclose()
            raise

    async def close(self) -> None:
        """Close every destination, then the registry, then the control stream."""
        shared = tuple(self._destinations.values())
        self._destinations.clear()
        for each in shared:
            each.policy.close()
        await asyncio.gather(*(each.destination.close(grace=0.0) for each in shared))
        await self._exits.aclose()

    def destination(self, target: str, dialing: Dialing) -> Destination:
        """Return the destination for `target`, shared by all channels that dial alike."""
        key = (target, dialing)
        shared = self._destinations.get(key)
        if shared is None:
            shared = self._destinations[key] = self._open_destination(target, dialing)
        shared.channels += 1
        return shared.destination

    async def release(self, target: str, dialing: Dialing) -> None:
        """Close a destination with the last channel that used it."""
        shared = self._destinations.get((target, dialing))
        if shared is None:
            return
        shared.channels -= 1
        if not shared.channels:
            del self._destinations[target, dialing]
            shared.policy.close()
            await shared.destination.close(grace=0.0)

    def _open_destination(self, target: str, dialing: Dialing) -> _Shared:
        mesh = self._mesh
        registry = self.registry
        if target.startswith(static.SCHEME):
            registry = _outside(target, mesh.settings.namespace)
        destination = Destination(
            target, dialing, self.policies.effective(target), clock=mesh.clock, rng=mesh.rng
        )
        shared = _Shared(destination, self.policies.follow(target, destination.configure))
        try:
            destination.open(registry)
        except BaseException:
            shared.policy.close()
            raise
        return shared

    async def _subscribe(self) -> Subscription | None:
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
            Subscription(settings.control, hello, clock=mesh.clock, rng=mesh.rng)
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

        return create_registry(settings.registry, settings.namespace, embedded=embedded)


class _Shared:
    """A destination and how many channels use it."""

    __slots__ = ("channels", "destination", "policy")

    def __init__(self, destination: Destination, policy: Watch) -> None:
        self.destination = destination
        self.policy = policy
        self.channels = 0


def _checked(what: str, name: str, otherwise: str = "") -> str:
    try:
        return valid_name(name)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{what} {name!r}: {error}{otherwise}") from error


def _outside(target: str, namespace: str = "default") -> static.StaticRegistry:
    """Return the registry of a `static:HOST:PORT,...` target; SettingsError if it is none."""
    addresses = target.removeprefix(static.SCHEME).split(",")
    return static.StaticRegistry({target: addresses}, namespace)

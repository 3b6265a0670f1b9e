"""The mesh: one process's membership.

Its name and identity, the registry it looks instances up in, the control stream its policies
come from, and the destinations its channels share. A `Mesh` can be entered again, also in
another event loop; everything live is in the session between entering and leaving, and channels
made before or outlasting it bind to the next one.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from meshrpc.client.channel import Channel
from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import Dialing
from meshrpc.client.intercepted import with_beneath
from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import SettingsError
from meshrpc.fleet_limits import FleetLimits
from meshrpc.policies import PolicySource
from meshrpc.policy.model import EffectivePolicy
from meshrpc.registry.instance import Instance
from meshrpc.registry.registration import Registration
from meshrpc.registry.registry import Registry, Watch
from meshrpc.registry.urls import OUTSIDE, is_outside, outside
from meshrpc.session import Session
from meshrpc.settings import Settings, dialable, valid_name


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
        self.fleet_limits: FleetLimits | None = None
        """The rate limits of which control gives this process a share; to be set before, too."""
        self.rng = rng or random.Random()
        self._session: Session | None = None
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
        session = Session(self)
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

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """What this process calls just now; nothing while the mesh is not entered."""
        return () if self._session is None else self._session.destinations

    def on_policy(self, service: str, on_policy: Callable[[EffectivePolicy], None]) -> Watch:
        """Call `on_policy` with the effective policy of `service`, now and after each change."""
        return self._entered().policies.follow(service, on_policy)

    def channel(
        self,
        target: str,
        *,
        interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
        options: Sequence[tuple[str | bytes, Any]] | None = None,
        compression: grpc.Compression | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> Channel:
        """Return a channel to a service, for generated stubs; it may be made outside a loop.

        Args:
            target: a service name; for servers outside the mesh `dns://HOST:PORT` or
                `static:HOST:PORT,HOST:PORT`.
            interceptors: grpcio's client interceptors, run once per attempt.
            options: grpc channel arguments, over the mesh's own.
            compression: default compression of calls.
            credentials: TLS; none, and connections are in plain text.
        """
        dialing = Dialing(
            caller=self.name,
            options=tuple(
                (key.decode() if isinstance(key, bytes) else key, value)
                for key, value in options or ()
            ),
            compression=compression,
            credentials=credentials,
            interceptors=with_beneath(interceptors or ()),
        )
        if isinstance(target, str) and is_outside(target):
            outside(target, self.settings.namespace)
        else:
            _checked("channel to", target, f"; or for servers outside the mesh {OUTSIDE}")
        channel = Channel(target, dialing, self)
        self._channels.add(channel)
        return channel

    @asynccontextmanager
    async def register(
        self,
        service: str,
        address: str,
        *,
        version: str | None = None,
        zone: str | None = None,
        weight: int = 1,
        labels: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Instance]:
        """Keep a server that is none of ours registered: `async with mesh.register(...):`.

        Its lease is renewed as long as the block lasts and this process lives; nobody asks the
        server itself whether it is well.

        Args:
            service: what callers call it.
            address: where they dial it, as `host:port`.
            version: as in a service's own settings, and so are the others.
            zone: where it stands.
            weight: its share of calls, relative to the others'.
            labels: whatever else tells it from the others.

        Raises:
            SettingsError: a value cannot be used.
            RegistryError: the registry registers nobody.
            grpc.aio.UsageError: the mesh is not entered.
        """
        registry = self._entered().registry
        record = Settings.resolve({}, version=version, zone=zone, weight=weight, labels=labels)
        try:
            address = dialable(address)
        except (ValueError, TypeError) as error:
            raise SettingsError(f"address {address!r}: {error}") from error
        instance = Instance(
            id=f"{_checked('service', service)}-{secrets.token_hex(4)}",
            service=service,
            address=address,
            namespace=self.settings.namespace,
            version=record.version,
            zone=record.zone,
            weight=record.weight,
            labels=record.labels,
        )
        registration = Registration(registry, instance, clock=self.clock, rng=self.rng)
        try:
            await registration.start()
            if registration.refusal is not None:
                raise registration.refusal
            yield instance
            await registration.drain()
        finally:
            await registration.stop()

    def destination(self, channel: Channel) -> Destination:
        """Return the live destination of a channel of this mesh."""
        return self._entered().destination(channel.target, channel.dialing)

    async def release(self, channel: Channel) -> None:
        """Close what only this channel used."""
        if self._session is not None:
            await self._session.release(channel.target, channel.dialing)

    def forget(self, target: str, dialing: Dialing, destination: Destination) -> None:
        """Close, in the background, what only a channel used that was dropped."""
        if self._session is not None:
            self._session.forget(target, dialing, destination)

    def _entered(self) -> Session:
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


def _checked(what: str, name: str, otherwise: str = "") -> str:
    try:
        return valid_name(name)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{what} {name!r}: {error}{otherwise}") from error

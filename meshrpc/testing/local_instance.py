"""One instance in a `LocalMesh`: a service that serves behind a proxy of its own.

While it does, the service has the test's clock, registry and policies instead of its own; when it
has left, it is as it was before, so that the next test can have it, in another event loop too.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from meshrpc.client.endpoint import READY
from meshrpc.clock import Clock
from meshrpc.mesh import Mesh
from meshrpc.registry.instance import Instance
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.server.service import Service
from meshrpc.server.serving import Serving
from meshrpc.settings import Settings
from meshrpc.testing.clock import VirtualClock
from meshrpc.testing.faults import Blackhole, Delay, Refuse, Script
from meshrpc.testing.policies import LocalPolicies
from meshrpc.testing.proxy import Proxy
from meshrpc.testing.registry_access import RegistryAccess

CONNECT_WITHIN = 10.0
"""Real seconds that `connected` waits: twice gRPC's longest pause between two tries."""
_LOOK_EVERY = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the instances of one `LocalMesh` share."""

    clock: Clock
    registry: MemoryRegistry
    policies: LocalPolicies
    seed: int
    meshes: Callable[[], Iterable[Mesh]]
    on_move: Callable[[], None]

    def member(self, mesh: Mesh, id_: str) -> None:
        """Let a mesh that is not entered take part, under the name `id_`."""
        mesh.id = id_
        mesh.clock = self.clock
        mesh.rng = random.Random(f"{self.seed} {id_}")
        mesh.policy_source = self.policies


class LocalInstance:
    """An instance: what can happen to it, and to the network in front of it."""

    def __init__(self, surroundings: Surroundings, service: Service, id_: str) -> None:
        """Used by `LocalMesh`."""
        self.id = id_
        """Its name in the registry and in `call.peer()`, such as `payment-1`."""
        self.service = service
        self.serving: Serving | None = None
        """What serves just now; None before and after."""
        self._surroundings = surroundings
        self._proxy: Proxy | None = None
        self._access = RegistryAccess(surroundings.registry)
        self._hurry = asyncio.Event()
        self._put_back: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.serving or 'gone'} {self._proxy or ''}>"

    @property
    def number(self) -> int:
        """The number in its id."""
        return int(self.id.rpartition("-")[2])

    @property
    def is_running(self) -> bool:
        """Whether it serves: it was started, and neither stopped nor killed."""
        return self.serving is not None

    @property
    def is_sound(self) -> bool:
        """Whether it serves, and no fault holds."""
        return self.serving is not None and self._proxy is not None and self._proxy.fault is None

    @property
    def is_finishing(self) -> bool:
        """Whether it leaves, and waits for nothing but gRPC, in real time."""
        if self.serving is None or self._proxy is None or isinstance(self._proxy.fault, Delay):
            return False
        return self.serving.is_stopping

    @property
    def address(self) -> str:
        """Where it is reached, as `host:port`: its proxy's address."""
        return self._live_proxy().address

    @property
    def record(self) -> Instance:
        """The instance as it stands in the registry."""
        if self.serving is None:
            raise RuntimeError(f"{self.id} does not run any more")
        return self.serving.registration.instance

    async def start(self) -> None:
        """Serve and register; used by `LocalMesh`."""
        put_back = _state_of(self.service)
        try:
            put_back()  # refused while the service is entered, and then there is nothing to undo
        except RuntimeError:
            raise RuntimeError(
                f"service {self.service.name!r} is served already; for one more instance, "
                "serve another meshrpc.Service of that name"
            ) from None
        self._put_back = put_back
        surroundings = self._surroundings
        proxy = self._proxy = Proxy(surroundings.clock, surroundings.on_move)
        try:
            self.service.settings = replace(
                self.service.settings,
                control=(),
                registry=self._access,
                namespace=surroundings.registry.namespace,
                listen=Settings.listen,
                advertise=proxy.address,
            )
            surroundings.member(self.service.mesh, self.id)
            self.serving = await self.service._enter(asyncio.Event(), self._hurry)  # noqa: SLF001
            proxy.lead_to(self.serving.address)
        except BaseException:
            await self._end()
            raise

    def fault(self, script: Script) -> None:
        """Let a fault, or a script of faults, happen to its connections from now on.

        It replaces the one before. Durations are the mesh's clock's.

        Raises:
            TypeError: this is no fault, and no script of faults.
            RuntimeError: it does not run any more.
        """
        if script is None:
            raise TypeError("None is no fault; heal() ends one")
        self._live_proxy().follow(script)

    def heal(self) -> None:
        """End every fault of the network. Callers connect again by gRPC's own, real, backoff."""
        self._live_proxy().follow(None)

    async def connected(self) -> None:
        """Return when all callers that know this instance are connected to it.

        Raises:
            TimeoutError: one is not after 10 real seconds.
        """
        try:
            async with asyncio.timeout(CONNECT_WITHIN):
                while not self._is_connected():  # noqa: ASYNC110 - of any number of channels
                    await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError:
            raise TimeoutError(
                f"not every caller is connected to {self!r} after {CONNECT_WITHIN:g} s"
            ) from None

    async def stop(self) -> None:
        """Leave in order: drain, deregister, finish. A virtual clock is moved by what that takes.

        Again, or after `kill`: does nothing.
        """
        if self.serving is None:
            return
        leaving: Awaitable[None] = self._leave()
        clock = self._surroundings.clock
        await (clock.run(leaving) if isinstance(clock, VirtualClock) else leaving)

    async def kill(self) -> None:
        """Vanish: connections are reset, the port is closed, calls end, the lease stays behind.

        Again, or after `stop`: does nothing.
        """
        if self.serving is None:
            return
        self._access.is_cut = True
        self._live_proxy().follow(Refuse())
        self._hurry.set()
        await self._leave()

    async def _leave(self) -> None:
        ending = asyncio.create_task(self._end_unheard(), context=contextvars.Context())
        try:
            await self.service._leave()  # noqa: SLF001
        finally:
            ending.cancel()
            await asyncio.wait([ending])
            await self._end()

    async def _end_unheard(self) -> None:
        """Reset connections that would outlast the server: a blackhole hides its goodbye."""
        proxy = self._live_proxy()
        while not (self.is_finishing and isinstance(proxy.fault, Blackhole)):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY)
        proxy.reset()

    async def _end(self) -> None:
        self.serving = None
        proxy, self._proxy = self._proxy, None
        put_back, self._put_back = self._put_back, None
        if put_back is not None:
            put_back()
        if proxy is not None:
            await proxy.close()

    def _live_proxy(self) -> Proxy:
        if self._proxy is None:
            raise RuntimeError(f"{self.id} does not run any more")
        return self._proxy

    def _is_connected(self) -> bool:
        return all(
            endpoint.state is READY
            for mesh in self._surroundings.meshes()
            for destination in mesh.destinations
            for endpoint in destination.endpoints
            if endpoint.instance.id == self.id
        )


def _state_of(service: Service) -> Callable[[], None]:
    """Return what gives a service back its settings, clock and identity."""
    mesh = service.mesh
    settings = service.settings
    id_, clock, rng, policy_source = mesh.id, mesh.clock, mesh.rng, mesh.policy_source

    def put_back() -> None:
        service.settings = settings
        mesh.id, mesh.clock, mesh.rng = id_, clock, rng
        mesh.policy_source = policy_source

    return put_back

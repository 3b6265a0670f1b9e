"""A whole mesh in one process: real gRPC on loopback, no control service, time that stands still.

Every instance is reached through a proxy of its own, where faults happen. Services are real
`meshrpc.Service`s, the test's own ones or scripted; the test calls them as the client `test`.
Registry, policies, leases, deadlines, retries, drain and rate limits are the real ones, on the
mesh's clock. What gRPC does by itself (connecting, keepalive) goes on in real time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from google.protobuf.descriptor import ServiceDescriptor

from meshrpc.client.channel import Channel
from meshrpc.clock import Clock
from meshrpc.mesh import Mesh
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.server.service import Service
from meshrpc.settings import Settings
from meshrpc.testing.clock import VirtualClock
from meshrpc.testing.local_instance import LocalInstance, Surroundings
from meshrpc.testing.policies import LocalPolicies
from meshrpc.testing.script_book import shown
from meshrpc.testing.scripted import ScriptedService
from meshrpc.testing.traffic import LocalTraffic

STANDSTILL = 1.0
"""Real seconds without any movement after which a mesh says that calls may wait for its clock."""

_LOOKS = 10

_LOG = logging.getLogger("meshrpc.testing")

Joined = TypeVar("Joined", bound=LocalInstance)


class LocalMesh:
    """A mesh for one test, entered once: `async with LocalMesh() as mesh:`.

    Args:
        clock: None for a virtual one; `meshrpc.clock.SYSTEM_CLOCK` for real time.
        seed: of everything that is left to chance: balancing, jitter, backoff.
        name: what the test is called by the services it calls.
    """

    def __init__(self, *, clock: Clock | None = None, seed: int = 0, name: str = "test") -> None:
        self._clock = VirtualClock() if clock is None else clock
        self._registry = MemoryRegistry(clock=self._clock)
        self._policies = LocalPolicies()
        self._instances: list[LocalInstance] = []
        self._numbers: dict[str, itertools.count[int]] = {}
        self._traffic = LocalTraffic(self._meshes, lambda: self._instances)
        self._surroundings = Surroundings(
            clock=self._clock,
            registry=self._registry,
            policies=self._policies,
            seed=seed,
            meshes=self._meshes,
            on_move=self._traffic.on_move,
        )
        settings = Settings.resolve({}, control="none", registry=self._registry)
        self._client = Mesh.from_settings(name, settings)
        self._surroundings.member(self._client, name)
        self._exits: AsyncExitStack | None = None
        self._was_entered = False

    def __repr__(self) -> str:
        running = ", ".join(each.id for each in self._instances if each.is_running)
        return f"<LocalMesh {running or 'empty'}>"

    @property
    def client(self) -> Mesh:
        """The test as a member of this mesh: for `register` and whatever else a `Mesh` can do."""
        return self._client

    @property
    def clock(self) -> VirtualClock:
        """The virtual clock of everything in this mesh.

        Raises:
            RuntimeError: the mesh was given a clock of another kind.
        """
        if not isinstance(self._clock, VirtualClock):
            raise RuntimeError("this mesh runs on a clock that cannot be moved")  # noqa: TRY004
        return self._clock

    async def __aenter__(self) -> Self:
        if self._was_entered:
            raise RuntimeError("a LocalMesh is entered once: make another one")
        if isinstance(self._clock, VirtualClock) and self._clock.traffic is not None:
            raise RuntimeError("this clock is another mesh's: make another one")
        self._was_entered = True
        async with AsyncExitStack() as exits:
            exits.enter_context(self._traffic.counting_threads())
            if isinstance(self._clock, VirtualClock):
                self._clock.traffic = self._traffic
                exits.callback(setattr, self._clock, "traffic", None)
                await exits.enter_async_context(self._noticing_standstill(self._clock))
            exits.push_async_callback(self._end_instances)
            await exits.enter_async_context(self._client)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        exits, self._exits = self._exits, None
        if exits is not None:
            await exits.aclose()

    def channel(self, target: str, **arguments: Any) -> Channel:
        """Return a channel to a service, as `meshrpc.Mesh.channel` does; its caller is the test."""
        return self._client.channel(target, **arguments)

    async def serve(self, service: Service) -> LocalInstance:
        """Serve a service of the test's own, until it is stopped or the mesh is left.

        Until then it has this mesh's clock, registry and policies, whatever its settings say, and
        an id such as `order-1`; afterwards it is as it was. It need not be made for tests.

        Raises:
            RuntimeError: the service is entered already, or this mesh is not.
            TypeError: this is no `meshrpc.Service`.
        """
        if not isinstance(service, Service):
            raise TypeError(f"serve takes a meshrpc.Service, not {shown(service)}")
        return await self._join(
            service.name, lambda id_: LocalInstance(self._surroundings, service, id_)
        )

    async def script(
        self, name: str, service: ServiceDescriptor, *, instances: int = 1, **settings: Any
    ) -> ScriptedService:
        """Serve `name` by instances whose answers the test writes.

        Args:
            name: what callers call the service.
            service: what it answers, as `payment_pb2.DESCRIPTOR.services_by_name["Payment"]`.
            instances: how many to start with; `add` starts more.
            settings: of each instance, such as version, zone, labels and weight.

        Raises:
            SettingsError: the name or a setting cannot be used.
            TypeError: `service` is no descriptor.
        """
        scripted = ScriptedService(name, service, self._join, self._surroundings)
        for _ in range(instances):
            await scripted.add(**settings)
        return scripted

    def policy(self, document: str | Mapping[str, Any]) -> tuple[str, ...]:
        """Apply policy: YAML or JSON text, or a mapping; it replaces what its service had.

        Returns:
            What is accepted and not carried out.

        Raises:
            PolicyError: the document cannot be used; everything stays as it was.
        """
        return self._policies.apply(document)

    async def _join(self, name: str, create: Callable[[str], Joined]) -> Joined:
        """Create an instance under the next id of its service, and let it serve."""
        if self._exits is None:
            raise RuntimeError("services are served between `async with mesh:`")
        number = next(self._numbers.setdefault(name, itertools.count(1)))
        instance = create(f"{name}-{number}")
        await instance.start()
        self._instances.append(instance)
        return instance

    @contextlib.asynccontextmanager
    async def _noticing_standstill(self, clock: VirtualClock) -> AsyncIterator[None]:
        """Warn while calls wait for a clock that nobody moves: the test would hang unexplained."""

        async def notice() -> None:
            seen: object = None
            looks = 0
            while True:
                before, seen = seen, (self._traffic.progress(), clock.now())
                stands = seen == before and clock.is_waited_for() and self._traffic.is_under_way()
                looks = looks + 1 if stands else 0
                if looks == _LOOKS:
                    _LOG.warning(
                        "calls to %s are under way and nothing moves: they may wait for the "
                        "virtual clock; await them with clock.run(...), or clock.advance(...) it",
                        ", ".join(self._traffic.called()) or "nobody any more",
                    )
                await asyncio.sleep(STANDSTILL / _LOOKS)

        noticing = asyncio.create_task(notice(), context=contextvars.Context())
        try:
            yield
        finally:
            noticing.cancel()
            await asyncio.wait([noticing])

    async def _end_instances(self) -> None:
        instances, self._instances = self._instances, []
        results = await asyncio.gather(
            *(instance.kill() for instance in instances), return_exceptions=True
        )
        self._numbers.clear()
        await asyncio.sleep(0)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _meshes(self) -> list[Mesh]:
        return [self._client, *(each.service.mesh for each in self._instances if each.is_running)]

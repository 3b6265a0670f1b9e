"""The client of the registry embedded in the control service (`mesh:`).

Leases are unary calls; watches travel on the process's control stream, whose acknowledgements
let `deregister` wait until every caller has let go of the instance. While the control service
is away, calls raise `RegistryError` and watches keep what they knew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, TypeVar

import grpc

from meshrpc.errors import RegistryError, StaleIncarnation
from meshrpc.registry.finding import Finding, Problem
from meshrpc.registry.instance import Instance
from meshrpc.registry.registry import LEASE, Snapshot, Watch
from meshrpc.v1 import registry_pb2, registry_pb2_grpc

CALL_WITHIN = 5.0
"""Seconds a call to the registry may take."""
ACKNOWLEDGE_WITHIN = 5.0
"""Seconds that `deregister` waits for callers to let go."""

_PROBLEMS = frozenset(Problem)
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

T = TypeVar("T")


class ControlStream(Protocol):
    """What this registry needs of a `meshrpc.subscription.Subscription`, which stands above it."""

    @property
    def channel(self) -> grpc.aio.Channel: ...

    @property
    def address(self) -> str: ...

    def unreachable(self, address: str, error: BaseException) -> str: ...

    def watch_instances(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch: ...


class EmbeddedRegistry:
    """The control service's registry, as `meshrpc.registry.registry.Registry` describes one.

    Args:
        subscription: the process's control stream; its owner opens and closes it.
        namespace: what `services`, `instances` and `watch` see.
        lease: seconds a record lives without being renewed.
    """

    acknowledges: ClassVar[bool] = True

    def __init__(
        self, subscription: ControlStream, namespace: str, *, lease: float = LEASE
    ) -> None:
        self._subscription = subscription
        self._namespace = namespace
        self._lease = lease

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def __repr__(self) -> str:
        return f"<EmbeddedRegistry mesh: at {self._subscription.address}>"

    async def register(self, instance: Instance) -> None:
        """Create or replace the instance's record and start its lease."""
        request = registry_pb2.RegisterRequest(
            instance=instance.to_wire(), lease_seconds=self._lease
        )
        try:
            await self._call(lambda stub: stub.Register(request, timeout=CALL_WITHIN))
        except _RefusedError as refused:
            if refused.code is grpc.StatusCode.FAILED_PRECONDITION:
                raise StaleIncarnation(str(refused)) from refused
            raise

    async def renew(self, instance: Instance) -> bool:
        """Extend the lease; False when this incarnation holds none."""
        request = registry_pb2.RenewRequest(
            namespace=instance.namespace,
            service=instance.service,
            id=instance.id,
            incarnation=instance.incarnation,
        )
        try:
            await self._call(lambda stub: stub.Renew(request, timeout=CALL_WITHIN))
        except _RefusedError as refused:
            if refused.code is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return True

    async def drain(self, instance: Instance) -> None:
        """Mark the instance as leaving."""
        request = registry_pb2.DrainRequest(
            namespace=instance.namespace, service=instance.service, id=instance.id
        )
        await self._call(lambda stub: stub.Drain(request, timeout=CALL_WITHIN))

    async def undrain(self, instance: Instance) -> None:
        """Take the mark back."""
        request = registry_pb2.UndrainRequest(
            namespace=instance.namespace, service=instance.service, id=instance.id
        )
        await self._call(lambda stub: stub.Undrain(request, timeout=CALL_WITHIN))

    async def deregister(self, instance: Instance) -> None:
        """Remove the record; return once every caller let go of it, or after 5 s."""
        request = registry_pb2.DeregisterRequest(
            namespace=instance.namespace,
            service=instance.service,
            id=instance.id,
            acknowledge_within_seconds=ACKNOWLEDGE_WITHIN,
        )
        timeout = ACKNOWLEDGE_WITHIN + CALL_WITHIN
        await self._call(lambda stub: stub.Deregister(request, timeout=timeout))

    async def services(self) -> tuple[str, ...]:
        """Return the names of all services with instances, sorted."""
        request = registry_pb2.ListServicesRequest(namespace=self._namespace)
        answer = await self._call(lambda stub: stub.ListServices(request, timeout=CALL_WITHIN))
        return tuple(answer.services)

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """Return the service's instances, draining ones included, ordered by id."""
        request = registry_pb2.ListInstancesRequest(namespace=self._namespace, service=service)
        answer = await self._call(lambda stub: stub.ListInstances(request, timeout=CALL_WITHIN))
        return tuple(map(Instance.from_wire, answer.instances))

    async def findings(self, service: str) -> tuple[Finding, ...]:
        """Return what control knows to be wrong with the service's records.

        A control service of an earlier release knows nothing of it.
        """
        request = registry_pb2.ListFindingsRequest(namespace=self._namespace, service=service)
        try:
            answer = await self._call(lambda stub: stub.ListFindings(request, timeout=CALL_WITHIN))
        except _RefusedError as refused:
            if refused.code is grpc.StatusCode.UNIMPLEMENTED:
                return ()
            raise
        return tuple(
            Finding(Problem(one.problem), service, one.id, one.detail)
            for one in answer.findings
            if one.problem in _PROBLEMS  # a later release may know more of them
        )

    def watch(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Call `on_snapshot` with the first snapshot and with each later one."""
        return self._subscription.watch_instances(service, on_snapshot)

    async def _call(self, method: Callable[[Any], Awaitable[T]]) -> T:
        address = self._subscription.address  # the stream may move while the call runs
        try:
            stub = registry_pb2_grpc.RegistryStub(self._subscription.channel)
            answer = await method(stub)
        except grpc.aio.AioRpcError as error:
            if error.code() in _AWAY:
                raise RegistryError(self._subscription.unreachable(address, error)) from error
            raise _RefusedError(address, error) from error
        except grpc.aio.UsageError as error:
            raise RegistryError(f"the connection to control at {address} is closed") from error
        if answer is None:  # what grpcio makes of bytes that are no such message
            raise RegistryError(f"what answers at {address} is no control service of ours")
        return answer


class _RefusedError(RegistryError):
    """The registry answered, and said no."""

    def __init__(self, address: str, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        super().__init__(
            f"the registry at {address} says {error.code().name}: {error.details() or 'no reason'}"
        )

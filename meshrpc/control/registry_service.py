"""The gRPC face of the embedded registry: leases over the lease table, expired in time.

The table decides; this module publishes what it changed, keeps the records on disk in step, and
makes a leaving instance wait until its callers have let go.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Final

import grpc

from meshrpc.clock import Clock
from meshrpc.control.control_service import DEFAULT_NAMESPACE
from meshrpc.control.delivery import Delivery
from meshrpc.control.health_checks import HealthChecks
from meshrpc.control.records import InstanceRecords
from meshrpc.control.refusals import details, name_problem
from meshrpc.errors import StaleIncarnation
from meshrpc.registry.finding import Finding, Problem
from meshrpc.registry.instance import Health, Instance
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.registry import LEASE
from meshrpc.settings import parse_address
from meshrpc.v1 import registry_pb2, registry_pb2_grpc

EXPIRE_EVERY: Final = 0.5
"""Seconds between looks at the leases, at most."""
ASLEEP_AFTER: Final = 3.0
"""Seconds without a look at the leases from which this process, and not they, counts as dead:
renewals that came meanwhile are still unread, so every lease starts anew."""
MAX_LEASE: Final = 3600.0
MAX_ACKNOWLEDGE_WITHIN: Final = 60.0
MAX_WEIGHT: Final = 10_000
MAX_RECORD: Final = 16 * 1024
"""Bytes of a record, mostly labels: a caller that connects is sent those of all instances."""

_log = logging.getLogger(__name__)


class RegistryService(registry_pb2_grpc.RegistryServicer):
    """Registrations, renewals and departures.

    Args:
        leases: the table; nothing else changes it.
        records: what of it survives a restart.
        delivery: hears of every change, and knows who has taken it.
        clock: monotonic time.
    """

    def __init__(
        self,
        leases: LeaseTable,
        records: InstanceRecords,
        delivery: Delivery,
        *,
        clock: Clock,
    ) -> None:
        self._leases = leases
        self._records = records
        self._delivery = delivery
        self._clock = clock
        self._looked = clock.now()
        self.checks = HealthChecks(leases, self._found, clock=clock)
        """Of the records made by hand. Whoever owns this service runs it too."""

    def __repr__(self) -> str:
        return f"<RegistryService {self._leases!r}>"

    async def Register(
        self, request: registry_pb2.RegisterRequest, context: Any
    ) -> registry_pb2.RegisterResponse:
        """Create or replace a record and start its lease."""
        wire = request.instance
        wire.namespace = wire.namespace or DEFAULT_NAMESPACE
        lease = request.lease_seconds or LEASE
        problem = _problem(wire, lease)
        if problem:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, details(problem))
        instance = Instance.from_wire(wire)
        try:
            is_changed = await self._register(instance, lease)
        except StaleIncarnation as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, details(str(error)))
        if is_changed:
            self._delivery.instances_changed(instance.namespace, instance.service)
        return registry_pb2.RegisterResponse()

    async def _register(self, instance: Instance, lease: float) -> bool:
        key = (instance.namespace, instance.service, instance.id)
        try:
            record = self._leases.as_registered(instance)
            if self._leases.get(*key) != record:
                # Before anybody hears of it: a restart must not know fewer than callers do.
                self._records.keep(record)
                await self._records.written()
            return self._leases.register(instance, self._clock.now(), lease)
        finally:
            # Meanwhile others may have changed it, or whoever asked may have gone.
            self._remember(*key)

    async def Renew(
        self, request: registry_pb2.RenewRequest, context: Any
    ) -> registry_pb2.RenewResponse:
        """Extend a lease."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        now = self._clock.now()
        if now - self._looked > ASLEEP_AFTER:
            self.look(now)  # first: this process has just woken up
        if not self._leases.renew(namespace, request.service, request.id, request.incarnation, now):
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                details(
                    f"no lease is held by incarnation {request.incarnation} of instance "
                    f"{request.id!r} of {request.service!r}; register again"
                ),
            )
        return registry_pb2.RenewResponse()

    async def Drain(
        self, request: registry_pb2.DrainRequest, _context: Any
    ) -> registry_pb2.DrainResponse:
        """Mark an instance as leaving."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        if self._leases.drain(namespace, request.service, request.id):
            self._changed(namespace, request.service, request.id)
        return registry_pb2.DrainResponse()

    async def Undrain(
        self, request: registry_pb2.UndrainRequest, _context: Any
    ) -> registry_pb2.UndrainResponse:
        """Take the mark back."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        if self._leases.undrain(namespace, request.service, request.id):
            self._changed(namespace, request.service, request.id)
        return registry_pb2.UndrainResponse()

    async def Deregister(
        self, request: registry_pb2.DeregisterRequest, context: Any
    ) -> registry_pb2.DeregisterResponse:
        """Remove a record, and wait until its callers have let go."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        if problem := _name_problem(namespace, request.service, request.id):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, details(problem))
        if self._leases.deregister(namespace, request.service, request.id):
            self._changed(namespace, request.service, request.id)
        within = request.acknowledge_within_seconds
        within = min(within, MAX_ACKNOWLEDGE_WITHIN) if within > 0 else 0.0
        acknowledged = await self._delivery.until_acknowledged(namespace, request.service, within)
        await self._records.written()  # who has left does not come back with a restart
        return registry_pb2.DeregisterResponse(acknowledged=acknowledged)

    async def ListServices(
        self, request: registry_pb2.ListServicesRequest, _context: Any
    ) -> registry_pb2.ListServicesResponse:
        """Return the services that have instances."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        return registry_pb2.ListServicesResponse(services=self._leases.services(namespace))

    async def ListInstances(
        self, request: registry_pb2.ListInstancesRequest, _context: Any
    ) -> registry_pb2.ListInstancesResponse:
        """Return the service's instances."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        snapshot = self._leases.snapshot(namespace, request.service)
        return registry_pb2.ListInstancesResponse(
            instances=[instance.to_wire() for instance in snapshot.instances]
        )

    async def ListFindings(
        self, request: registry_pb2.ListFindingsRequest, _context: Any
    ) -> registry_pb2.ListFindingsResponse:
        """Return which leases are about to run out, and who does not serve."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        found = list(self._leases.findings(namespace, request.service, self._clock.now()))
        for instance in self._leases.snapshot(namespace, request.service).instances:
            if instance.health is Health.NOT_SERVING:
                detail = "it says so itself"
                if instance.permanent:
                    reason = self.checks.reason(instance) or "it is asked again soon"
                    detail = f"it fails its health check at {instance.address}: {reason}"
                found.append(Finding(Problem.NOT_SERVING, request.service, instance.id, detail))
        return registry_pb2.ListFindingsResponse(
            findings=[
                registry_pb2.Finding(problem=one.problem, id=one.id, detail=one.detail)
                for one in found
            ]
        )

    def _found(self, instance: Instance, health: Health) -> None:
        namespace, service, id_ = instance.namespace, instance.service, instance.id
        if self._leases.set_health(namespace, service, id_, health):
            self._changed(namespace, service, id_)

    def _changed(self, namespace: str, service: str, id_: str) -> None:
        self._remember(namespace, service, id_)
        self._delivery.instances_changed(namespace, service)

    def _remember(self, namespace: str, service: str, id_: str) -> None:
        """Bring the disk in step with the table."""
        instance = self._leases.get(namespace, service, id_)
        if instance is None:
            self._records.forget(namespace, service, id_)
        else:
            self._records.keep(instance)

    async def run(self) -> None:
        """Expire leases as they run out, until cancelled."""
        while True:
            self.look(self._clock.now())
            due = self._leases.next_expiry()
            wait = EXPIRE_EVERY if due is None else min(EXPIRE_EVERY, due - self._clock.now())
            await self._clock.sleep(max(wait, 0.01))

    def look(self, now: float) -> None:
        """End what is over by `now`, leases and the recovery window, and publish that."""
        asleep, self._looked = now - self._looked, now
        if asleep > ASLEEP_AFTER:
            _log.warning("this process stood still for %.1f s: all leases start anew", asleep)
            self._leases.renew_all(now)
        if self._leases.recover(now):
            _log.info("whoever has not come back since this service started is gone now")
            self._delivery.all_instances_changed()
        if (due := self._leases.next_expiry()) is None or due > now:
            return
        gone = self._leases.expire(now)
        for instance in gone:
            _log.info("the lease of %s of %s ran out", instance.id, instance.service)
            self._remember(instance.namespace, instance.service, instance.id)
        for namespace, service in {(one.namespace, one.service) for one in gone}:
            self._delivery.instances_changed(namespace, service)


def _problem(wire: registry_pb2.Instance, lease: float) -> str:
    """Say what is wrong with a registration; empty when nothing is."""
    if problem := _name_problem(wire.namespace, wire.service, wire.id):
        return problem
    for name, value in (("version", wire.version), ("zone", wire.zone)):
        if problem := name_problem(name, value, is_optional=True):
            return problem
    try:
        _, port = parse_address(wire.address)
    except ValueError as error:
        return f"address {wire.address!r}: {error}"
    if port == 0:
        return f"address {wire.address!r}: nobody can dial port 0"
    if wire.weight > MAX_WEIGHT:
        return f"weight {wire.weight}: 1 to {MAX_WEIGHT}"
    if wire.ByteSize() > MAX_RECORD:
        return f"record of {wire.ByteSize()} bytes: {MAX_RECORD} at most; shorten its labels"
    if not (math.isfinite(lease) and 0 < lease <= MAX_LEASE):
        return f"lease_seconds {lease}: more than 0, at most {MAX_LEASE:.0f}"
    return ""


def _name_problem(namespace: str, service: str, id_: str) -> str:
    """Say what is wrong with the name of an instance; empty when nothing is."""
    names = (("id", id_), ("service", service), ("namespace", namespace))
    return next((bad for name, value in names if (bad := name_problem(name, value))), "")

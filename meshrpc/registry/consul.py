"""A registry in Consul: `consul://127.0.0.1:8500[/?OPTION=VALUE&...]`, through py-consul.

An instance is a service of the agent at that address, its lease a TTL check, and the agent itself
looks whether it answers. Watches are Consul's blocking queries, one for each service watched,
however many watch it. While Consul does not answer, watches keep what they last knew.

Consul cannot compare and set here: two processes that register one id in the same moment both
succeed. It acknowledges nothing: a caller learns of a removal a moment after `deregister`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar, Self

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import RegistryError, StaleIncarnation
from meshrpc.registry import consul_entry, consul_meta, consul_record, consul_url
from meshrpc.registry.consul_agent import Answer, ConsulAgent
from meshrpc.registry.consul_entry import FOREIGN_NAMESPACE
from meshrpc.registry.consul_watch import FollowedService
from meshrpc.registry.finding import Finding
from meshrpc.registry.following import Following
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import LEASE, Snapshot, Watch

LISTED_AT_ONCE = 16
"""Services looked into at the same time by `services`."""
SURELY_HELD = 0.5
"""A lease of which no more than this part has passed is renewed without looking first whether it
lives: Consul began to count when it was last renewed, and that was later than it was asked to."""

log = logging.getLogger(__name__)


class ConsulRegistry:
    """The services of one Consul agent's datacenter, in one namespace.

    `lease` and `check_every` are seconds: how long a record lives without being renewed, and how
    often the agent looks whether its instance answers.

    Raises:
        SettingsError: the URL cannot be used.
    """

    acknowledges: ClassVar[bool] = False

    def __init__(
        self,
        url: str,
        namespace: str = "default",
        *,
        lease: float = LEASE,
        check_every: float = consul_record.CHECK_EVERY,
        rng: random.Random | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.namespace = namespace
        self._url = consul_url.parse(url)
        self._agent = ConsulAgent(self._url)
        self._lease = lease
        self._check_every = check_every
        self._rng = rng or random.Random()
        self._clock = clock
        self._renewed: dict[str, float] = {}  # when it was last asked for, by id of the check
        self._following: Following[FollowedService] = Following()
        self._complained: dict[str, tuple[str, ...]] = {}
        self._is_open = False

    def __repr__(self) -> str:
        state = f"watching={len(self._following)}" if self._is_open else "closed"
        return f"<ConsulRegistry {self.address} {self.namespace} {state}>"

    @property
    def address(self) -> str:
        """Where the agent is, as `host:port`."""
        return self._url.address

    async def __aenter__(self) -> Self:
        self._agent.open()
        self._is_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        self._renewed.clear()
        await self._following.close()
        await self._agent.close()

    async def register(self, instance: Instance) -> None:
        """Create or replace the record and start its lease."""
        service = await self._own(instance)
        known = _read(service)
        if known is not None and known.incarnation == instance.incarnation:
            if known.state is State.DRAINING:
                instance = replace(instance, state=State.DRAINING)
        else:
            # Another agent may have a newer one; the agent's own datacenter is where it would be.
            answer = await self._agent.health(instance.service, dc=None)
            listing = consul_entry.read_all(answer.entries, instance.namespace)
            _refuse_older(instance, [each.instance for each in listing.entries])
            if known is not None:  # the catalog may not have it yet
                _refuse_older(instance, [known])
        await self._put(instance, known, is_new=service is None)

    async def renew(self, instance: Instance) -> bool:
        """Extend the lease; False when this incarnation holds none."""
        if instance.permanent:
            held = _read(await self._own(instance))
            return held is not None and held.incarnation == instance.incarnation
        check = consul_record.lease_id(instance)
        # Consul would let a lease that ran out pass again; it stays out.
        last = self._renewed.pop(check, None)
        asked_at = self._clock.now()
        is_sure = last is not None and asked_at - last <= self._lease * SURELY_HELD
        if is_sure or await self._lives(instance, check):
            asked_at = self._clock.now()
            is_held = await self._agent.pass_check(check)
            # Answered after its end, it may have been revived: this process, or Consul, stood still.
            if is_held and last is not None and is_sure:
                is_held = self._clock.now() - last < self._lease
            if is_held:
                self._renewed[check] = asked_at
                return True
        self._ask_anew()
        return False

    async def drain(self, instance: Instance) -> None:
        """Mark the instance as leaving. One that others registered is put into maintenance mode."""
        await self._mark(instance, State.DRAINING)

    async def undrain(self, instance: Instance) -> None:
        """Take the mark back, and end the maintenance mode of the instance, if it is in that."""
        await self._mark(instance, State.ACTIVE)

    async def deregister(self, instance: Instance) -> None:
        """Remove the record."""
        self._renewed.pop(consul_record.lease_id(instance), None)
        service = await self._own(instance)
        if service is None:
            await self._refuse_elsewhere(instance)
            return
        try:
            await self._agent.ask(self._agent.client.agent.service.deregister(service["ID"]))
        except RegistryError as error:
            if "unknown service" not in str(error).lower():  # it left in the same moment
                raise

    async def services(self) -> tuple[str, ...]:
        """Return the names of this namespace's services, sorted; Consul itself is not one.

        Those of which only stale or bad records are left count: somebody should look at them.
        """
        names = sorted({*await self._agent.service_names()} - {"consul"})
        gate = asyncio.Semaphore(LISTED_AT_ONCE)

        async def is_ours(name: str) -> bool:
            async with gate:
                answer = await self._agent.health(name, dc=self._url.dc, tag=self._url.tag)
            listing = consul_entry.read_all(answer.entries, self.namespace)
            return bool(listing.snapshot(name).instances or listing.findings(name))

        # Exceptions are waited for, so that none of the others is left running.
        ours = await asyncio.gather(*map(is_ours, names), return_exceptions=True)
        for result in ours:
            if isinstance(result, BaseException):
                raise result
        return tuple(name for name, is_one in zip(names, ours, strict=True) if is_one)

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """Return the service's instances whose leases live, ordered by id."""
        answer = await self._agent.health(service, dc=self._url.dc, tag=self._url.tag)
        return self._snapshot(service, answer).instances

    async def findings(self, service: str) -> tuple[Finding, ...]:
        """Return the records that cannot be used, wait to be removed, or fail a check."""
        answer = await self._agent.health(service, dc=self._url.dc, tag=self._url.tag)
        return consul_entry.read_all(answer.entries, self.namespace).findings(service)

    def watch(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Call `on_snapshot` when Consul answers, and with each change; at once when it has."""
        if not self._is_open:
            raise RegistryError(f"{self!r} is used outside its 'async with' block")
        followed = self._following.get(service) or self._following.begin(
            FollowedService(
                service,
                self._query,
                on_idle=self._following.end,
                rng=self._rng,
                clock=self._clock,
            )
        )
        return followed.watch(on_snapshot)

    def _ask_anew(self) -> None:
        """Ask at once what there is of each service watched, without an index.

        A Consul that does not know a lease it gave may have been restarted between two queries.
        It then counts from 1, and a query that waits for an older index has long to wait.
        """
        for followed in self._following:
            if followed.waits_for_change:
                self._following.begin(followed)

    async def _query(self, service: str, index: int | None) -> tuple[int, Snapshot, str | None]:
        answer = await self._agent.health(service, dc=self._url.dc, tag=self._url.tag, index=index)
        return answer.index, self._snapshot(service, answer), answer.old

    async def _own(self, instance: Instance) -> Any:
        """Return the agent's own record of the instance, as it is; None: it has none."""
        ours = consul_record.service_id(instance)
        theirs = instance.id if instance.namespace == FOREIGN_NAMESPACE else ours
        for service in await self._agent.services(*dict.fromkeys((ours, theirs))):
            if service.get("Service") == instance.service and (
                service.get("ID") == ours or not consul_meta.is_ours(service.get("Meta"))
            ):
                return service
        return None

    async def _put(self, instance: Instance, known: Instance | None, *, is_new: bool) -> None:
        """Register the instance, and start its lease."""
        ids = consul_record.check_ids(instance)
        wanted = consul_record.registration(
            instance, self._lease, tags=self._url.tags, check_every=self._check_every
        )
        asked_at = self._clock.now()
        keeps_checks = known is not None and consul_record.check_ids(known) == ids
        await self._agent.register(consul_record.without_checks(wanted) if keeps_checks else wanted)
        if instance.permanent:
            return
        check = consul_record.lease_id(instance)
        # Of a check that is registered again Consul keeps the status: a lease that ran out, too.
        if not is_new and not await self._agent.pass_check(check):
            await self._agent.register(wanted)
        self._renewed[check] = asked_at

    async def _lives(self, instance: Instance, check: str) -> bool:
        found = await self._agent.checks(consul_record.service_id(instance))
        return check in found and found[check].get("Status") != "critical"

    async def _mark(self, instance: Instance, state: State) -> None:
        service = await self._own(instance)
        if service is None:
            await self._refuse_elsewhere(instance)
            return
        is_ours = consul_meta.is_ours(service.get("Meta"))
        if is_ours and service["Meta"].get("state") != state.value:
            await self._agent.register(consul_record.marked(service, state))
        if state is State.ACTIVE or not is_ours:
            # What others registered may be more than is seen here, so it is not written anew.
            enable = "true" if state is State.DRAINING else "false"
            await self._agent.ask(
                self._agent.client.agent.service.maintenance(service["ID"], enable, "meshrpc drain")
            )

    async def _refuse_elsewhere(self, instance: Instance) -> None:
        """Raise for an instance that another agent has: only that one can change it."""
        answer = await self._agent.health(instance.service, dc=self._url.dc)
        entries = consul_entry.read_all(answer.entries, instance.namespace).entries
        nodes = {each.node for each in entries if each.instance.id == instance.id} - {""}
        if nodes and (own := await self._agent.node()) is not None and own not in nodes:
            raise RegistryError(
                f"instance {instance.id!r} of {instance.service!r} is registered with the Consul "
                f"agent of {', '.join(sorted(nodes))}, not with that of {own}: ask that one"
            )

    def _snapshot(self, service: str, answer: Answer) -> Snapshot:
        """Read the records of this namespace, and warn of those that can't be used once."""
        snapshot = consul_entry.read_all(answer.entries, self.namespace).snapshot(service)
        if snapshot.skipped and snapshot.skipped != self._complained.get(service):
            log.warning("%r in Consul: skipped %s", service, "; ".join(snapshot.skipped))
        self._complained[service] = snapshot.skipped
        if not snapshot.skipped:
            del self._complained[service]
        return snapshot


def _read(service: Any) -> Instance | None:
    """Read a record of the agent's own; None: there is none, or none that can be read."""
    try:
        return None if service is None else consul_entry.read_service(service)
    except ValueError:
        return None


def _refuse_older(instance: Instance, known: Iterable[Instance]) -> None:
    for each in known:
        if each.id == instance.id and each.incarnation > instance.incarnation:
            raise StaleIncarnation(
                f"instance {instance.id!r} of {instance.service!r}: incarnation "
                f"{instance.incarnation} comes after {each.incarnation}"
            )

"""A registry in Consul: `consul://127.0.0.1:8500[/?dc=DC&token=TOKEN]`, through py-consul.

An instance is a service of the agent at that address, its lease a TTL check. Watches are
Consul's blocking queries, one for each service watched, however many watch it. While Consul does
not answer, watches keep what they last knew.

Consul cannot compare and set here: two processes that register one id in the same moment both
succeed. It acknowledges nothing: a caller learns of a removal a moment after `deregister`.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import random
import urllib.parse
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import aiohttp
import consul
import consul.aio

from meshrpc.errors import RegistryError, SettingsError, StaleIncarnation
from meshrpc.registry import consul_record
from meshrpc.registry.consul_watch import FollowedService
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import LEASE, Snapshot, Watch

DEFAULT_PORT = 8500
ASK_WITHIN = 5.0
"""Seconds for one request that does not wait for a change."""
WAIT = 30
"""Seconds a blocking query waits for a change: below common idle timeouts of proxies, and the
longest that a process without a lease, which would tell, may miss that Consul started anew."""
WAIT_WITHIN = WAIT * 17 / 16 + ASK_WITHIN
"""Seconds until such a query is given up: Consul adds up to a sixteenth to what it is asked."""
CONNECTIONS = 4096
"""One for each watch and a few: too few would let watches starve the renewals."""
LISTED_AT_ONCE = 16
"""Services looked into at the same time by `services`."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class ConsulRegistry:
    """The services of one Consul agent's datacenter, in one namespace.

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
        rng: random.Random | None = None,
    ) -> None:
        self.namespace = namespace
        self._host, self._port, self._dc, self._token = _parse(url)
        self._lease = lease
        self._rng = rng or random.Random()
        self._consul: consul.aio.Consul | None = None
        self._followed: dict[str, tuple[FollowedService, asyncio.Task[None]]] = {}
        self._complained: dict[str, frozenset[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        state = "closed" if self._consul is None else f"watching={len(self._followed)}"
        return f"<ConsulRegistry {self.address} {self.namespace} {state}>"

    @property
    def address(self) -> str:
        """Where the agent is, as `host:port`."""
        return f"{self._host}:{self._port}"

    async def __aenter__(self) -> Self:
        # Here and not sooner: its HTTP session belongs to the running loop.
        with warnings.catch_warnings():
            # py-consul passes aiohttp arguments by their deprecated names.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._consul = consul.aio.Consul(
                self._host,
                self._port,
                dc=self._dc,
                # Loading the machine's certificates takes longer than all the rest.
                verify=None if os.environ.get("CONSUL_HTTP_SSL", "").lower() == "true" else False,
                connections_limit=CONNECTIONS,
            )
        if self._token is not None:
            self._consul.token = self._token  # py-consul lets CONSUL_HTTP_TOKEN win
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._followed.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        client, self._consul = self._consul, None
        if client is not None:
            await client.close()

    async def register(self, instance: Instance) -> None:
        """Create or replace the record and start its lease."""
        entries = await self._entries(instance.service, passing=False)
        for known in self._read(instance.service, entries, instance.namespace):
            if known.id == instance.id and known.incarnation > instance.incarnation:
                raise StaleIncarnation(
                    f"instance {instance.id!r} of {instance.service!r}: incarnation "
                    f"{instance.incarnation} comes after {known.incarnation}"
                )
        await self._put(instance)

    async def renew(self, instance: Instance) -> bool:
        """Extend the lease; False when this incarnation holds none."""
        # Consul would let a check that failed pass again; a lease that ran out stays out.
        check = consul_record.check_id(instance)
        if check not in await self._live_checks(instance):
            self._ask_anew()
            return False
        try:
            return bool(await self._ask(self._client().agent.check.ttl_pass(check)))
        except RegistryError as error:
            if isinstance(error.__cause__, consul.ConsulException) and check in str(error):
                return False  # it ran out, or was replaced, since it was looked at
            raise

    async def drain(self, instance: Instance) -> None:
        """Mark the instance as leaving."""
        if not await self._live_checks(instance):
            return
        service_id = consul_record.service_id(instance)
        expression = f"ID == {json.dumps(service_id)}"
        found = await self._ask(self._client().agent.services(filter_expr=expression)) or {}
        if service_id not in found:
            return
        try:
            known = consul_record.read_service(found[service_id])
        except ValueError as error:
            raise RegistryError(f"{service_id!r} in Consul cannot be read: {error}") from error
        if known.state is not State.DRAINING:
            await self._put(replace(known, state=State.DRAINING))

    async def deregister(self, instance: Instance) -> None:
        """Remove the record."""
        service_id = consul_record.service_id(instance)
        try:
            await self._ask(self._client().agent.service.deregister(service_id))
        except RegistryError as error:
            if not isinstance(error.__cause__, consul.ConsulException) or (
                "unknown service" not in str(error).lower()
            ):
                raise

    async def services(self) -> tuple[str, ...]:
        """Return the names of this namespace's services, sorted; Consul itself is not one."""
        answer = await self._ask(self._client().catalog.services())
        names = sorted(name for name in answer[1] or () if name != "consul")
        gate = asyncio.Semaphore(LISTED_AT_ONCE)

        async def is_ours(name: str) -> bool:
            async with gate:
                return bool(await self.instances(name))

        # Exceptions are waited for, so that none of the others is left running.
        ours = await asyncio.gather(*map(is_ours, names), return_exceptions=True)
        for result in ours:
            if isinstance(result, BaseException):
                raise result
        return tuple(name for name, is_one in zip(names, ours, strict=True) if is_one)

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """Return the service's instances whose checks pass, ordered by id."""
        return self._read(service, await self._entries(service, passing=True), self.namespace)

    def watch(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Call `on_snapshot` when Consul answers, and with each change; at once when it has."""
        self._client()
        if service not in self._followed:
            self._follow(
                FollowedService(service, self._query, on_idle=self._unfollow, rng=self._rng)
            )
        return self._followed[service][0].watch(on_snapshot)

    def _follow(self, followed: FollowedService) -> None:
        task = asyncio.create_task(followed.follow(), context=contextvars.Context())
        self._followed[followed.service] = followed, task
        self._tasks.add(task)  # longer than it is followed: until it has ended
        task.add_done_callback(self._tasks.discard)

    def _ask_anew(self) -> None:
        """Ask at once what there is of each service watched, without an index.

        A Consul that does not know a lease it gave may have been restarted between two queries.
        It then counts from 1, and a query that waits for an older index has long to wait.
        """
        for followed, task in tuple(self._followed.values()):
            task.cancel()
            self._follow(followed)

    def _unfollow(self, followed: FollowedService) -> None:
        if followed.service in self._followed and self._followed[followed.service][0] is followed:
            self._followed.pop(followed.service)[1].cancel()

    async def _query(self, service: str, index: int | None) -> tuple[int, tuple[Instance, ...]]:
        request = self._client().health.service(service, index=index, wait=f"{WAIT}s", passing=True)
        answer = await self._ask(request, ASK_WITHIN if index is None else WAIT_WITHIN)
        try:
            latest = int(answer[0])
        except ValueError as error:
            raise RegistryError(f"Consul at {self.address} sent no index: {error}") from error
        return latest, self._read(service, answer[1], self.namespace)

    def _client(self) -> consul.aio.Consul:
        if self._consul is None:
            raise RegistryError(f"{self!r} is used outside its 'async with' block")
        return self._consul

    async def _put(self, instance: Instance) -> None:
        wanted = consul_record.registration(instance, self._lease)
        await self._ask(self._client().agent.service.register(**wanted))

    async def _entries(self, service: str, *, passing: bool) -> Any:
        answer = await self._ask(self._client().health.service(service, passing=passing))
        return answer[1]

    async def _live_checks(self, instance: Instance) -> frozenset[str]:
        """Return the ids of the instance's checks, if this agent has it and its lease lives."""
        expression = f"ServiceID == {json.dumps(consul_record.service_id(instance))}"
        checks = await self._ask(self._client().agent.checks(filter_expr=expression)) or {}
        return frozenset(id_ for id_, check in checks.items() if check.get("Status") != "critical")

    def _read(self, service: str, entries: Any, namespace: str) -> tuple[Instance, ...]:
        """Read the entries of one namespace; those that can't be used are skipped."""
        instances: dict[str, Instance] = {}
        unusable = []
        if not isinstance(entries, list):
            raise RegistryError(f"Consul at {self.address} sent no list of {service!r}")
        for entry in entries:
            try:
                instance = consul_record.read(entry)
            except ValueError as error:
                unusable.append(str(error))
                continue
            known = instances.get(instance.id)
            # The same id at two agents: the process moved, the older record will run out.
            if instance.namespace == namespace and (
                known is None or known.incarnation <= instance.incarnation
            ):
                instances[instance.id] = instance
        self._complain(service, frozenset(unusable))
        return tuple(instances[id_] for id_ in sorted(instances))

    def _complain(self, service: str, unusable: frozenset[str]) -> None:
        """Warn of records that cannot be used, once until they are others."""
        if unusable != self._complained.pop(service, frozenset()) and unusable:
            log.warning("%r in Consul: skipped %s", service, "; ".join(sorted(unusable)))
        if unusable:
            self._complained[service] = unusable

    async def _ask(self, request: Awaitable[T], within: float = ASK_WITHIN) -> T:
        try:
            async with asyncio.timeout(within):
                return await request
        except consul.ConsulException as error:
            raise RegistryError(f"Consul at {self.address} refused: {error}") from error
        except TimeoutError as error:
            raise RegistryError(
                f"cannot reach Consul at {self.address}: no answer in {within:g} s"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise RegistryError(
                f"cannot reach Consul at {self.address}: {_cause(error)}; is it running?"
            ) from error


def _parse(url: str) -> tuple[str, int, str | None, str | None]:
    """Return host, port, datacenter and token. The token is never shown: errors leave it out."""
    shown = url.partition("?")[0]
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise SettingsError(f"registry {shown!r}: {error}") from error
    if not host or parts.path not in ("", "/") or "@" in parts.netloc:
        raise SettingsError(f"registry {shown!r}: expected consul://HOST:PORT[/?dc=DC&token=TOKEN]")
    options = dict(urllib.parse.parse_qsl(parts.query))
    dc, token = options.pop("dc", None), options.pop("token", None)
    if options:
        unknown = ", ".join(sorted(options))
        raise SettingsError(f"registry {shown!r}: unknown option {unknown}; there are dc and token")
    return f"[{host}]" if ":" in host else host, port, dc, token


def _cause(error: BaseException) -> str:
    """Say in few words why a connection failed."""
    system = getattr(error, "os_error", error)
    if isinstance(system, OSError) and system.errno is not None and system.errno > 0:
        return os.strerror(system.errno).lower()
    return str(error) or type(error).__name__

"""DNS as a registry: names looked up as long as somebody watches them, at the pace of their TTL.

As `registry=` every service is a name in a domain, in Kubernetes or at Consul's own DNS port; as
a channel's target it is one name, of a server outside the mesh. An instance's id is its address.
DNS knows nobody's health, can list no services, and registers nobody.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import RegistryError
from meshrpc.registry.dns_url import Domain, Question, Target
from meshrpc.registry.dns_watch import FollowedName, instances
from meshrpc.registry.finding import Finding, Problem
from meshrpc.registry.following import Following
from meshrpc.registry.instance import Instance
from meshrpc.registry.read_only import ReadOnly
from meshrpc.registry.registry import Snapshot, Watch
from meshrpc.registry.static import ToldWatch

if TYPE_CHECKING:
    from meshrpc.registry.dns_client import DnsClient
    from meshrpc.registry.dns_lookup import Found


class _Lookup(Protocol):
    async def run(self) -> Found: ...


MakeLookup = Callable[[Question], _Lookup]


class DnsRegistry(ReadOnly):
    """The services that DNS has names for.

    Args:
        asks: what is asked: a `Domain` for `registry=`, a `Target` for a channel.
        namespace: what the instances say they belong to; `{namespace}` in a domain.
        clock: the time between lookups.
        rng: their jitter.
        client: who carries questions to servers; by default to those that `asks` says.
        make_lookup: what looks one service up; by default with `client`.
    """

    because = "a dns: registry only looks names up and registers nobody"

    def __init__(
        self,
        asks: Domain | Target,
        namespace: str = "default",
        *,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        client: DnsClient | None = None,
        make_lookup: MakeLookup | None = None,
    ) -> None:
        self.namespace = namespace
        self.authority = asks.authority
        self._asks = asks
        self._clock = clock
        self._rng = rng or random.Random()
        self._client = client
        self._make_lookup = make_lookup or self._lookup
        self._following: Following[FollowedName] = Following()

    def __repr__(self) -> str:
        return f"<DnsRegistry {self._asks} {self.namespace} watching={len(self._following)}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End every watch, and wait for what they did in the background."""
        await self._following.close()

    async def services(self) -> tuple[str, ...]:
        """Return a channel's URL; raise `RegistryError` for a domain: DNS cannot list."""
        return self._asks.services()

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """Return what DNS has for the service now.

        Raises:
            RegistryError: it does not answer.
        """
        return (await self._snapshot(service)).instances

    async def findings(self, service: str) -> tuple[Finding, ...]:
        """Return the records that cannot be used."""
        skipped = (await self._snapshot(service)).skipped
        return tuple(Finding(Problem.BAD_RECORD, service, "", line) for line in skipped)

    def watch(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Call `on_snapshot` when DNS answers, and with each change; at once when it has.

        This needs a running loop, but not that the registry was entered. Leaving it waits for
        the end of the task that looks the name up for all watches.
        """
        question = self._asks.question(service, self.namespace)
        if question is None:
            on_snapshot(Snapshot(service, ()))
            return ToldWatch()
        followed = self._following.get(service) or self._following.begin(
            FollowedName(
                service,
                partial(self._look, service, self._make_lookup(question)),
                may_be_unknown=isinstance(self._asks, Domain),
                on_idle=self._following.end,
                rng=self._rng,
                clock=self._clock,
            )
        )
        return followed.watch(on_snapshot)

    async def _snapshot(self, service: str) -> Snapshot:
        question = self._asks.question(service, self.namespace)
        if question is None:
            return Snapshot(service, ())
        snapshot, _ = await self._look(service, self._make_lookup(question))
        return snapshot

    async def _look(self, service: str, lookup: _Lookup) -> tuple[Snapshot, float]:
        try:
            found = await lookup.run()
        except RegistryError:
            raise
        except Exception as error:  # whatever a library raises: the next time may be better
            raise RegistryError(
                f"{service!r} cannot be resolved: {type(error).__name__}: {error}"
            ) from error
        listed = instances(found.weights, service, self.namespace)
        return Snapshot(service, listed, skipped=found.skipped), found.ttl

    def _lookup(self, question: Question) -> _Lookup:
        # Here and not sooner: a process that asks no DNS need not load all that reads it.
        from meshrpc.registry.dns_client import DnsClient  # noqa: PLC0415
        from meshrpc.registry.dns_lookup import Lookup  # noqa: PLC0415

        if self._client is None:
            self._client = DnsClient(self._asks.server, clock=self._clock)
        return Lookup(question, self._client)

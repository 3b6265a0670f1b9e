"""The endpoints of a destination: one for each instance that it connects to, as long as that is there.

Which instances these are says the roster. One that is draining keeps the endpoint it has, and one
whose instance has gone is closed when the calls it has are over, or, unless it was draining, after a
while.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Iterator, Sequence

from meshrpc.client.endpoint import Dialing, Endpoint, Keeper
from meshrpc.client.roster import Roster
from meshrpc.policy import model
from meshrpc.registry.instance import Instance

CLOSE_GRACE = 30.0
"""Seconds that calls under way get to end when their instance vanishes from the registry. One that
was draining ends them itself, when its own grace is over, and says so."""

_log = logging.getLogger("meshrpc.client")


class Endpoints:
    """What one destination connects to."""

    def __init__(self, dialing: Dialing, balancer: model.Balancer) -> None:
        self.skipped: str | None = None
        """Why the registry's newest answer has an instance that is not among the endpoints."""
        self._dialing = dialing
        self._balancer = balancer
        self._by_id: dict[str, Endpoint] = {}
        self._retiring: dict[asyncio.Task[None], Endpoint] = {}

    def __repr__(self) -> str:
        return f"<Endpoints {len(self)} retiring={len(self._retiring)}>"

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._by_id.values())

    @property
    def retiring(self) -> tuple[Endpoint, ...]:
        """Those whose instance has gone, with calls that have not ended yet."""
        return tuple(self._retiring.values())

    def configure(self, policy: model.EffectivePolicy, now: float) -> None:
        """Follow another policy."""
        self._balancer = policy.balancer
        for endpoint in self:
            self._configure(endpoint)
            endpoint.warm_at = min(endpoint.warm_at, now + policy.slow_start.window)

    def take_in(
        self, instances: Sequence[Instance], roster: Roster, keeper: Keeper, now: float
    ) -> list[Endpoint]:
        """Connect to those of the instances that are on the roster; return the new endpoints."""
        self.skipped = None
        before, current = self._by_id, dict[str, Endpoint]()
        made = []
        for instance in instances:
            endpoint = before.get(instance.id)
            if instance.id in current:
                continue  # a record that stands there twice must not open a second connection
            if instance.id not in roster.connected and (endpoint is None or instance.takes_calls):
                continue
            if endpoint is None or not endpoint.holds(instance):
                endpoint = self._make(instance, keeper, now)
                if endpoint is None:
                    continue
                made.append(endpoint)
            elif instance.load != endpoint.instance.load:
                endpoint.capacity.hint(instance.load, now)
            endpoint.instance = instance
            current[instance.id] = endpoint
        for id_, endpoint in before.items():
            if current.get(id_) is not endpoint:
                keeper.outliers.remove(endpoint.health)
                self._retire(endpoint)
        self._by_id = current
        return made

    async def close(self, grace: float, on_gone: Callable[[], None]) -> None:
        """Close them all, with `grace` seconds for calls under way; `on_gone` is called before."""
        endpoints = [*self, *self.retiring]
        self._by_id = {}
        on_gone()
        retiring = tuple(self._retiring)
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        await asyncio.gather(*(endpoint.close(grace) for endpoint in endpoints))

    def _make(self, instance: Instance, keeper: Keeper, now: float) -> Endpoint | None:
        try:
            endpoint = Endpoint(instance, self._dialing, keeper, decay=self._balancer.decay)
        except Exception as error:  # noqa: BLE001 - one bad record must not cost the others
            _log.warning("instance %s of %s skipped: %s", instance.id, instance.service, error)
            self.skipped = f"instance {instance.id} was skipped: {error}"
            return None
        self._configure(endpoint)
        endpoint.capacity.hint(instance.load, now)
        keeper.outliers.add(endpoint.health)
        return endpoint

    def _configure(self, endpoint: Endpoint) -> None:
        endpoint.load.decay = self._balancer.decay
        kind = self._balancer.kind
        endpoint.reads_reports = kind is model.BalancerKind.WEIGHTED_ROUND_ROBIN

    def _retire(self, endpoint: Endpoint) -> None:
        grace = None if endpoint.is_leaving else CLOSE_GRACE
        task = asyncio.create_task(endpoint.close(grace), context=contextvars.Context())
        self._retiring[task] = endpoint
        task.add_done_callback(lambda _: self._retiring.pop(task))

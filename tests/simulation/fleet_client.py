"""A client of the fleet: a balancer over endpoints, each with what this client's calls have shown.

Of `meshrpc.client` it has what decides where a call goes while nothing fails: endpoints that are kept
when others come and go, the picker over them, and slow start.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from meshrpc.balancer import Balancer, Picker, create_balancer
from meshrpc.balancer.capacity import Capacity
from meshrpc.balancer.load import Load
from meshrpc.balancer.subsetting import first, rank
from meshrpc.policy import model
from meshrpc.resilience.slow_start import least_share, share
from tests.simulation.fleet_server import Server


class Endpoint:
    """A server as one client holds it."""

    __slots__ = ("capacity", "id", "load", "server", "warm_at", "weight")

    def __init__(self, server: Server, decay: float, warm_at: float) -> None:
        self.id = server.id
        self.server = server
        self.weight = 1
        self.warm_at = warm_at
        self.load = Load(decay)
        self.capacity = Capacity()


class Client:
    """One process that calls the service: its endpoints, and the balancer over them."""

    __slots__ = (
        "_endpoints",
        "_least_share",
        "_picker",
        "_policy",
        "_settled",
        "_settling",
        "_window",
        "balancer",
        "connected",
        "name",
        "pick",
        "rng",
        "zone",
    )

    def __init__(
        self,
        name: str,
        policy: model.Balancer,
        rng: random.Random,
        balancer: Balancer | None = None,
        zone: str | None = None,
    ) -> None:
        self.name = name
        self.zone = zone
        self.rng = rng
        self.balancer = balancer or create_balancer(policy, rng)
        self.connected = 0
        """Connections that it has made."""
        self._policy = policy
        self._settling: Balancer | None = None
        self._endpoints: dict[str, Endpoint] = {}

    def __repr__(self) -> str:
        return f"<Client {self.name} endpoints={len(self._endpoints)}>"

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The servers that it may call."""
        return tuple(self._endpoints.values())

    def connect(self, servers: Iterable[Server], now: float = 0.0, slow_start: float = 0.0) -> None:
        """Call these servers from now on; what is known of those that stay is kept.

        Those that are new come to their full share over `slow_start` seconds.
        """
        before = self._endpoints
        self._endpoints = {
            server.id: before.get(server.id) or self._dial(server, now + slow_start)
            for server in servers
        }
        settled = tuple(each for each in self.endpoints if each.warm_at <= now)
        self.choose(self.balancer.picker(self.endpoints))
        if settled and len(settled) < len(self._endpoints):
            count = len(self._endpoints)
            self._picker = self.pick
            # Another balancer: were two to take turns, neither would be even.
            balancer = self._settling or create_balancer(self._policy, self.rng)
            self._settling, self._settled = balancer, balancer.picker(settled).pick
            self._window = slow_start
            self._least_share = least_share(count, count, len(settled))
            self.pick = self._pick_settled

    def choose(self, picker: Picker[Endpoint]) -> None:
        """Let `picker` choose from now on."""
        self.pick = picker.pick

    def _pick_settled(self, now: float, key: str | None) -> Endpoint:
        # As `Choices` does it.
        endpoint = self._picker(now, key)
        if endpoint.warm_at > now and key is None:
            part = share(endpoint.warm_at, now, self._window)
            if self.rng.random() >= max(part, self._least_share):
                return self._settled(now, None)
        return endpoint

    def _dial(self, server: Server, warm_at: float) -> Endpoint:
        self.connected += 1
        return Endpoint(server, self._policy.decay, warm_at)


def subset(
    servers: Sequence[Server], size: int, name: str, zone: str | None = None
) -> tuple[Server, ...]:
    """Return whom a client of this name, in this zone, connects to, in the order given."""
    taken = {server.id for server in first(rank(servers, name), size, zone)}
    return tuple(server for server in servers if server.id in taken)

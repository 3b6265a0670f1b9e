"""A fleet: a thousand callers and up to a thousand servers under virtual time, and nothing that fails.

What chooses is the real thing: balancers, load statistics, subsets, zones, capacity. What carries it
out is lean, for a hundred thousand calls to take a second: a call is two events, its start and its
answer; there are no retries, ejections or broken connections (those are `client.py`'s). Nothing is
random but by the seed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from math import inf
from typing import NamedTuple

from meshrpc.balancer import Balancer
from meshrpc.policy import model
from meshrpc.resilience.outcome import Outcome
from tests.simulation.fleet_client import Client
from tests.simulation.fleet_server import Server

TRAVEL = 0.00025
"""Seconds that a message takes to the other process."""


class Answered(NamedTuple):
    """A call that is over."""

    start: float
    latency: float
    server: Server
    client: Client


class Fleet:
    """All clients and servers, and what happens next."""

    def __init__(self, seed: int, *, reports: bool = False, keeps: bool = True) -> None:
        """Begin at time 0.

        Args:
            seed: of all randomness.
            reports: whether answers bring what the servers say of their load.
            keeps: whether calls are remembered, in `calls`.
        """
        self.now = 0.0
        self.calls: list[Answered] = []
        self.servers: list[Server] = []
        self.clients: list[Client] = []
        self._seed = seed
        self._reports = reports
        self._keeps = keeps
        self._number = 0
        self._due: list[tuple] = []
        self._arrivals = self.rng("arrivals")

    def __repr__(self) -> str:
        return (
            f"<Fleet clients={len(self.clients)} servers={len(self.servers)} at {self.now:.3f} s>"
        )

    def rng(self, name: str) -> random.Random:
        """Return the stream of randomness that belongs to `name`."""
        return random.Random(f"{self._seed}/{name}")

    def add_servers(
        self,
        names: Iterable[str],
        service_time: float,
        slots: int = 1,
        zone: str | None = None,
    ) -> list[Server]:
        """Start servers; nobody calls them before they are told to."""
        added = [
            Server(name, self.rng(f"server {name}"), service_time, slots, zone, since=self.now)
            for name in names
        ]
        self.servers += added
        return added

    def add_clients(
        self,
        names: Iterable[str],
        policy: model.Balancer,
        *,
        balancer: Balancer | None = None,
        zone: str | None = None,
    ) -> list[Client]:
        """Start clients, which know no server yet; with `balancer`, that one makes all pickers."""
        added = [Client(name, policy, self.rng(f"client {name}"), balancer, zone) for name in names]
        self.clients += added
        return added

    def at(self, time: float, action: Callable[..., None], *args: object) -> None:
        """Do `action(*args)` at `time`."""
        self._number += 1
        heapq.heappush(self._due, (time, self._number, None, action, args))

    def run(
        self,
        rate: float,
        until: float,
        *,
        key: Callable[[], str] | None = None,
    ) -> None:
        """Let `rate` calls a second come until `until`, from any client (Poisson).

        Answers of calls that are then under way stay due: another run may follow.

        Args:
            rate: calls per second of all clients together; 0: those under way only end.
            until: when to stop.
            key: makes the key of each call.
        """
        rng, due, serve = self._arrivals, self._due, Server.serve
        clients = self.clients
        count = len(clients)
        random_, expovariate, push = rng.random, rng.expovariate, heapq.heappush
        arrival = self.now + expovariate(rate) if rate else inf
        while True:
            if due and due[0][0] <= arrival:
                if due[0][0] > until:
                    break
                self._happen(heapq.heappop(due))
                continue
            if arrival > until:
                break
            self.now = now = arrival
            arrival += expovariate(rate)
            client = clients[int(random_() * count)]
            endpoint = client.pick(now, None if key is None else key())
            endpoint.load.start(now)
            end = serve(endpoint.server, now + TRAVEL) + TRAVEL
            self._number += 1
            push(due, (end, self._number, endpoint, now, client))
        self.now = until

    def _happen(self, event: tuple) -> None:
        now, _, endpoint, what, args = event
        self.now = now
        if endpoint is None:
            what(*args)
            return
        started, client = what, args
        latency = now - started
        endpoint.server.answered += 1
        endpoint.load.finish(started)
        endpoint.load.learn(Outcome.SUCCESS, latency, now)
        if self._reports:
            endpoint.capacity.report(endpoint.server.report(now), now)
        if self._keeps:
            self.calls.append(Answered(started, latency, endpoint.server, client))

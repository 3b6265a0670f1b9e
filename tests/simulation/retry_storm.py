"""A retry storm: three layers of services, and the last one fails.

A caller calls `order`, that calls `payment`, that calls `ledger`, and every `ledger` answers
UNAVAILABLE. If each of the three callers tries three times, `ledger` gets 27 calls for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import grpc

from meshrpc.policy.model import EffectivePolicy, Outlier, Retry, RetryBudget, Throttle
from tests.simulation.client import OK, Client, Ended
from tests.simulation.engine import Simulation
from tests.simulation.server import Finish, Handler, Server, State, Work

SERVICE_TIME = 0.002
TIMEOUT = 2.0
FAILS, UNTIL = 10.0, 70.0
"""When the last service begins to fail, and when the run ends."""

ALL = EffectivePolicy("storm")
"""Every default."""
NO_THROTTLE = replace(ALL, throttle=Throttle(max_rejected=0.0))
NAIVE = replace(
    NO_THROTTLE,
    retry=Retry(attempts=3),
    retry_budget=RetryBudget(ratio=1000.0, min_per_second=1000.0),
    outlier=Outlier(consecutive_failures=1_000_000, success_rate_below=0.0),
)
"""Three attempts at every layer, and nothing that holds them back."""


@dataclass(frozen=True, slots=True)
class Storm:
    """One run: of each second, its beginning, the calls made and those that came to the last."""

    seconds: list[tuple[float, int, int]]

    @property
    def amplification(self) -> float:
        """Calls at the last service per call made, over all the time that it fails."""
        return _amplification(self.seconds)

    @property
    def worst_minute_start(self) -> float:
        """The same over the first ten seconds of it, when the most has been saved for retries."""
        return _amplification([each for each in self.seconds if each[0] < FAILS + 10.0])


def _amplification(seconds: Sequence[tuple[float, int, int]]) -> float:
    made = sum(made for at, made, _ in seconds if at >= FAILS)
    return sum(came for at, _, came in seconds if at >= FAILS) / made


def run(
    policy: EffectivePolicy, rate: float, *, seed: int, instances: int = 3, chain_stop: bool = True
) -> Storm:
    """Let `ledger` fail under `rate` calls a second of one caller.

    `chain_stop`: whether a handler whose own call failed asks its caller not to try again.
    """
    sim = Simulation(seed)
    ledger = _layer(sim, "ledger", instances, None)
    payment = _layer(sim, "payment", instances, (ledger, policy, chain_stop))
    order = _layer(sim, "order", instances, (payment, policy, chain_stop))
    caller = Client(sim, "caller", order, policy)
    made = [0]

    def call() -> None:
        made[0] += 1
        caller.call(TIMEOUT, lambda _: None)

    seconds: list[tuple[float, int, int]] = []
    before = [0, 0]

    def look() -> None:
        came = sum(server.arrived for server in ledger)
        seconds.append((sim.now - 1.0, made[0] - before[0], came - before[1]))
        before[:] = made[0], came

    sim.arrivals("calls", rate, UNTIL, call)
    for server in ledger:
        sim.at(FAILS, server.set_state, State.FAILING)
    for second in range(1, round(UNTIL) + 1):
        sim.at(second, look)
    sim.run(UNTIL)
    return Storm(seconds)


def _layer(
    sim: Simulation,
    name: str,
    instances: int,
    below: tuple[Sequence[Server], EffectivePolicy, bool] | None,
) -> list[Server]:
    servers = [Server(sim, f"{name}-{n}", SERVICE_TIME, slots=8) for n in range(instances)]
    if below is not None:
        callees, policy, chain_stop = below
        for server in servers:  # each process has a client, and a budget, of its own
            client = Client(sim, server.id, callees, policy)
            server.handler = _calling(sim, client, chain_stop=chain_stop)
    return servers


def _calling(sim: Simulation, client: Client, *, chain_stop: bool) -> Handler:
    """Return a handler that makes one call under its own deadline and passes its status on."""

    def handle(work: Work, finish: Finish) -> None:
        def ended(call: Ended) -> None:
            # What the SRE book has a server do: UNAVAILABLE from below is UNAVAILABLE above.
            code = OK if call.code is OK else grpc.StatusCode.UNAVAILABLE
            finish(code, chain_stop and call.blames)

        client.call(work.deadline - sim.now, ended)

    return handle

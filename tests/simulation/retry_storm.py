"""A retry storm: three layers of services, and the last one fails.

A caller calls `order`, that calls `payment`, that calls `ledger`, and every `ledger` answers
UNAVAILABLE. If each of the three callers tries three times, `ledger` gets 27 calls for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import grpc

from meshrpc.policy.model import EffectivePolicy, Outlier, Retry, RetryBudget, Throttle
from tests.simulation.chart import Bar, Chart, Panel, Shade, line
from tests.simulation.client import OK, Client, Ended
from tests.simulation.engine import Simulation
from tests.simulation.server import Finish, Handler, Server, State, Work

SERVICE_TIME = 0.002
TIMEOUT = 2.0
FAILS = 10.0
"""When the last service begins to fail."""

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
        failing = [(made, came) for at, made, came in self.seconds if at >= FAILS]
        return sum(came for _, came in failing) / sum(made for made, _ in failing)


def run(
    policy: EffectivePolicy,
    rate: float,
    *,
    seed: int,
    instances: int = 1,
    chain_stop: bool = True,
    until: float = 50.0,
) -> Storm:
    """Let `ledger` fail under `rate` calls a second of one caller.

    Args:
        policy: what all three callers go by.
        rate: calls per second.
        seed: of all randomness.
        instances: of each service.
        chain_stop: whether a handler whose own call failed asks its caller not to try again.
        until: when the run ends.
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

    sim.arrivals("calls", rate, until, call)
    for server in ledger:
        sim.at(FAILS, server.set_state, State.FAILING)
    for second in range(1, round(until) + 1):
        sim.at(second, look)
    sim.run(until)
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


def chart(seed: int = 1, rate: float = 20.0, until: float = 40.0) -> Chart:
    """Draw what comes to the last service as one means after the other is taken in."""
    runs = (
        (
            "3 attempts at each layer",
            "bare",
            run(NAIVE, rate, seed=seed, chain_stop=False, until=until),
        ),
        ("and a budget", "else", run(NO_THROTTLE, rate, seed=seed, chain_stop=False, until=until)),
        ("and chain-stop", "more", run(NO_THROTTLE, rate, seed=seed, until=until)),
        ("and a throttle: the defaults", "ours", run(ALL, rate, seed=seed, until=until)),
    )
    return Chart(
        "retry_storm",
        "Retries do not multiply along a chain",
        f"A caller, order, payment, ledger; ledger fails every call. {rate:.0f} calls/s, one process each.",
        (
            Panel(
                "Calls that come to ledger for each call made, once it fails",
                "attempts per call, mean over half a minute",
                bars=tuple(Bar(label, storm.amplification, look) for label, look, storm in runs),
            ),
            Panel(
                "The same by second, without the first",
                "time (s)",
                "calls/s at ledger",
                tuple(
                    line(label, [(at + 0.5, came) for at, _, came in storm.seconds], look)
                    for label, look, storm in runs[1:]
                ),
                shades=(Shade(FAILS, until),),
                shade_label="ledger fails",
                span=(0.0, until),
            ),
        ),
    )

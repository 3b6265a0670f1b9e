"""What it costs one control process to keep the leases of 10,000 instances.

A control service in a process of its own, and a few processes that play the instances: each instance
registers and then renews its lease every five seconds, by the clock and jitter of the library's own
`Registration`, over connections that some of them share. In between each process looks at how long
its renewals take. CPU is the control process's own, of one core, while it only keeps leases.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import random
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from meshrpc.control.server import ControlServer
from meshrpc.registry.instance import Instance
from meshrpc.registry.registry import LEASE, RENEW_EVERY
from meshrpc.v1 import registry_pb2, registry_pb2_grpc

SERVICES = 200
PATIENCE = 120.0
AT_A_TIME = 500
"""Registrations under way in each process at first."""


# The control service.


def serve(pipe: Any) -> None:
    """Be the control service; answer what it has cost whenever asked, until the pipe is closed."""

    async def main() -> None:
        async with ControlServer("127.0.0.1:0", "127.0.0.1:0") as control:
            pipe.send(control.address)
            with contextlib.suppress(EOFError):
                while True:
                    await asyncio.to_thread(pipe.recv)
                    pipe.send((time.monotonic(), time.process_time(), peak_memory()))

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


def peak_memory() -> float:
    """Return this process's peak in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# The instances.


class Instances:
    """Some of the instances, in one process."""

    def __init__(self, address: str, numbers: range, connections: int) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)  # or all were one connection
        self._channels = [
            grpc.aio.insecure_channel(address, options=options) for _ in range(connections)
        ]
        stubs = [registry_pb2_grpc.RegistryStub(channel) for channel in self._channels]
        self._instances = [(record(n), stubs[n % connections]) for n in numbers]
        self._keepers: list[asyncio.Task[None]] = []
        self._rng = random.Random(numbers.start)
        self._took: list[float] = []
        self.lost = 0

    async def register(self) -> None:
        """Register them all, as fast as it goes; each renews from then on."""
        waiting = iter(self._instances)

        async def work() -> None:
            for instance, stub in waiting:
                await register(stub, instance)
                self._keepers.append(asyncio.create_task(self._keep(instance, stub)))

        await asyncio.gather(*(work() for _ in range(AT_A_TIME)))

    async def _keep(self, instance: Instance, stub: Any) -> None:
        request = registry_pb2.RenewRequest(
            service=instance.service, id=instance.id, incarnation=instance.incarnation
        )
        due = time.monotonic() + RENEW_EVERY * self._rng.random()
        while True:
            await asyncio.sleep(due - time.monotonic())
            begun = time.monotonic()
            try:
                await stub.Renew(request, timeout=RENEW_EVERY)
            except grpc.aio.AioRpcError as error:
                self.lost += 1
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    await register(stub, instance)
            self._took.append(time.monotonic() - begun)
            due = begun + RENEW_EVERY * self._rng.uniform(0.9, 1.0)

    def took(self) -> list[float]:
        """Return how long the renewals since the last question took."""
        took, self._took = self._took, []
        return took

    async def close(self) -> None:
        """Stop renewing, and close the connections."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for channel in self._channels:
            await channel.close()


async def register(stub: Any, instance: Instance) -> None:
    """Register an instance."""
    request = registry_pb2.RegisterRequest(instance=instance.to_wire(), lease_seconds=LEASE)
    await stub.Register(request)


def record(number: int) -> Instance:
    """Return an instance's record."""
    return Instance(
        id=f"instance-{number:06d}",
        service=f"service-{number % SERVICES:03d}",
        address=f"127.0.0.1:{10_000 + number}",
        version="v1",
        zone=f"zone-{number % 3}",
        pid=number,
    )


def play(pipe: Any, address: str, numbers: range, connections: int) -> None:
    """Be some instances: each message is a step, answered when it is done."""

    async def main() -> None:
        instances = Instances(address, numbers, connections)
        await instances.register()
        pipe.send(len(numbers))
        with contextlib.suppress(EOFError):
            while True:
                await asyncio.to_thread(pipe.recv)
                pipe.send((instances.took(), instances.lost))
        await instances.close()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


@contextlib.contextmanager
def process(target: Any, *arguments: Any) -> Iterator[Any]:
    """Run a function in a process of its own; give the pipe to it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    running = context.Process(target=target, args=(there, *arguments), daemon=True)
    running.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        running.join(10)
        running.kill()


def answer(pipe: Any) -> Any:
    """Return what the process says."""
    if not pipe.poll(PATIENCE):
        raise SystemExit("error: a process does not answer; is the machine overloaded?")
    return pipe.recv()


# What is measured.


@dataclass(frozen=True, slots=True)
class Found:
    """The figures: seconds, MiB, and a fraction of one core."""

    registered_in: float
    renewals: int
    lost: int
    seconds: float
    cpu: float
    took: list[float]
    memory: float
    memory_before: float

    def figures(self) -> dict[str, float]:
        """Return what is shown, times of renewals in milliseconds."""
        took = sorted(self.took)
        return {
            "registered_in_seconds": round(self.registered_in, 1),
            "renewals_per_second": round(self.renewals / self.seconds, 1),
            "not_renewed": self.lost,
            "cpu_percent_of_a_core": round(100 * self.cpu, 1),
            "cpu_us_per_renewal": round(1e6 * self.cpu * self.seconds / self.renewals, 1),
            "renewal_ms_p50": round(1000 * statistics.median(took), 2),
            "renewal_ms_p99": round(1000 * took[int(len(took) * 0.99)], 2),
            "renewal_ms_worst": round(1000 * took[-1], 2),
            "control_mib": round(self.memory, 1),
            "control_mib_empty": round(self.memory_before, 1),
        }


def measure(given: argparse.Namespace) -> Found:
    """Start everything, let it run, and return what was found."""
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(process(serve))
        address = answer(control)
        control.send("cost")
        _, _, memory_before = answer(control)
        begun = time.monotonic()
        share = -(-given.instances // given.processes)
        shares = [
            range(first, min(first + share, given.instances))
            for first in range(0, given.instances, share)
        ]
        players = [
            stack.enter_context(process(play, address, each, given.connections // len(shares)))
            for each in shares
        ]
        for player in players:
            answer(player)
        registered_in = time.monotonic() - begun
        time.sleep(RENEW_EVERY)  # until all renew evenly: they begin spread
        before = cost(control, players)
        time.sleep(given.seconds)
        after = cost(control, players)
    seconds = after[0] - before[0]
    return Found(
        registered_in=registered_in,
        renewals=len(after[3]),
        lost=after[4] - before[4],
        seconds=seconds,
        cpu=(after[1] - before[1]) / seconds,
        took=after[3],
        memory=after[2],
        memory_before=memory_before,
    )


def cost(control: Any, players: list[Any]) -> tuple[float, float, float, list[float], int]:
    """Ask for what there is so far: control's time, CPU and memory, and renewals since last."""
    for pipe in (control, *players):
        pipe.send("cost")
    now, cpu, memory = answer(control)
    told = [answer(player) for player in players]
    took = [each for some, _ in told for each in some]
    return now, cpu, memory, took, sum(lost for _, lost in told)


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--instances", type=int, default=10_000, help="that renew (10000)")
    parser.add_argument("--processes", type=int, default=2, help="that play them (2)")
    parser.add_argument("--connections", type=int, default=1000, help="that they share (1000)")
    parser.add_argument("--seconds", type=float, default=20.0, help="that are measured (20)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser.parse_args()


def main() -> None:
    """Measure and show."""
    given = parse()
    about = {
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    figures = measure(given).figures()
    if given.output == "json":
        print(json.dumps({"machine": about, "instances": given.instances, **figures}, indent=2))
        return
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.items()))
    print(f"{given.instances} instances of {SERVICES} services, {given.connections} connections")
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):<26}{value:>12}")


if __name__ == "__main__":
    main()

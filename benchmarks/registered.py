"""What a change of one instance costs a caller when 10,000 are registered.

A control service in a process of its own, where they are registered, and one client here that
connects to its subset of them; all their addresses lead to one real listener. Then one instance
comes, changes or goes at a time. A digest is the longest stretch for which the client's event loop
did nothing else from then until it was done: what a call that comes meanwhile waits for. Its CPU
time stands beside it, which other programs disturb less.

The peer is the same client when it is sent all instances with each change, as by a registry that
knows no differences. Arms take turns, so that all see the same noise.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import platform
import random
import resource
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio

import meshrpc
from meshrpc.balancer.subsetting import first, rank
from meshrpc.client.destination import Destination
from meshrpc.control.client import ControlClient
from meshrpc.control.server import ControlServer
from meshrpc.policy.model import EffectivePolicy
from meshrpc.registry.instance import Instance
from meshrpc.registry.registry import Snapshot
from meshrpc.subscription import Subscription
from meshrpc.v1 import registry_pb2, registry_pb2_grpc

SERVICE = "many"
LEASE = 3600.0
AT_A_TIME = 200
PATIENCE = 60.0
APART = 0.15
"""Seconds between changes: what comes sooner, control would gather."""
DIFFERENCES, WITH_SUBSETS, WHOLE = "differences", "differences, two subsets", "all, the peer"
ARMS = (DIFFERENCES, WITH_SUBSETS, WHOLE)
SUBSETS = json.dumps(
    {
        "schema": "meshrpc.policy/v1",
        "service": SERVICE,
        "subsets": {"v1": {"version": "v1"}, "v2": {"version": "v2"}},
    }
)


# The control service.


def instance(number: int, address: str, name: str = "") -> Instance:
    """Return a record; nine in ten are of version v1."""
    return Instance(
        id=name or f"{SERVICE}-{number:06d}",
        service=SERVICE,
        address=address,
        version="v2" if number % 10 == 0 else "v1",
        zone=f"zone-{number % 3}",
        pid=1000 + number,
    )


async def register(address: str, records: Iterator[Instance]) -> None:
    """Register them all, with leases that outlast this."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)

        async def work() -> None:
            for each in records:
                await stub.Register(
                    registry_pb2.RegisterRequest(instance=each.to_wire(), lease_seconds=LEASE)
                )

        await asyncio.gather(*(work() for _ in range(AT_A_TIME)))


def serve(pipe: Any, instances: int) -> None:
    """Be the control service and the listener: say where, and stop when the pipe is closed."""

    async def main() -> None:
        listener = grpc.aio.server()
        port = listener.add_insecure_port("127.0.0.1:0")
        await listener.start()
        listening = f"127.0.0.1:{port}"
        async with ControlServer("127.0.0.1:0", "127.0.0.1:0") as control:
            await register(control.address, (instance(n, listening) for n in range(instances)))
            pipe.send((control.address, listening))
            with contextlib.suppress(EOFError):
                await asyncio.to_thread(pipe.recv)
        await listener.stop(None)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


@contextlib.contextmanager
def control(instances: int) -> Iterator[tuple[str, str]]:
    """Run the control service with so many registered; give its address and the listener's."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, instances), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(PATIENCE):
            raise SystemExit("error: the control service is not ready; is the machine overloaded?")
        yield here.recv()
    finally:
        here.close()
        process.join(10)
        process.kill()


# The client.


@dataclass(frozen=True, slots=True)
class Stretch:
    """What the event loop did between two waits: when, for how long, and its CPU time."""

    began: float
    wall: float
    cpu: float


class Stretches:
    """Every longer stretch of the running event loop, noted where it begins to wait."""

    _WORTH_NOTING = 0.0002

    def __init__(self) -> None:
        self._found: list[Stretch] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note them for a block."""
        selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]  # noqa: SLF001
        wait = selector.select
        began = [time.monotonic(), time.thread_time()]

        def select(timeout: float | None = None) -> Any:
            if timeout is not None and timeout <= 0:
                return wait(timeout)  # there is more to do: the stretch goes on
            now, cpu = time.monotonic(), time.thread_time()
            if now - began[0] > self._WORTH_NOTING:
                self._found.append(Stretch(began[0], now - began[0], cpu - began[1]))
            try:
                return wait(timeout)
            finally:
                began[:] = time.monotonic(), time.thread_time()

        selector.select = select
        try:
            yield
        finally:
            del selector.select

    def longest(self, since: float) -> Stretch:
        """Return the longest one that ended after `since`."""
        found = [each for each in self._found if each.began + each.wall > since]
        return max(found, key=lambda each: each.wall, default=Stretch(since, 0.0, 0.0))


@contextlib.contextmanager
def subscribing(arm: str) -> Iterator[None]:
    """Let subscriptions that are made in a block say that they take no differences, if so."""
    init = Subscription.__init__

    def unable(self: Subscription, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        self._hello.accepts_differences = False  # there is no such setting

    if arm == WHOLE:
        Subscription.__init__ = unable  # type: ignore[method-assign]
    try:
        yield
    finally:
        Subscription.__init__ = init  # type: ignore[method-assign]


class Client:
    """A mesh that calls the service, in one arm."""

    def __init__(self, arm: str, address: str, listening: str, stretches: Stretches) -> None:
        self.arm = arm
        self.digests: dict[str, list[Stretch]] = {}
        self.connections = 0
        self._address = address
        self._listening = listening
        self._stretches = stretches
        self._numbers = itertools.count(1)
        self._known: tuple[Instance, ...] = ()
        self._told = asyncio.Event()
        self._destination: Destination

    async def measure(self, rounds: int) -> None:
        """Join, let one instance after the other change, and leave."""
        with subscribing(self.arm):
            mesh = meshrpc.Mesh("caller", control=self._address, rng=random.Random(1))
            mesh.id = "caller-0"  # the same subset each time
            begun = time.monotonic()
            await mesh.__aenter__()
        try:
            channel = mesh.channel(SERVICE)
            self._destination = channel.bound()
            mesh.registry.watch(SERVICE, self._on_snapshot)  # told after the destination
            size = EffectivePolicy(SERVICE).subset_size
            async with asyncio.timeout(PATIENCE):
                while self._destination.ready_count < size or not self._has_policy():
                    await self._destination.changed()
            await asyncio.sleep(APART)
            self._note("the first answer: all of them", begun)
            self.connections = len(self._destination.endpoints)
            async with grpc.aio.insecure_channel(self._address) as registry:
                for _ in range(rounds):
                    await self._changes(registry_pb2_grpc.RegistryStub(registry), mesh.id)
        finally:
            await mesh.__aexit__(None, None, None)

    def _has_policy(self) -> bool:
        return self.arm != WITH_SUBSETS or len(self._destination.table.subsets) == 2

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        self._known = snapshot.instances
        self._told.set()

    async def _changes(self, stub: Any, seed: str) -> None:
        """One that this client connects to comes, changes and goes; so does one of the others."""
        for who in ("stranger", "member"):
            record = self._one(seed, is_member=who == "member")
            heavier = replace(record, weight=2)
            await self._change(f"a {who} comes", _register(stub, record), record)
            await self._change(f"a {who} changes", _register(stub, heavier), heavier)
            await self._change(f"a {who} goes", _deregister(stub, record), heavier, is_gone=True)

    def _one(self, seed: str, *, is_member: bool) -> Instance:
        """Return a record that is, or is not, of those that this client connects to."""
        size = EffectivePolicy(SERVICE).subset_size
        chosen = first(rank(self._known, seed), size)
        while True:
            one = instance(1, self._listening, f"{SERVICE}-x{next(self._numbers)}")
            # Whoever is not among these and it is not among all of them and it.
            if (one in first(rank((*chosen, one), seed), size)) is is_member:
                return one

    async def _change(
        self,
        name: str,
        change: Callable[[], Awaitable[Any]],
        record: Instance,
        *,
        is_gone: bool = False,
    ) -> None:
        begun = time.monotonic()
        await change()
        async with asyncio.timeout(PATIENCE):
            while self._has(record) is is_gone:
                self._told.clear()
                await self._told.wait()
        await asyncio.sleep(APART)
        self._note(name, begun)

    def _has(self, record: Instance) -> bool:
        # Ordered by id: to compare with each would be a part of the stretch.
        at = bisect.bisect_left(self._known, record.id, key=lambda each: each.id)
        return self._known[at : at + 1] == (record,)

    def _note(self, name: str, since: float) -> None:
        self.digests.setdefault(name, []).append(self._stretches.longest(since))


def _register(stub: Any, record: Instance) -> Callable[[], Awaitable[Any]]:
    request = registry_pb2.RegisterRequest(instance=record.to_wire(), lease_seconds=LEASE)
    return lambda: stub.Register(request)


def _deregister(stub: Any, record: Instance) -> Callable[[], Awaitable[Any]]:
    request = registry_pb2.DeregisterRequest(service=record.service, id=record.id)
    return lambda: stub.Deregister(request)


async def measure(given: argparse.Namespace, address: str, listening: str) -> list[Client]:
    """Return the arms, each with its digests."""
    stretches = Stretches()
    clients = [Client(arm, address, listening, stretches) for arm in ARMS]
    async with ControlClient([address], namespace="default") as client:
        with stretches.noted():
            for _ in range(given.turns):
                for each in clients:
                    if each.arm == WITH_SUBSETS:
                        await client.apply_policies([SUBSETS])
                    await each.measure(given.rounds)
                    if each.arm == WITH_SUBSETS:
                        await client.delete_policy(SERVICE)
    return clients


# What is shown.


def figures(digests: list[Stretch]) -> dict[str, float]:
    """Return the figures of one case, in milliseconds."""
    walls = sorted(each.wall * 1000 for each in digests)
    return {
        "median": statistics.median(walls),
        "worst": walls[-1],
        "cpu": statistics.median(each.cpu * 1000 for each in digests),
    }


def machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def show(given: argparse.Namespace, clients: list[Client], about: dict[str, Any]) -> None:
    cases = {each.arm: {n: figures(d) for n, d in each.digests.items()} for each in clients}
    connections = {each.arm: each.connections for each in clients}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if given.output == "json":
        found = {
            "machine": about,
            "instances": given.instances,
            "connections": connections,
            "peak_mib": peak,
            "unit": "ms",
            "cases": cases,
        }
        print(json.dumps(found, indent=2))
        return
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.items()))
    print(f"{given.instances} instances; milliseconds without another turn: median (worst, CPU)")
    print(f"{'':<30}" + "".join(f"{arm:>26}" for arm in cases))
    for name in next(iter(cases.values())):
        cells = (
            f"{c[name]['median']:.1f} ({c[name]['worst']:.1f}, {c[name]['cpu']:.1f})"
            for c in cases.values()
        )
        print(f"{name:<30}" + "".join(f"{cell:>26}" for cell in cells))
    print(f"{'connections':<30}" + "".join(f"{count:>26}" for count in connections.values()))
    print(f"peak memory of this process: {peak:.0f} MiB")


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--instances", type=int, default=10_000, help="registered (10000)")
    parser.add_argument("--turns", type=int, default=3, help="of all arms (3)")
    parser.add_argument("--rounds", type=int, default=3, help="through all changes in a turn (3)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args()
    if given.instances < EffectivePolicy(SERVICE).subset_size:
        parser.error(f"--instances: {EffectivePolicy(SERVICE).subset_size} or more")
    return given


def main() -> None:
    given = parse()
    logging.getLogger("meshrpc").addHandler(logging.NullHandler())
    about = machine()
    with control(given.instances) as (address, listening):
        clients = asyncio.run(measure(given, address, listening))
    show(given, clients, about)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None

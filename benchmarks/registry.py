"""What the embedded registry does with 10,000 instances: snapshots, changes to 200 watchers, memory.

A control service in a process of its own, on a database file. Another process registers all instances
and renews each lease every 5 s, as their owners would; a third is 200 watchers, each a raw `Subscribe`
stream on a connection of its own that answers every push. From here come the changes, one at a time,
and new watchers: real `Subscription`s that want every instance.

A change is timed from before its `Register` is sent until a watcher has read the push that has it; a
snapshot from opening the subscription until all its watches were told. Both while the leases are
renewed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from meshrpc.control.server import ControlServer
from meshrpc.registry.instance import Instance
from meshrpc.registry.registry import LEASE, RENEW_EVERY
from meshrpc.subscription import CHANNEL_OPTIONS, Subscription
from meshrpc.v1 import control_pb2, registry_pb2, registry_pb2_grpc

PATIENCE = 60.0
APART = 0.25
"""Seconds between changes. What comes within 0.1 s of the last push of a service is gathered for
0.1 s, so that with less than both between them a change would wait for the one before."""
WATCHED = 10
"""Services that each watcher watches; all watch the first one, whose instances change."""
AT_A_TIME = 200
CONNECTIONS = 20
"""Of the process that renews."""
TICK = 0.01
"""Seconds between its batches."""
UNDER_WAY = 500
"""Renewals that it lets wait at once: when control is slower than they come, they come slower."""
CHANGED = "change"

Options = tuple[tuple[str, Any], ...]
OWN_CONNECTION: Options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))


def service(number: int) -> str:
    return f"service-{number:03d}"


def instance(number: int, services: int) -> Instance:
    """Return a record as services have them."""
    return Instance(
        id=f"{service(number % services)}-{number:08x}-4c1f9a52",
        service=service(number % services),
        address=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:50051",
        version="v1",
        zone=f"zone-{number % 3}",
        labels={"team": "payments", "tier": "gold"},
        pid=1000 + number,
        incarnation=1,
    )


# The other processes: each says that it is ready, and works until its pipe is closed.


@contextlib.contextmanager
def running(work: Callable[..., Any], *given: Any) -> Iterator[tuple[Connection, int, Any]]:
    """Run `work` in a process; give its pipe, its pid and the first thing it says."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_main, args=(work, there, *given), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(PATIENCE):
            raise SystemExit(f"error: {work.__name__} is not ready; is the machine overloaded?")
        yield here, process.pid or 0, here.recv()
    finally:
        here.close()
        process.join(10)
        process.kill()


def _main(work: Callable[..., Any], pipe: Connection, *given: Any) -> None:
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        asyncio.run(work(pipe, *given))


async def heard(pipe: Connection) -> Any:
    return await asyncio.to_thread(pipe.recv)


async def serve(pipe: Connection, store: str) -> None:
    """Be the control service."""
    async with ControlServer("127.0.0.1:0", "127.0.0.1:0", store) as control:
        pipe.send(control.address)
        await heard(pipe)


async def own(pipe: Connection, address: str, instances: int, services: int) -> None:
    """Be the owners of all instances: register them, then renew their leases for ever."""
    channels = [
        grpc.aio.insecure_channel(address, options=OWN_CONNECTION) for _ in range(CONNECTIONS)
    ]
    registries = [registry_pb2_grpc.RegistryStub(channel) for channel in channels]
    records = [instance(number, services) for number in range(instances)]
    left = iter(records)

    async def register(stub: Any) -> None:
        for one in left:
            request = registry_pb2.RegisterRequest(
                instance=one.to_wire(), lease_seconds=max(LEASE, PATIENCE)
            )
            await stub.Register(request)

    await asyncio.gather(*(register(registries[n % CONNECTIONS]) for n in range(AT_A_TIME)))
    pipe.send("registered")
    await heard(pipe)
    renewals = itertools.cycle(
        registry_pb2.RenewRequest(
            namespace=one.namespace, service=one.service, id=one.id, incarnation=one.incarnation
        ).SerializeToString()
        for one in records
    )
    renew: list[Any] = [channel.unary_unary("/meshrpc.v1.Registry/Renew") for channel in channels]
    ending = asyncio.ensure_future(heard(pipe))
    done, begun = 0, time.monotonic()
    under_way: set[asyncio.Task[Any]] = set()

    async def call(request: bytes, number: int) -> None:
        await renew[number % CONNECTIONS](request, timeout=PATIENCE)

    while not ending.done():
        due = int((time.monotonic() - begun) * instances / RENEW_EVERY)
        due = min(due, done + UNDER_WAY - len(under_way))
        for number in range(done, due):
            task = asyncio.create_task(call(next(renewals), number))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        done = due
        await asyncio.sleep(TICK)
    pipe.send(done / (time.monotonic() - begun))
    await asyncio.gather(*under_way, return_exceptions=True)


async def watch(pipe: Connection, address: str, watchers: int, wanted: list[list[str]]) -> None:
    """Be the watchers, and say when each has read each change."""
    read: dict[str, list[float]] = {}
    first: list[float] = []
    all_have_it = asyncio.Event()

    async def follow(number: int) -> None:
        async with grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
            call: Any = channel.stream_stream("/meshrpc.v1.Control/Subscribe")()
            hello = control_pb2.Hello(
                service="caller", instance=f"caller-{number}", accepts_differences=True
            )
            await call.write(control_pb2.SubscribeRequest(hello=hello).SerializeToString())
            interest = control_pb2.Interest(instances=wanted[number % len(wanted)])
            await call.write(control_pb2.SubscribeRequest(interest=interest).SerializeToString())
            is_first = True
            async for message in call:
                now = time.monotonic()
                push = control_pb2.Push.FromString(message)
                answer = control_pb2.Acknowledgement(nonce=push.nonce)
                said = control_pb2.SubscribeRequest(acknowledgement=answer)
                await call.write(said.SerializeToString())
                if is_first:
                    is_first = False
                    first.append(now)
                    if len(first) == watchers:
                        all_have_it.set()
                    continue
                for each in push.instances:
                    for one in each.instances:
                        if CHANGED in one.labels:
                            read.setdefault(one.labels[CHANGED], []).append(now)

    pipe.send("here")
    await heard(pipe)
    begun = time.monotonic()
    following = [asyncio.create_task(follow(number)) for number in range(watchers)]
    await all_have_it.wait()
    pipe.send(max(first) - begun)
    await heard(pipe)
    pipe.send(read)
    for each in following:
        each.cancel()
    await asyncio.gather(*following, return_exceptions=True)


# What is measured.


class Usage:
    """The CPU time and the memory of a process."""

    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self._status = Path(f"/proc/{pid}/status")

    def cpu(self) -> float:
        """Return the seconds it has used, in user and system mode."""
        fields = self._stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, which: str = "VmRSS") -> float:
        """Return what it holds, in MiB."""
        line = next(one for one in self._status.read_text().splitlines() if one.startswith(which))
        return int(line.split()[1]) / 1024


async def snapshot(address: str, services: int, instances: int) -> float:
    """Return the seconds in which a new watcher is told of all instances."""
    told: dict[str, int] = {}
    complete = asyncio.Event()

    def on_snapshot(name: str, count: int) -> None:
        told[name] = count
        if len(told) == services and sum(told.values()) >= instances:
            complete.set()

    hello = control_pb2.Hello(service="newcomer", instance="newcomer-1")
    subscription = Subscription([address], hello, rng=random.Random(1))
    begun = time.monotonic()
    async with subscription, asyncio.timeout(PATIENCE):
        for number in range(services):
            subscription.watch_instances(
                service(number), lambda one: on_snapshot(one.service, len(one.instances))
            )
        await complete.wait()
        return time.monotonic() - begun


async def changes(address: str, count: int, services: int) -> dict[str, float]:
    """Change one instance after the other; return when each change began."""
    began = {}
    async with grpc.aio.insecure_channel(address) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        for number in range(count):
            one = instance(services * (number % 10), services).to_wire()
            one.labels[CHANGED] = str(number)
            request = registry_pb2.RegisterRequest(instance=one, lease_seconds=LEASE)
            began[str(number)] = time.monotonic()
            await stub.Register(request, timeout=PATIENCE)
            await asyncio.sleep(APART)
    return began


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return all figures of one run."""
    found: dict[str, Any] = {}
    instances, services, watchers = given.instances, given.services, given.watchers
    everything = [service(number) for number in range(services)]
    some = [
        [service(0), *(service((step * WATCHED + n) % services) for n in range(1, WATCHED))]
        for step in range(services // WATCHED or 1)
    ]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        store = given.store or f"sqlite:{Path(folder) / 'control.db'}"
        _, pid, address = stack.enter_context(running(serve, store))
        usage = Usage(pid)
        found["memory_empty"] = usage.memory()
        cpu, began = usage.cpu(), time.monotonic()
        owners, _, _ = stack.enter_context(running(own, address, instances, services))
        found["registering_cpu"] = usage.cpu() - cpu
        found["memory_registered"] = usage.memory()

        await snapshot(address, services, instances)  # from here on each record is serialised
        found["memory_watched"] = usage.memory()
        regulars, _, _ = stack.enter_context(running(watch, address, watchers, some))
        regulars.send("go")
        regulars.recv()
        await asyncio.sleep(1.0)
        found["memory_watchers"] = usage.memory()

        owners.send("renew")
        await asyncio.sleep(given.seconds / 2)  # until they have come to their pace
        cpu, began = usage.cpu(), time.monotonic()
        await asyncio.sleep(given.seconds)
        found["renewing_cpu"] = (usage.cpu() - cpu) / (time.monotonic() - began)

        found["snapshots"] = [
            await snapshot(address, services, instances) for _ in range(given.snapshots)
        ]
        cpu, began = usage.cpu(), time.monotonic()
        started = await changes(address, given.changes, services)
        await asyncio.sleep(1.0)
        found["changing_cpu"] = (usage.cpu() - cpu) / (time.monotonic() - began)
        regulars.send("report")
        read = regulars.recv()
        found["lost"] = sum(watchers - len(read.get(number, ())) for number in started)
        found["changes"] = sorted(
            at - start for number, start in started.items() for at in read.get(number, ())
        )
        owners.send("stop")
        found["renewals_per_second"] = owners.recv()
        found["memory_end"] = usage.memory()

        crowd, _, _ = stack.enter_context(running(watch, address, watchers, [everything]))
        cpu = usage.cpu()
        crowd.send("go")
        found["everything_to_all"] = crowd.recv()
        found["everything_to_all_cpu"] = usage.cpu() - cpu
        found["memory_peak"] = usage.memory("VmHWM")
        crowd.send("stop")
        crowd.recv()
    return found


# What is shown.


def figures(given: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of one run, in milliseconds, percent, MiB and KiB."""
    snapshots = sorted(found["snapshots"])
    took = found["changes"]
    grown = found["memory_watched"] - found["memory_empty"]
    crowd = found["memory_watchers"] - found["memory_watched"]
    return {
        "snapshot p50 (ms)": statistics.median(snapshots) * 1000,
        "snapshot worst (ms)": snapshots[-1] * 1000,
        "change p50 (ms)": took[len(took) // 2] * 1000,
        "change p99 (ms)": took[int(len(took) * 0.99)] * 1000,
        "change worst (ms)": took[-1] * 1000,
        "changes not told": found["lost"],
        "all to all watchers at once (ms)": found["everything_to_all"] * 1000,
        "  of control's CPU (ms)": found["everything_to_all_cpu"] * 1000,
        "registering, control's CPU (ms)": found["registering_cpu"] * 1000,
        "renewals a second": found["renewals_per_second"],
        "control's CPU, renewals (%)": found["renewing_cpu"] * 100,
        "control's CPU, and changes (%)": found["changing_cpu"] * 100,
        "memory, empty (MiB)": found["memory_empty"],
        "memory, registered (MiB)": found["memory_registered"],
        "memory, all watched (MiB)": found["memory_watched"],
        "memory, and all watchers (MiB)": found["memory_watchers"],
        "memory, after changes (MiB)": found["memory_end"],
        "memory, peak of all to all (MiB)": found["memory_peak"],
        "memory an instance (KiB)": grown * 1024 / given.instances,
        "memory a watcher (KiB)": crowd * 1024 / given.watchers,
    }


def show(given: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    about = {
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    shown = [figures(given, each) for each in runs]
    if given.output == "json":
        print(json.dumps({"machine": about, "options": vars(given), "runs": shown}, indent=2))
        return
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.items()))
    print(
        f"{given.instances} instances of {given.services} services, "
        f"{given.watchers} watchers: median of {len(runs)} runs (least to most)"
    )
    for name in shown[0]:
        values = sorted(each[name] for each in shown)
        middle = statistics.median(values)
        print(f"{name:<36}{middle:>10.1f}   ({values[0]:.1f} to {values[-1]:.1f})")


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--instances", type=int, default=10_000, help="registered (10000)")
    parser.add_argument("--services", type=int, default=200, help="that they serve (200)")
    parser.add_argument("--watchers", type=int, default=200, help="(200)")
    parser.add_argument("--changes", type=int, default=60, help="of one instance (60)")
    parser.add_argument("--snapshots", type=int, default=10, help="to new watchers (10)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of renewals alone (5)")
    parser.add_argument("--store", help="control's (sqlite: a file that is deleted at the end)")
    parser.add_argument("--runs", type=int, default=3, help="of everything (3)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args()
    if given.instances < 10 * given.services:
        parser.error("--instances: 10 of each service or more, of which some change")
    return given


def main() -> None:
    given = parse()

    async def runs() -> list[dict[str, Any]]:
        # In one event loop: grpc's own threads outlive the first, and complain of its end.
        return [await measure(given) for _ in range(given.runs)]

    show(given, asyncio.run(runs()))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None

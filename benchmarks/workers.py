"""What more workers of `meshrpc run` answer: `make bench-workers`.

Handlers of 2 ms of CPU, a closed loop through `Mesh.channel`, a real control service and registry. A
service runs once for each number of workers, all the time; a round is a run against each, and figures
are ratios within rounds. The caller stands on the same cores, so the machine gives less than a worker
more for each worker more: how much it can give follows from what a call costs both sides, and is
printed beside what was found.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

import meshrpc
from benchmarks.overhead import REQUEST, control_service
from benchmarks.spinning import Spinning
from benchmarks.stopwatch import machine
from services.payment.v1 import payment_pb2_grpc

ROOT = Path(__file__).parents[1]
CPU_MS = "SPINNING_MS"
PATIENCE = 60.0
AT_ONCE = 3
"""Calls under way for each worker: one is worked on, and the next are there when it is done."""
BREATH = 0.01
"""Seconds that whoever was refused waits."""
WARM_UP = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")

service = meshrpc.Service("payment")
"""What `meshrpc run` starts."""
payment_pb2_grpc.add_PaymentServiceServicer_to_server(
    Spinning(float(os.environ.get(CPU_MS, "2")) / 1000), service
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: calls a second, and shares of one core."""

    round: int
    workers: int
    throughput: float
    failed: int
    p50: float
    workers_cpu: float
    caller_cpu: float
    others_cpu: float
    """Of all other processes of the machine."""


class Fleet:
    """A service with so many workers, and a channel to it."""

    def __init__(self, workers: int, channel: Any, pids: Sequence[int]) -> None:
        self.workers = workers
        self._pids = pids
        self._charge = payment_pb2_grpc.PaymentServiceStub(channel).Charge

    async def run(self, number: int, seconds: float) -> Sample:
        """Keep every worker in calls for so long."""
        took: list[float] = []
        failed = 0

        async def caller() -> None:
            nonlocal failed
            while (start := time.perf_counter()) < end:
                try:
                    await self._charge(REQUEST, timeout=10.0)
                except grpc.aio.AioRpcError:
                    failed += 1
                    await asyncio.sleep(BREATH)
                else:
                    took.append(time.perf_counter() - start)

        before = self._cpu()
        begun = time.perf_counter()
        end = begun + seconds
        await asyncio.gather(*(caller() for _ in range(AT_ONCE * self.workers)))
        elapsed = time.perf_counter() - begun
        workers, own, everything = (
            (now - then) / elapsed for now, then in zip(self._cpu(), before, strict=True)
        )
        return Sample(
            round=number,
            workers=self.workers,
            throughput=len(took) / elapsed,
            failed=failed,
            p50=statistics.median(took) if took else math.inf,
            workers_cpu=workers,
            caller_cpu=own,
            others_cpu=max(0.0, everything - workers - own),
        )

    def _cpu(self) -> tuple[float, float, float]:
        """Return the CPU seconds of the workers, of this process and of the whole machine so far."""
        return sum(map(_cpu_of, self._pids)), time.process_time(), _cpu_of_all()


def _cpu_of(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / _TICKS


def _cpu_of_all() -> float:
    user, nice, system, _idle, _wait, irq, softirq = map(
        int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8]
    )
    return (user + nice + system + irq + softirq) / _TICKS


@asynccontextmanager
async def fleet(workers: int, control: str, cpu: float, folder: str) -> AsyncIterator[Fleet]:
    """Run a service for a block; in a namespace of its own, so that fleets do not see each other."""
    namespace = f"workers-{workers}"
    process = subprocess.Popen(  # noqa: ASYNC220 - starting it is all that is done
        (
            *(sys.executable, "-m", "meshrpc", "run", "benchmarks.workers:service"),
            *("--workers", str(workers), "--control", control, "--namespace", namespace),
        ),
        cwd=ROOT,
        env={**os.environ, CPU_MS: str(cpu * 1000), "MESHRPC_STATE_DIR": f"{folder}/{workers}"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with AsyncExitStack() as exits:
            mesh = await exits.enter_async_context(
                meshrpc.Mesh("load", control=control, namespace=namespace)
            )
            pids = await _registered(mesh, workers)
            channel = await exits.enter_async_context(mesh.channel("payment"))
            found = Fleet(workers, channel, pids)
            await found.run(0, WARM_UP)
            yield found
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait)


async def _registered(mesh: meshrpc.Mesh, workers: int) -> list[int]:
    """Return the workers' process ids, once all of them are there."""
    there: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    def look(snapshot: Any) -> None:
        if len(snapshot.instances) == workers and not there.done():
            there.set_result([instance.pid for instance in snapshot.instances])

    watch = mesh.registry.watch("payment", look)
    try:
        async with asyncio.timeout(PATIENCE):
            return await there
    except TimeoutError:
        raise SystemExit(
            f"error: {workers} workers did not start within {PATIENCE:g} s; try: "
            f"meshrpc run benchmarks.workers:service --workers {workers} --control none"
        ) from None
    finally:
        watch.close()


async def measure(given: argparse.Namespace, control: str) -> list[Sample]:
    """Return the samples of all rounds, in the order they were taken."""
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as exits:
            fleets = [
                await exits.enter_async_context(fleet(count, control, given.cpu / 1000, folder))
                for count in given.workers
            ]
            for number in range(given.rounds):
                turn = fleets if number % 2 == 0 else fleets[::-1]
                samples += [await each.run(number, given.seconds) for each in turn]
    return samples


# The account.


@dataclass(frozen=True, slots=True)
class Row:
    """What so many workers came to; `of_one` against one worker in the same round."""

    workers: int
    throughput: float
    of_one: float
    low: float
    high: float
    """The least and the most of all rounds."""
    possible: float
    """What the cores can give at most, in the same unit as `of_one`."""
    workers_cpu: float
    caller_cpu: float
    others_cpu: float
    p50: float
    failed: int
    """Calls of all rounds."""

    @property
    def as_far(self) -> float:
        """The part of what is possible that was reached."""
        return self.of_one / self.possible


def account(samples: Sequence[Sample], cores: int) -> list[Row]:
    """Return a row for each number of workers."""
    ones = {each.round: each for each in samples if each.workers == 1}
    rows = []
    for count in sorted({each.workers for each in samples}):
        own = [each for each in samples if each.workers == count]
        ratios = [each.throughput / ones[each.round].throughput for each in own]
        rows.append(
            Row(
                workers=count,
                throughput=statistics.median(each.throughput for each in own),
                of_one=statistics.median(ratios),
                low=min(ratios),
                high=max(ratios),
                possible=statistics.median(possible(each, ones[each.round], cores) for each in own),
                workers_cpu=statistics.median(each.workers_cpu for each in own),
                caller_cpu=statistics.median(each.caller_cpu for each in own),
                others_cpu=statistics.median(each.others_cpu for each in own),
                p50=statistics.median(each.p50 for each in own),
                failed=sum(each.failed for each in own),
            )
        )
    return rows


def possible(sample: Sample, one: Sample, cores: int) -> float:
    """Return how many times one worker's throughput these could reach.

    Each worker has one event loop, so at most a core; and all cores together have to pay what a call
    costs workers and caller, after what other processes took.
    """
    a_call = (one.workers_cpu + one.caller_cpu) / one.throughput
    return min(float(sample.workers), (cores - sample.others_cpu) / a_call / one.throughput)


def show(rows: Sequence[Row]) -> None:
    """Print the rows for people, in Markdown."""
    print(
        "| workers | calls/s | of one | possible | reached | p50 | workers' CPU | caller's | others' | failed |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for each in rows:
        print(
            f"| {each.workers} | {each.throughput:.0f} "
            f"| {each.of_one:.2f}x ({each.low:.2f}-{each.high:.2f}) | {each.possible:.2f}x "
            f"| {each.as_far:.0%} | {each.p50 * 1000:.1f} ms | {each.workers_cpu:.0%} "
            f"| {each.caller_cpu:.0%} | {each.others_cpu:.0%} | {each.failed} |"
        )


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workers", description="What more workers answer."
    )
    counts = sorted({1, 2, os.cpu_count() or 1})
    parser.add_argument(
        "--workers", type=int, nargs="+", default=counts, metavar="N", help=f"numbers ({counts})"
    )
    parser.add_argument("--cpu", type=float, default=2.0, metavar="MS", help="of a handler (2)")
    parser.add_argument("--rounds", type=int, default=7, help="through all of them (7)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one run (2)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args()
    if min(given.rounds, *given.workers) < 1 or min(given.cpu, given.seconds) <= 0:
        parser.error("numbers must be above 0")
    given.workers = sorted({1, *given.workers})
    return given


def main() -> None:
    given = parse()
    if not sys.platform.startswith("linux"):
        raise SystemExit("error: CPU of other processes is read from /proc, which only Linux has")
    about: dict[str, Any] = {**machine(), "grpcio": grpc.__version__}
    with control_service() as control:
        samples = asyncio.run(measure(given, control))
    rows = account(samples, os.cpu_count() or 1)
    if given.output == "json":
        found = [{**asdict(each), "reached": each.as_far} for each in rows]
        report = {"machine": about, "workers": found, "samples": [asdict(s) for s in samples]}
        print(json.dumps(report, indent=2))
        return
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items()))
    show(rows)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None

"""What the mesh adds to a call, beside bare `grpc.aio` on the same machine at the same time.

Unary calls of a small message, closed loop. Arm `bare` is grpcio as users run it: generated stubs on
`insecure_channel`, generated registration on `grpc.aio.server`, a deadline. Arm `mesh` is the same
handlers and stubs on `Service` and `Mesh.channel` with a real control service: embedded registry,
peak_ewma, retry policy, retry budget, a rate limit by caller, tracing through OpenTelemetry's API
without an SDK. Server and client are a process each. `client` and `server` are mesh on one side only.

A pair is a short run of each arm right after the other, in turns of who is first; figures are ratios
within a pair, so that what slows the machine slows both. Processes are renewed now and then, for some
start out slower than others. `--arms bare bare` shows what the noise alone looks like.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

import meshrpc
from services.payment.v1 import payment_pb2, payment_pb2_grpc

ARMS = ("bare", "mesh", "client", "server")
MESH_CLIENT = ("mesh", "client")
MESH_SERVER = ("mesh", "server")

TIMEOUT = 2.0
"""Seconds, the deadline of every call: by policy in the mesh, `timeout=` without."""
WARM_UP = 0.5
PATIENCE = 30.0
"""Seconds until a process that says nothing is given up."""

POLICY = f"""
schema: meshrpc.policy/v1
service: payment
timeout: {TIMEOUT:g}s
balancer: {{peak_ewma: {{decay: 10s}}}}
retry: {{attempts: 3, codes: [UNAVAILABLE], backoff: {{base: 25ms, max: 250ms}}}}
retry_budget: {{ratio: 10%, min_per_second: 1}}
rate_limits:
  - {{name: per-caller, key: [caller], rate: 1000000/s, burst: 1000000}}
"""
REQUEST = payment_pb2.ChargeRequest(
    idempotency_key="order-1a2b3c4d", order_id="order-1a2b3c4d", amount=1999, currency="EUR"
)
ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
"""What a bare client with several servers is given."""

SPAWN = multiprocessing.get_context("spawn")
Charge = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one arm. Times are in seconds, CPU is user and system of whole processes."""

    pair: int
    arm: str
    concurrency: int
    calls: int
    elapsed: float
    p50: float
    client_cpu: float
    server_cpu: float

    @property
    def throughput(self) -> float:
        return self.calls / self.elapsed

    @property
    def cpu(self) -> float:
        return (self.client_cpu + self.server_cpu) / self.calls


# The processes.


class Payments(payment_pb2_grpc.PaymentServiceServicer):
    """Answers at once: what is measured is the way to the handler and back."""

    _payment = payment_pb2.Payment(
        id="payment-1a2b3c4d",
        order_id=REQUEST.order_id,
        amount=REQUEST.amount,
        currency=REQUEST.currency,
        status=payment_pb2.Payment.STATUS_CHARGED,
        processed_by="v1",
    )

    async def Charge(self, request: payment_pb2.ChargeRequest, context: Any) -> payment_pb2.Payment:  # noqa: ARG002
        return self._payment


def serve(pipe: Any, arm: str, control: str) -> None:
    """Be a server: say the address, then the CPU time so far whenever asked."""

    async def main() -> None:
        async with AsyncExitStack() as exits:
            if arm in MESH_SERVER:
                service = meshrpc.Service("payment", version="v1", control=control)
                payment_pb2_grpc.add_PaymentServiceServicer_to_server(Payments(), service)
                await exits.enter_async_context(service)
                await landed(service.mesh)
                address = service.address
            else:
                server = grpc.aio.server()
                payment_pb2_grpc.add_PaymentServiceServicer_to_server(Payments(), server)
                address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
                await server.start()
                exits.push_async_callback(server.stop, None)
            pipe.send(address)
            while await asyncio.to_thread(asked, pipe) is not None:
                pipe.send(time.process_time())

    run(main())


def call(pipe: Any, arm: str, control: str, addresses: Sequence[str]) -> None:
    """Be a client: run what is asked for and say how it went."""

    async def main() -> None:
        async with AsyncExitStack() as exits:
            if arm in MESH_CLIENT:
                found = "mesh:" if arm in MESH_SERVER else f"static:payment={','.join(addresses)}"
                mesh = meshrpc.Mesh("bench", control=control, registry=found)
                await exits.enter_async_context(mesh)
                channel: grpc.aio.Channel = mesh.channel("payment")
                channel.get_state(try_to_connect=True)
                await landed(mesh)
                options: dict[str, Any] = {}
            else:
                target = addresses[0] if len(addresses) == 1 else f"ipv4:{','.join(addresses)}"
                channel = grpc.aio.insecure_channel(
                    target, (("grpc.service_config", ROUND_ROBIN),) if len(addresses) > 1 else ()
                )
                options = {"timeout": TIMEOUT}
            await exits.enter_async_context(channel)
            await channel.channel_ready()
            charge = payment_pb2_grpc.PaymentServiceStub(channel).Charge
            await load(charge, options, 16, WARM_UP)
            await load(charge, options, 1, WARM_UP)
            pipe.send("warm")
            while (question := await asyncio.to_thread(asked, pipe)) is not None:
                pipe.send(await load(charge, options, *question))

    run(main())


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a process until it is asked nothing more."""
    with contextlib.suppress(ConnectionError):  # the parent was interrupted
        asyncio.run(main)


async def landed(mesh: meshrpc.Mesh) -> None:
    """Return once the policy has come: before that, not everything is on."""
    has_come = asyncio.Event()

    def look(policy: Any) -> None:
        if policy.rate_limits:
            has_come.set()

    watch = mesh.on_policy("payment", look)
    async with asyncio.timeout(PATIENCE):
        await has_come.wait()
    watch.close()


async def load(
    charge: Charge, options: dict[str, Any], concurrency: int, seconds: float
) -> dict[str, Any]:
    """Keep `concurrency` calls under way for `seconds`."""
    took: list[float] = []
    now = time.perf_counter

    async def caller() -> None:
        while (start := now()) < end:
            await charge(REQUEST, **options)
            took.append(now() - start)

    cpu, begun = time.process_time(), now()
    end = begun + seconds
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return {
        "calls": len(took),
        "elapsed": now() - begun,
        "client_cpu": time.process_time() - cpu,
        "p50": statistics.median(took),
    }


def asked(pipe: Any) -> Any:
    """Return the next question; None when there will be none."""
    try:
        return pipe.recv()
    except EOFError:
        return None


# The measurement.


class Worker:
    """A process, and the pipe to ask it questions."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
        # Ctrl-C is for the parent, also while a child is still importing.
        on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._process.start()
        signal.signal(signal.SIGINT, on_interrupt)
        theirs.close()

    def answer(self) -> Any:
        if not self._pipe.poll(PATIENCE):
            raise SystemExit(f"error: no answer from a process within {PATIENCE:g} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit("error: a process died; what it said is above") from None

    def ask(self, question: Any) -> Any:
        self._pipe.send(question)
        return self.answer()

    def close(self) -> None:
        """Let it leave by itself, so that no record of it stays in the registry."""
        self._pipe.close()
        self._process.join(PATIENCE)
        self._process.terminate()
        self._process.join()


class Arm:
    """One arm's processes."""

    def __init__(self, name: str, control: str, instances: int, exits: ExitStack) -> None:
        self.name = name
        self._servers = [Worker(serve, name, control) for _ in range(instances)]
        for server in self._servers:
            exits.callback(server.close)
        addresses = [server.answer() for server in self._servers]
        self._client = Worker(call, name, control, addresses)
        exits.callback(self._client.close)

    def wait(self) -> None:
        self._client.answer()

    def run(self, pair: int, concurrency: int, seconds: float) -> Sample:
        before = self._server_cpu()
        result = self._client.ask((concurrency, seconds))
        server_cpu = self._server_cpu() - before
        return Sample(
            pair=pair, arm=self.name, concurrency=concurrency, server_cpu=server_cpu, **result
        )

    def _server_cpu(self) -> float:
        return sum(server.ask("cpu") for server in self._servers)


@contextlib.contextmanager
def control_service() -> Iterator[str]:
    """Run `meshrpc control` with the policy applied; give its address."""
    command = (sys.executable, "-m", "meshrpc")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as exits:
        policy = Path(folder) / "policy.yaml"
        policy.write_text(POLICY)
        ports = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
        process = subprocess.Popen(
            (*command, "control", *ports, "--store", f"sqlite:{folder}/control.db"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        exits.callback(process.wait)
        exits.callback(process.terminate)
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        ready = process.stdout.readline()
        if not ready.startswith("control ready: grpc "):
            raise SystemExit("error: the control service did not start; try: meshrpc control")
        address = ready.removeprefix("control ready: grpc ").partition(",")[0]
        environment = {**os.environ, "MESHRPC_CONTROL": address}
        applied = subprocess.run(
            (*command, "policy", "apply", "-f", str(policy)),
            env=environment,
            check=False,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        if applied.returncode:
            raise SystemExit("error: the policy was not taken; its reason is above")
        yield address


def measure(given: argparse.Namespace) -> list[Sample]:
    """Return the samples of all pairs, in the order they were taken."""
    samples: list[Sample] = []
    with control_service() as control:
        for first in range(0, given.pairs, given.renew):
            with ExitStack() as exits:
                arms = [Arm(name, control, given.instances, exits) for name in given.arms]
                for arm in arms:
                    arm.wait()
                for pair in range(first, min(first + given.renew, given.pairs)):
                    turn = arms if pair % 2 == 0 else arms[::-1]
                    for concurrency, arm in itertools.product(given.concurrency, turn):
                        samples.append(arm.run(pair, concurrency, given.seconds))
                        if sys.stderr.isatty():
                            print(f"\rpair {pair + 1} of {given.pairs} ", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    return samples


# The account.


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median of the pairs, where it is with 95 % confidence, and the middle half.

    The confidence is that of the order statistics: as many pairs lie above a true median as below,
    give or take what as many tosses of a coin would.
    """
    ranked, count = sorted(values), len(values)
    off = math.ceil(0.98 * math.sqrt(count))
    low, high = max(0, count // 2 - off), min(count - 1, (count - 1) // 2 + off)
    return {
        "median": statistics.median(ranked),
        "low": ranked[low],
        "high": ranked[high],
        "q1": ranked[count // 4],
        "q3": ranked[count - 1 - count // 4],
    }


def summarize(pairs: Sequence[tuple[Sample, Sample]]) -> dict[str, Any]:
    """Return what the second arm of each pair is beside the first."""

    def ratio(of: Callable[[Sample], float]) -> dict[str, float]:
        return spread([of(other) / of(base) for base, other in pairs])

    arms = {}
    for name, samples in zip(("base", "other"), zip(*pairs, strict=True), strict=True):
        arms[name] = {
            "arm": samples[0].arm,
            "calls_per_second": statistics.median(s.throughput for s in samples),
            "p50_us": statistics.median(s.p50 for s in samples) * 1e6,
            "client_cpu_us": statistics.median(s.client_cpu / s.calls for s in samples) * 1e6,
            "server_cpu_us": statistics.median(s.server_cpu / s.calls for s in samples) * 1e6,
        }
    return {
        **arms,
        "throughput_ratio": ratio(lambda sample: sample.throughput),
        "p50_ratio": ratio(lambda sample: sample.p50),
        "added_p50_us": spread([(other.p50 - base.p50) * 1e6 for base, other in pairs]),
        "cpu_ratio": ratio(lambda sample: sample.cpu),
        "client_cpu_ratio": ratio(lambda sample: sample.client_cpu / sample.calls),
        "server_cpu_ratio": ratio(lambda sample: sample.server_cpu / sample.calls),
    }


def account(samples: Sequence[Sample]) -> dict[int, dict[str, Any]]:
    """Return the summary of each concurrency."""
    runs: dict[int, dict[int, list[Sample]]] = {}
    for sample in samples:
        runs.setdefault(sample.concurrency, {}).setdefault(sample.pair, []).append(sample)
    return {
        concurrency: summarize(
            [(run[0], run[1]) if pair % 2 == 0 else (run[1], run[0]) for pair, run in pairs.items()]
        )
        for concurrency, pairs in runs.items()
    }


def show(report: dict[str, Any]) -> None:
    """Print the report for people."""
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    print(", ".join(f"{name} {value}" for name, value in report["settings"].items()))
    for concurrency, found in report["summary"].items():
        print(f"\nconcurrency {concurrency}")
        print(
            f"  {'arm':<8} {'calls/s':>9} {'p50 us':>8} {'client us':>10} {'server us':>10}   CPU"
        )
        for arm in (found["base"], found["other"]):
            print(
                f"  {arm['arm']:<8} {arm['calls_per_second']:>9,.0f} {arm['p50_us']:>8.0f} "
                f"{arm['client_cpu_us']:>10.0f} {arm['server_cpu_us']:>10.0f}   a call"
            )
        for name, value in found.items():
            if name not in {"base", "other"}:
                digits = 0 if name.endswith("_us") else 3
                middle, low, high, q1, q3 = (f"{each:.{digits}f}" for each in value.values())
                what = name.replace("_", " ")
                print(f"  {what:<18} {middle:>7}   95 % {low}..{high}, half within {q1}..{q3}")


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="What the mesh adds to a call.")
    parser.add_argument("--pairs", type=int, default=120, help="runs of each arm (120)")
    parser.add_argument("--seconds", type=float, default=0.1, help="of one run (0.1)")
    parser.add_argument("--renew", type=int, default=20, help="pairs per set of processes (20)")
    parser.add_argument("--instances", type=int, default=1, help="servers of each arm (1)")
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=[1, 16], help="calls under way (1 16)"
    )
    parser.add_argument(
        "--arms",
        nargs=2,
        choices=ARMS,
        default=["bare", "mesh"],
        metavar=("BASE", "OTHER"),
        help="two of bare, mesh, client (only the client is the mesh's), server (bare mesh)",
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args()
    counts = (given.pairs, given.renew, given.instances, *given.concurrency)
    if min(counts) < 1 or given.seconds <= 0:
        parser.error("numbers must be above 0")
    return given


def main() -> None:
    given = parse()
    load_average = round(os.getloadavg()[0], 2)
    samples = measure(given)
    report = {
        "machine": {
            "python": platform.python_version(),
            "grpcio": grpc.__version__,
            "meshrpc": meshrpc.__version__,
            "cpus": os.cpu_count(),
            "load_average_before": load_average,
        },
        "settings": {name: value for name, value in vars(given).items() if name != "output"},
        "summary": account(samples),
    }
    if given.output == "json":
        print(json.dumps({**report, "samples": [asdict(each) for each in samples]}, indent=2))
    else:
        show(report)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None

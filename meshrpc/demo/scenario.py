"""The demo's story: start the mesh, sell things, change a policy, break something, check the books.

The customers' side runs in this process as an ordinary client of the mesh. Everything else is
what a user would start: `meshrpc control` and `meshrpc run`, as processes on free ports.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import signal
import sys
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import meshrpc
from meshrpc.control.client import ControlClient
from meshrpc.demo.books import audit
from meshrpc.demo.chaos import Chaos
from meshrpc.demo.customers import Customers, Sales
from meshrpc.demo.policy_desk import PolicyDesk, shop_documents
from meshrpc.demo.processes import Processes
from meshrpc.demo.spans import Span, SpanCollector
from meshrpc.demo.view import Board, View
from meshrpc.errors import MeshError, RegistryError
from meshrpc.mesh import Mesh
from meshrpc.telemetry.export import start_export

FLEET = {
    "order": (("services.order.app:service", 2),),
    "payment": (("services.payment.app:service", 2), ("services.payment.app_v2:service", 1)),
}
"""What runs: per service, the modules and how many workers of each."""

READY_WITHIN = 60.0
_REFRESH_EVERY = 0.25
_ORDERS_END_WITHIN = 30.0


@dataclass(frozen=True, slots=True)
class Script:
    """When what happens, in seconds from the first order."""

    duration: float
    chaos: bool

    @property
    def policy_at(self) -> float:
        """A changed policy is pushed."""
        return self.duration * 0.35

    @property
    def kill_at(self) -> float:
        """A payment worker is killed."""
        return self.duration * 0.2

    @property
    def freeze_at(self) -> float:
        """Another payment worker is frozen."""
        return self.duration * 0.55

    @property
    def freeze_for(self) -> float:
        """And thawed after this long; before its lease is over."""
        return min(8.0, self.duration * 0.25)


def app_folder() -> Path:
    """Return the folder that the example services are imported from.

    An installed wheel carries them in `meshrpc/_demo`; in a checkout they stand beside `meshrpc`.
    """
    package = Path(meshrpc.__file__).parent
    bundled = package / "_demo"
    return bundled if bundled.is_dir() else package.parent


class Demo:
    """One run of the demo."""

    def __init__(self, script: Script, *, registry: str | None, console: Console) -> None:
        self._script = script
        self._registry = registry or "mesh:"
        self._console = console
        self._board = Board(duration=script.duration, services=tuple(FLEET))
        self._view = View(console, self._board)
        self._rng = random.Random()
        self._folder = app_folder()
        self._started = 0.0
        self._interrupted = asyncio.Event()

    async def run(self) -> bool:
        """Run it; return whether orders were paid, none was lost and none charged twice."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt, asyncio.current_task())
        self._started = loop.time()
        with tempfile.TemporaryDirectory(prefix="meshrpc-demo-") as folder:
            return await self._run(Path(folder))

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked it to end early."""
        return self._interrupted.is_set()

    def _interrupt(self, task: asyncio.Task[Any] | None) -> None:
        if self.interrupted and task is not None:
            task.cancel()  # the second time: no patience for draining
        self._interrupted.set()

    async def _run(self, state: Path) -> bool:
        async with SpanCollector(self._on_span) as collector:
            async with Processes(state) as processes:
                environment = self._environment(state, collector.endpoint)
                sales = await self._trade(processes, environment, state)
                with self._console.status("stopping…"):
                    await processes.stop()
            books = audit(state, sales.paid)
            self._view.summarise(sales, books, collector.best_trace())
        return books.is_clean and bool(sales.paid)

    async def _trade(self, processes: Processes, environment: dict[str, str], state: Path) -> Sales:
        """Open the shop for as long as the demo lasts; return what was sold."""
        with self._console.status("starting the control service…"):
            control, control_http = await self._start_control(processes, environment, state)
        environment |= {"MESHRPC_CONTROL": control, "MESHRPC_CONTROL_HTTP": control_http}
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                ControlClient([control], namespace=environment["MESHRPC_NAMESPACE"])
            )
            policies = PolicyDesk(client, self._view, self._board)
            await policies.push(shop_documents(self._folder))
            mesh = await self._enter_mesh(stack, environment)
            await mesh.registry.services()  # one that cannot be reached is told at once
            with self._console.status("starting order x2, payment x3…"):
                self._start_services(processes, environment)
                await self._wait_for_fleet(mesh, processes)
            customers = self._customers(mesh)
            with self._view.shown():
                await self._play(mesh, policies, processes, customers)
            return customers.sales

    # Starting.

    def _environment(self, state: Path, collector: str) -> dict[str, str]:
        return {
            **os.environ,
            "MESHRPC_REGISTRY": self._registry,
            # Its own, so that a registry shared with others sees no trace of the demo.
            "MESHRPC_NAMESPACE": f"demo-{os.getpid()}",
            "MESHRPC_STATE_DIR": str(state),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
            "OTEL_BSP_SCHEDULE_DELAY": "250",
            "PYTHONUNBUFFERED": "1",
        }

    async def _start_control(
        self, processes: Processes, environment: dict[str, str], state: Path
    ) -> tuple[str, str]:
        """Start control; return where it listens with gRPC and with HTTP."""
        arguments = ["control", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        arguments += ["--store", f"sqlite:{state / 'control.db'}"]
        process = processes.start("control", arguments, environment)
        ready = await process.wait_for_line(
            r"^control ready: grpc (\S+), http (\S+),", READY_WITHIN
        )
        return ready[1], ready[2]

    async def _enter_mesh(self, stack: AsyncExitStack, environment: dict[str, str]) -> Mesh:
        mesh = Mesh(
            "shop",
            control=environment["MESHRPC_CONTROL"],
            registry=self._registry,
            namespace=environment["MESHRPC_NAMESPACE"],
            state_dir=environment["MESHRPC_STATE_DIR"],
        )
        # The exporter reads its settings from the environment of its process.
        os.environ.update({k: v for k, v in environment.items() if k.startswith("OTEL_")})
        flush = start_export("shop", mesh.id)
        if flush is not None:
            stack.push_async_callback(asyncio.to_thread, flush)
        return await stack.enter_async_context(mesh)

    def _start_services(self, processes: Processes, environment: dict[str, str]) -> None:
        for name, modules in FLEET.items():
            for number, (module, workers) in enumerate(modules, start=1):
                arguments = ["run", module, "--workers", str(workers)]
                arguments += ["--app-dir", str(self._folder)]
                processes.start(f"{name}-{number}", arguments, environment)

    async def _wait_for_fleet(self, mesh: Mesh, processes: Processes) -> None:
        wanted = sum(workers for modules in FLEET.values() for _, workers in modules)
        try:
            async with asyncio.timeout(READY_WITHIN):
                while len(self._board.present) < wanted and not self.interrupted:
                    processes.check()
                    await asyncio.sleep(_REFRESH_EVERY)
                    await self._look(mesh)
        except TimeoutError:
            seen = ", ".join(sorted(self._board.present)) or "none"
            raise MeshError(
                f"{wanted} instances were expected in registry {self._registry} within "
                f"{READY_WITHIN:.0f} s, {len(self._board.present)} came: {seen}"
            ) from None

    def _customers(self, mesh: Mesh) -> Customers:
        sys.path.insert(0, str(self._folder))
        messages = importlib.import_module("services.order.v1.order_pb2")
        stubs = importlib.import_module("services.order.v1.order_pb2_grpc")
        return Customers(stubs.OrderServiceStub(mesh.channel("order")), messages, self._rng)

    # Playing.

    async def _play(
        self, mesh: Mesh, policies: PolicyDesk, processes: Processes, customers: Customers
    ) -> None:
        loop = asyncio.get_running_loop()
        self._started = loop.time()
        script, chaos = self._script, Chaos(self._board, self._view, self._rng)
        acts: list[Coroutine[Any, Any, None]] = [
            customers.shop(),
            policies.change(after=script.policy_at),
        ]
        if script.chaos:
            acts.append(chaos.kill(after=script.kill_at))
            acts.append(chaos.freeze(after=script.freeze_at, seconds=script.freeze_for))
        tasks = [asyncio.create_task(act) for act in acts]
        try:
            while (elapsed := loop.time() - self._started) < self._script.duration:
                self._board.elapsed = elapsed
                if self.interrupted:
                    self._view.event("interrupted: closing the shop")
                    break
                processes.check()
                _raise_first(tasks)
                await self._look(mesh)
                self._view.refresh(loop.time(), customers.sales)
                await asyncio.sleep(_REFRESH_EVERY)
        finally:
            await _end(tasks)
            chaos.thaw_all()
            await customers.leave(1.0 if self.interrupted else _ORDERS_END_WITHIN)
        self._board.elapsed = loop.time() - self._started
        self._view.refresh(loop.time(), customers.sales)

    async def _look(self, mesh: Mesh) -> None:
        """Read the registry; while it is away, what was seen last stands."""
        try:
            found = [i for name in FLEET for i in await mesh.registry.instances(name)]
        except RegistryError:
            return
        self._board.present = {instance.id for instance in found}
        self._board.instances.update((instance.id, instance) for instance in found)

    def _on_span(self, span: Span) -> None:
        self._board.traffic.add(span, asyncio.get_running_loop().time())


def _raise_first(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

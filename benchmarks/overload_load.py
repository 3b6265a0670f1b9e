"""Load that does not wait for answers: calls go out when they are due, however the others fare.

A caller that sends its next call when the last one is answered slows down with the server, and never
overloads it. Here arrivals are a Poisson process, drawn beforehand, and what a call took counts from
when it was due, not from when it was sent (coordinated omission). What this process cannot send in
time is not sent at all, and counted: load that was not offered is not claimed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio

import meshrpc
from benchmarks.overhead import REQUEST
from services.payment.v1 import payment_pb2_grpc

LATEST = 0.02
"""Seconds after it was due that a call is still sent."""
IN_A_ROW = 20
"""Calls that are overdue and sent before answers are looked at."""
PATIENCE = 5.0
"""Seconds past the deadline until a call without an answer is an error of the benchmark."""

HELD_BACK = "held back"
"""What became of a call that its own side did not let out."""
_OWN_WORDS = ("throttled", "circuit breaker")

now = time.perf_counter


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of load: calls a second of each caller."""

    seconds: float
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """One call: when it was due, in seconds from the beginning, whose it was, and what became of it."""

    due: float
    caller: int
    outcome: str
    """The status code's name, or `HELD_BACK`."""
    took: float
    """Seconds from when it was due to when it ended."""


@dataclass(frozen=True, slots=True)
class Load:
    """All calls of some phases."""

    sent: list[Sent]
    skipped: list[float]
    """When the calls were due that this process had no time for."""
    cpu: float
    """What sending cost, as a share of one core."""


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """What is asked of the process: load, whatever comes of it."""

    phases: tuple[Phase, ...]
    deadline: float
    seed: int


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """What is asked of the process: as much as is answered, `at_once` calls at a time."""

    at_once: int
    seconds: float


def generate(pipe: Any, kind: str, address: str, callers: int) -> None:
    """Be some callers, each with a connection of its own; do what is asked until the pipe is closed."""

    async def main() -> None:
        async with AsyncExitStack() as exits:
            charges = [
                await _caller(kind, address, number, exits) for number in range(1, callers + 1)
            ]
            pipe.send("ready")
            gc.freeze()
            with contextlib.suppress(EOFError):
                while True:
                    asked = await asyncio.to_thread(pipe.recv)
                    if isinstance(asked, ClosedLoop):
                        pipe.send(await _closed_loop(charges[0], asked))
                    else:
                        pipe.send(await _OpenRun(charges, asked).run())

    with contextlib.suppress(KeyboardInterrupt, ConnectionError):
        asyncio.run(main())


async def _caller(
    kind: str, address: str, number: int, exits: AsyncExitStack
) -> Callable[..., Any]:
    name = f"caller-{number}"
    if kind == "mesh":
        mesh = meshrpc.Mesh(name, control="none", registry=f"static:payment={address}")
        await exits.enter_async_context(mesh)
        channel: grpc.aio.Channel = mesh.channel("payment")
        metadata = None
    else:
        # Without its own pool it would share the connection of the other callers.
        options = (("grpc.use_local_subchannel_pool", 1),)
        channel = grpc.aio.insecure_channel(address, options=options)
        metadata = (("mesh-caller", name),)
    await exits.enter_async_context(channel)
    await channel.channel_ready()
    return partial(payment_pb2_grpc.PaymentServiceStub(channel).Charge, metadata=metadata)


async def _closed_loop(charge: Callable[..., Any], asked: ClosedLoop) -> float:
    """Return how many calls a second are answered."""
    answered = 0

    async def caller() -> None:
        nonlocal answered
        while now() < end:
            try:
                await charge(REQUEST, timeout=10.0)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)
            else:
                answered += 1

    begun = now()
    end = begun + asked.seconds
    await asyncio.gather(*(caller() for _ in range(asked.at_once)))
    return answered / (now() - begun)


class _OpenRun:
    """One run of open-loop load."""

    def __init__(self, charges: list[Callable[..., Any]], asked: OpenLoop) -> None:
        self._charges = charges
        self._asked = asked
        self._sent: list[Sent] = []
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._began = 0.0

    async def run(self) -> Load:
        due = _arrivals(self._asked)
        skipped: list[float] = []
        in_a_row = 0
        cpu = time.process_time()
        self._began = now() + 0.05
        for at, caller in due:
            early = self._began + at - now()
            if early > 0:
                await asyncio.sleep(early)
                in_a_row = 0
            elif in_a_row >= IN_A_ROW:
                await asyncio.sleep(0)
                in_a_row = 0
            elif -early > LATEST:
                skipped.append(at)
                continue
            in_a_row += 1
            self._send(at, caller)
        cpu = (time.process_time() - cpu) / (now() - self._began)
        async with asyncio.timeout(self._asked.deadline + PATIENCE):
            while self._under_way:
                self._quiet.clear()
                await self._quiet.wait()
        return Load(self._sent, skipped, cpu)

    def _send(self, due: float, caller: int) -> None:
        left = self._began + due + self._asked.deadline - now()
        self._under_way += 1
        call = self._charges[caller](REQUEST, timeout=left)
        call.add_done_callback(partial(self._ended, due, caller))

    def _ended(self, due: float, caller: int, call: Any) -> None:
        took = now() - self._began - due
        code: grpc.StatusCode = _result(call.code())
        outcome = code.name
        if code is grpc.StatusCode.UNAVAILABLE and any(
            words in (_result(call.details()) or "") for words in _OWN_WORDS
        ):
            outcome = HELD_BACK
        self._sent.append(Sent(due, caller, outcome, took))
        self._under_way -= 1
        if not self._under_way:
            self._quiet.set()


def _arrivals(asked: OpenLoop) -> list[tuple[float, int]]:
    """Return when each call is due, and whose it is."""
    rng = random.Random(asked.seed)
    due: list[tuple[float, int]] = []
    start = 0.0
    for phase in asked.phases:
        total = math.fsum(phase.rates)
        whose = list(itertools.accumulate(phase.rates))
        callers = range(len(phase.rates))
        at = start + rng.expovariate(total)
        while at < start + phase.seconds:
            due.append((at, rng.choices(callers, cum_weights=whose)[0]))
            at += rng.expovariate(total)
        start += phase.seconds
    return due


def _result(done: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine that has nothing to wait for returns."""
    try:
        done.send(None)
    except StopIteration as returned:
        return returned.value
    raise RuntimeError("the call has not ended")

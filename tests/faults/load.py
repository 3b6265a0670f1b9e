"""Calls at their times, whatever became of those before, in two arms side by side.

The load is open: each call has the time at which it was meant to start, from a seeded Poisson
process, and its latency counts from there, so that nothing that slows the callers hides in the
figures (no coordinated omission). How late this process's own event loop was is measured beside it.

Arm `mesh` is `Mesh.channel`, arm `bare` a `grpc.aio` channel to the same addresses with round_robin
and grpc's defaults otherwise. Both give every call the same deadline.
"""

import asyncio
import contextlib
import json
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import grpc
import grpc.aio

import meshrpc
from meshrpc.client.endpoint import Endpoint
from meshrpc.policy.model import EffectivePolicy
from meshrpc.resilience.health import Admission
from tests.faults.methods import GET, PUT

DEADLINE = 1.0
RATE = 200.0
ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
READY_WITHIN = 10.0
STOOD_STILL = 0.5
"""Seconds for which an event loop is late when its process hardly runs."""
ADMITTED = Admission.ADMITTED
LOOK_EVERY = 0.05


@dataclass(slots=True)
class Call:
    """One call, as its caller saw it; times as `time.monotonic`, code None while it runs."""

    number: str
    method: str
    meant: float
    started: float = 0.0
    ended: float = math.inf
    code: grpc.StatusCode | None = None
    details: str = ""

    @property
    def is_ok(self):
        return self.code is grpc.StatusCode.OK

    @property
    def latency(self):
        return self.ended - self.meant


@dataclass(slots=True)
class Attempt:
    """One attempt that the mesh's client made."""

    instance: str
    began: float
    ended: float = math.inf


class MeshArm:
    """A member of the mesh that calls the fleet, and every attempt it makes."""

    name = "mesh"

    def __init__(self, fleet, *, notes=True):
        """`notes`: its attempts are noted. Of the arms of one process one can have that at a time."""
        self._fleet = fleet
        self.attempts = []
        self._notes = notes
        self._mesh = meshrpc.Mesh("caller", rng=random.Random(7), **fleet.rig.membership)
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self):
        async with contextlib.AsyncExitStack() as exits:
            if self._notes:
                exits.enter_context(self._noted())
            await exits.enter_async_context(self._mesh)
            self.channel = self._mesh.channel(self._fleet.service)
            await self.channel.channel_ready()
            await self.ready(len(self._fleet.victims))
            if self._fleet.has_policy:
                await self._landed()
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *error):
        await self._exits.aclose()

    async def ready(self, count):
        """Return when so many endpoints are ready."""
        async with asyncio.timeout(READY_WITHIN):
            while self.destination.ready_count != count:
                await self.destination.changed()

    async def _landed(self):
        """Return when the policy has come from control."""
        landed = asyncio.Event()

        def look(policy):
            if policy != EffectivePolicy(self._fleet.service):
                landed.set()

        watch = self._mesh.on_policy(self._fleet.service, look)
        async with asyncio.timeout(READY_WITHIN):
            await landed.wait()
        watch.close()

    @property
    def destination(self):
        return self.channel.bound()

    @property
    def ejected(self):
        """Endpoints that are ejected, or wait for their probe."""
        return [e for e in self.destination.endpoints if e.health.admission is not ADMITTED]

    @contextlib.contextmanager
    def _noted(self):
        """Note every attempt at an endpoint: where an attempt went, a call does not say."""
        start, finish = Endpoint.start, Endpoint.finish
        under_way = {}

        def noted_start(endpoint, inner, *arguments, **named):
            attempt = under_way[inner] = Attempt(endpoint.instance.id, time.monotonic())
            self.attempts.append(attempt)
            start(endpoint, inner, *arguments, **named)

        def noted_finish(endpoint, inner, *arguments, **named):
            under_way.pop(inner).ended = time.monotonic()
            finish(endpoint, inner, *arguments, **named)

        Endpoint.start, Endpoint.finish = noted_start, noted_finish
        try:
            yield
        finally:
            Endpoint.start, Endpoint.finish = start, finish


class BareArm:
    """A channel of grpcio to all addresses of the fleet."""

    name = "bare"

    def __init__(self, fleet):
        self._addresses = fleet.addresses

    async def __aenter__(self):
        self.channel = grpc.aio.insecure_channel(
            f"ipv4:{','.join(self._addresses)}", (("grpc.service_config", ROUND_ROBIN),)
        )
        async with asyncio.timeout(READY_WITHIN):
            await self.channel.channel_ready()
        return self

    async def __aexit__(self, *error):
        await self.channel.close()


class Lag:
    """How late the event loop was, at any time: it is asked every few milliseconds."""

    _EVERY = 0.005

    def __init__(self):
        self._late = []

    async def measure(self):
        while True:
            due = time.monotonic() + self._EVERY
            await asyncio.sleep(self._EVERY)
            now = time.monotonic()
            if now - due > 0.001:
                self._late.append((due, now))

    def between(self, begin, end):
        """Return how long the loop stood still at most, from one time to another."""
        return max((b - a for a, b in self._late if a <= end and b >= begin), default=0.0)

    def longer_than(self, seconds):
        """Return from when to when the loop stood still for longer."""
        return [(a, b) for a, b in self._late if b - a > seconds]

    @property
    def worst(self):
        return max((b - a for a, b in self._late), default=0.0)


@dataclass(slots=True, repr=False)
class Load:
    """A load on one arm, under way or over."""

    arm: object
    rate: float
    methods: tuple[str, ...]
    seed: int
    calls: list[Call] = field(default_factory=list)
    deadline: float = DEADLINE

    async def run(self, over):
        """Make calls until `over` is set, and return when the last one has ended."""
        rng = random.Random(self.seed)
        meant = time.monotonic()
        stubs = {method: self.arm.channel.unary_unary(method) for method in self.methods}
        async with asyncio.TaskGroup() as group:
            while not over.is_set():
                meant += rng.expovariate(self.rate)
                wait = meant - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                method = rng.choice(self.methods)
                call = Call(f"{self.seed}.{len(self.calls)}", method, meant)
                self.calls.append(call)
                group.create_task(self._make(call, stubs[method]))

    async def _make(self, call, stub):
        call.started = time.monotonic()
        try:
            await stub(f"{self.arm.name} {call.number}".encode(), timeout=self.deadline)
        except grpc.aio.AioRpcError as error:
            call.ended = time.monotonic()
            call.code, call.details = error.code(), error.details() or ""
        else:
            call.ended = time.monotonic()
            call.code = grpc.StatusCode.OK

    def failed_by(self, lag, *methods):
        """Return those that failed, and not because this process, or its machine, stood still.

        Just before, that may be too: the calls that were due meanwhile start all at once.
        """
        return [
            call
            for call in self.failed(*methods)
            if lag.between(call.started - 1.0, call.ended) < STOOD_STILL
        ]

    def meant(self, begin=0.0, end=math.inf):
        """Return the calls meant to start in this time."""
        return [call for call in self.calls if begin <= call.meant < end]

    def failed(self, *methods):
        """Return the calls that failed, of these methods or of all."""
        wanted = methods or (GET, PUT)
        return [call for call in self.calls if not call.is_ok and call.method in wanted]


@dataclass(slots=True, repr=False)
class Run:
    """What happened in one run: the loads by arm, the marks by name, executions by arm."""

    fleet: object
    began: float
    loads: dict[str, Load]
    lag: Lag
    arms: dict[str, object]
    marks: dict[str, float] = field(default_factory=dict)
    ejected_at_the_end: list[object] = field(default_factory=list)
    """Endpoints that were not admitted when the load was over."""

    def __repr__(self):
        marks = {name: round(at - self.began, 3) for name, at in self.marks.items()}
        failed = {name: len(load.failed()) for name, load in self.loads.items()}
        late = round(self.lag.worst, 3)
        return f"<Run of {self.fleet.service} {marks} failed={failed} late={late}>"

    def mark(self, name):
        """Note the time under a name."""
        self.marks[name] = time.monotonic()

    async def go_on(self, seconds, until=None):
        """Return after so many seconds, or as soon as `until(run)` holds."""
        give_up = time.monotonic() + seconds
        while (left := give_up - time.monotonic()) > 0:
            if until is None:
                await asyncio.sleep(left)
            elif until(self):
                return
            else:
                await asyncio.sleep(min(left, LOOK_EVERY))

    @property
    def mesh(self):
        return self.loads["mesh"]

    @property
    def bare(self):
        return self.loads["bare"]

    @property
    def attempts(self):
        """Every attempt of arm mesh."""
        return self.arms["mesh"].attempts

    def attempts_at(self, victim, since=0.0):
        """Return arm mesh's attempts at an instance that began from `since` on."""
        return [a for a in self.attempts if a.instance == victim.id and a.began >= since]

    def executions(self, arm):
        """Return how often the handlers of the fleet began, by call, for one arm."""
        mine = {call.number for call in self.loads[arm].calls}
        found = self.fleet.executions(self.began)
        return Counter(e.call for e in found if e.arm == arm and e.call in mine)

    def overdue(self, arm):
        """Return, of the call that went on longest beyond its deadline, how long that was.

        The deadline counts from when the call was meant to start; what this process's own loop was
        late by meanwhile is not the call's fault.
        """
        late = [0.0]
        for call in self.loads[arm].calls:
            over = call.ended - call.meant - DEADLINE
            if over > 0.01:
                begin_late = call.started - call.meant
                late.append(over - begin_late - self.lag.between(call.ended - over, call.ended))
        return max(late)


@contextlib.asynccontextmanager
async def running(
    fleet,
    *,
    rate=RATE,
    arms=("mesh", "bare"),
    methods=(GET, PUT),
    seed=1,
    deadline=DEADLINE,
    notes=True,
):
    """Put a load on a fleet for as long as the block lasts, and give the `Run`."""
    kinds = {"mesh": partial(MeshArm, notes=notes), "bare": BareArm}
    async with contextlib.AsyncExitStack() as exits:
        lag = Lag()
        live = {name: await exits.enter_async_context(kinds[name](fleet)) for name in arms}
        measuring = asyncio.create_task(lag.measure())
        exits.callback(measuring.cancel)
        over = asyncio.Event()
        loads = {
            name: Load(
                arm, rate, methods, seed, deadline=deadline
            )  # the same calls at the same times
            for name, arm in live.items()
        }
        run = Run(fleet, time.monotonic(), loads, lag, live)
        async with asyncio.TaskGroup() as group:
            for load in loads.values():
                group.create_task(load.run(over))
            try:
                yield run
            finally:
                over.set()
        if "mesh" in live:
            run.ejected_at_the_end = live["mesh"].ejected

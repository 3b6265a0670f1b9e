"""A control service and processes that watch, real but for the network between them and the time.

The service is `ControlService` over a `LeaseTable`, the processes are `Subscription`s. Messages lie
in lines until the run says that they arrive, and a line that is cut loses them, wherever they are:
a set that was taken and whose acknowledgement was lost, one that was written and never read. All
that happens is drawn from one seed. Control's history, every state that its table was in, is what
those of the watchers are compared with.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from types import SimpleNamespace
from typing import NamedTuple, Self

from meshrpc.control.control_service import ControlService
from meshrpc.control.delivery import Delivery
from meshrpc.registry.instance import Instance
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.registry import Snapshot
from meshrpc.subscription import Subscription
from meshrpc.testing import VirtualClock
from meshrpc.v1 import control_pb2
from meshrpc.watched import DoesNotFit

SERVICES = ("a", "b")
IDS = 8
WATCHERS = 3
RECOVERY = 5.0
"""Seconds of a control service's recovery window, short so that many end in a run."""
TURNS = 12
"""Of the event loop, in which a message is taken, answered and followed by the next."""


class State(NamedTuple):
    """The instances of a service as control had them, or as a watcher was told."""

    epoch: str
    version: int
    snapshot: Snapshot


class Line:
    """One stream: what is on its way, and both ends."""

    def __init__(self) -> None:
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.at_control: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.at_process: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.is_open = asyncio.Event()
        self.is_cut = False

    def cut(self) -> None:
        """Lose what is on its way; both ends hear of it."""
        self.is_cut = True
        self.is_open.set()
        self.up.clear()
        self.down.clear()
        self.at_control.put_nowait(None)
        self.at_process.put_nowait(None)

    def deliver(self, count: int) -> None:
        """Let some of what is on its way arrive."""
        for way, end in ((self.up, self.at_control), (self.down, self.at_process)):
            for _ in range(min(count, len(way))):
                end.put_nowait(way.popleft())


class _AbortedError(Exception):
    """What `abort` raises."""


class _AtControl:
    """A line as a servicer sees it: the context, and the requests."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def send_initial_metadata(self, _metadata) -> None:
        self._line.is_open.set()

    async def write(self, message: bytes) -> None:
        if self._line.is_cut:
            raise asyncio.InvalidStateError("the line is cut")
        self._line.down.append(message)

    async def abort(self, *_) -> None:
        raise _AbortedError

    async def requests(self):
        while (message := await self._line.at_control.get()) is not None:
            yield control_pb2.SubscribeRequest.FromString(message)


class _AtProcess:
    """A line as a subscription sees it: the call."""

    def __init__(self, line: Line, watcher: Watcher) -> None:
        self._line = line
        self._watcher = watcher

    async def initial_metadata(self):
        await self._line.is_open.wait()

    def done(self) -> bool:
        return self._line.is_cut

    async def write(self, request: control_pb2.SubscribeRequest) -> None:
        if self._line.is_cut:
            raise ConnectionError("the line is cut")
        self._line.up.append(request.SerializeToString())

    async def __aiter__(self):
        while not self._line.is_cut:
            message = await self._line.at_process.get()
            if message is None or self._line.is_cut:
                break
            push = control_pb2.Push.FromString(message)
            self._watcher.note_versions(push)
            yield push
        raise ConnectionError("the line is cut")

    def cancel(self) -> None:
        self._line.cut()

    async def code(self) -> None:
        return None


class _Channel:
    """What a subscription makes its stub on."""

    def __init__(self, world: World, watcher: Watcher) -> None:
        self._world = world
        self._watcher = watcher

    def stream_stream(self, *_, **__):
        return lambda: _AtProcess(self._world.connect(self._watcher), self._watcher)

    def unary_unary(self, *_, **__):
        return None

    async def close(self) -> None:
        return None


class Watcher:
    """A process, and what it was told."""

    def __init__(self, name: str, world: World) -> None:
        self.told: dict[str, list[State]] = {service: [] for service in SERVICES}
        self.refuses = False
        self.refused: set[str] = set()
        """Services of which it has refused the last set."""
        self._epoch = ""
        self._versions: dict[tuple[str, str], int] = {}
        self.line: Line | None = None
        hello = control_pb2.Hello(service="shop", instance=name)
        self.subscription = Subscription(
            ["127.0.0.1:1"], hello, clock=world.clock, rng=random.Random(name)
        )
        self.channel = _Channel(world, self)

    def watch(self) -> None:
        for service in SERVICES:
            self.subscription.watch_instances(service, self._on_snapshot)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        if self.refuses:
            self.refused.add(snapshot.service)
            raise DoesNotFit("not this one")
        self.refused.discard(snapshot.service)
        version = self._versions[self._epoch, snapshot.service]
        self.told[snapshot.service].append(State(self._epoch, version, snapshot))

    def note_versions(self, push: control_pb2.Push) -> None:
        self._epoch = push.epoch
        for one in push.instances:
            name = (push.epoch, one.service)
            assert one.version >= self._versions.get(name, 0), "versions never go backwards"
            self._versions[name] = one.version


class World:
    """Everything, driven by one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = VirtualClock()
        self.history: dict[str, list[State]] = {service: [] for service in SERVICES}
        """Every state of control's table."""
        self.departed: set[tuple[str, str]] = set()
        """Whoever deregistered at any time, by service and id."""
        self._alive: dict[tuple[str, str], Instance] = {}
        """Those that are there, whether control knows them or was started on an empty database."""
        self._incarnations: Counter[tuple[str, str]] = Counter()
        self._changes = 0
        self._handlers: dict[Line, asyncio.Task[None]] = {}
        self._running: asyncio.Task[None] | None = None
        self.table = LeaseTable()
        self.delivery = self._start()
        self.watchers = [Watcher(f"shop-{number}", self) for number in range(WATCHERS)]

    # Control.

    def _start(self) -> Delivery:
        store = SimpleNamespace(revision=0, on_change=None)
        delivery = Delivery(store, self.table, clock=self.clock)
        self._running = asyncio.create_task(delivery.run())
        self._epoch = delivery.content.epoch
        for service in SERVICES:
            self._note(service)
        return delivery

    def restart(self, *, forgets: bool) -> None:
        """Kill control, and start it on its database or on an empty one."""
        for line in tuple(self._handlers):
            line.cut()
        self._running.cancel()
        now, before = self.clock.now(), self.table.all()
        self.table = LeaseTable() if forgets else LeaseTable(now + RECOVERY)
        if not forgets:
            self.table.restore(before, now)
        self.delivery = self._start()

    def connect(self, watcher: Watcher) -> Line:
        line = watcher.line = Line()
        end = _AtControl(line)
        task = asyncio.create_task(ControlService(self.delivery).Subscribe(end.requests(), end))
        self._handlers[line] = task
        task.add_done_callback(lambda task: self._ended(line, task))
        return line

    def _ended(self, line: Line, task: asyncio.Task[None]) -> None:
        del self._handlers[line]
        line.cut()
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, _AbortedError), error

    def _note(self, service: str) -> None:
        version = self.table.version("default", service)
        snapshot = self.table.snapshot("default", service)
        self.history[service].append(State(self._epoch, version, snapshot))

    def _changed(self, service: str) -> None:
        self._note(service)
        self.delivery.instances_changed("default", service)

    def look(self) -> None:
        """What control does in time."""
        now = self.clock.now()
        if self.table.recover(now):
            for service in SERVICES:
                self._note(service)
            self.delivery.all_instances_changed()
        gone = self.table.expire(now)
        for instance in gone:
            del self._alive[instance.service, instance.id]
        for service in sorted({one.service for one in gone}):
            self._changed(service)

    # Instances.

    def register(self, service: str, id_: str, *, changes: bool = True) -> None:
        """Let an instance come, or change, or find out that control has forgotten it.

        Whoever left, or lost its lease, comes back as another incarnation.
        """
        name = (service, id_)
        instance = self._alive.get(name)
        if instance is None:
            self._incarnations[name] += 1
        if instance is None or changes:
            self._changes += 1
            instance = Instance(
                id=id_,
                service=service,
                address="127.0.0.1:5001",
                incarnation=self._incarnations[name],
                labels={"change": str(self._changes)},
            )
        self._alive[name] = instance
        lease = self.rng.choice((2.0, 15.0, 15.0, 60.0))
        if self.table.register(instance, self.clock.now(), lease):
            self._changed(service)

    def act(self) -> None:
        """Let one thing happen at control."""
        service, id_ = self.rng.choice(SERVICES), f"p{self.rng.randrange(IDS)}"
        match self.rng.choice(("register", "register", "renew", "drain", "undrain", "deregister")):
            case "register":
                self.register(service, id_)
            case "renew":
                alive = self._alive.get((service, id_))
                if alive is not None and not self.table.renew(
                    "default", service, id_, alive.incarnation, self.clock.now()
                ):
                    self.register(service, id_, changes=False)
            case "drain":
                if self.table.drain("default", service, id_):
                    self._changed(service)
            case "undrain":
                if self.table.undrain("default", service, id_):
                    self._changed(service)
            case "deregister":
                if self.table.deregister("default", service, id_):
                    self._alive.pop((service, id_), None)
                    self.departed.add((service, id_))
                    self._changed(service)

    # The run.

    async def turns(self, count: int = TURNS) -> None:
        """Let what has arrived be taken, or only a part of it."""
        for _ in range(count):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        self.look()

    async def step(self) -> None:
        """Let one thing happen anywhere."""
        rng = self.rng
        watcher = rng.choice(self.watchers)
        draw = rng.random()
        if draw < 0.35:
            self.act()
        elif draw < 0.80:
            if watcher.line is not None:
                watcher.line.deliver(rng.randint(1, 3))
        elif draw < 0.92:
            await self.advance(rng.choice((0.05, 0.15, 0.5, 3.0)))
        elif draw < 0.96:
            if watcher.line is not None:
                watcher.line.cut()
        elif draw < 0.985:
            watcher.refuses = not watcher.refuses
        else:
            self.restart(forgets=rng.random() < 0.4)
        await self.turns(rng.randrange(TURNS))

    async def settle(self) -> None:
        """Let everything arrive everywhere, also that a recovery window is over; what was refused is
        tried again with the next change."""
        for watcher in self.watchers:
            watcher.refuses = False
        for service in sorted(set().union(*(watcher.refused for watcher in self.watchers))):
            self.register(service, "p0")
        await self._rest()
        if self.table.is_recovering:
            await self.advance(RECOVERY)
            await self._rest()

    async def _rest(self) -> None:
        for _ in range(60):
            for _ in range(4):
                for watcher in self.watchers:
                    if watcher.line is not None:
                        watcher.line.deliver(100)
                await self.turns()
            if self._is_settled():
                return
            await self.advance(0.25)
        raise AssertionError("it never comes to rest")

    def _is_settled(self) -> bool:
        is_quiet = self.delivery.pushes.next_due() is None
        return is_quiet and all(
            watcher.subscription.connected
            and watcher.told[service]
            and watcher.told[service][-1].snapshot == self.table.snapshot("default", service)
            for watcher in self.watchers
            for service in SERVICES
        )

    def check(self) -> None:
        """What each watcher was told is control's history, with gaps and in order."""
        for watcher in self.watchers:
            for service in SERVICES:
                self._check(watcher.told[service], self.history[service])

    def _check(self, told: list[State], history: list[State]) -> None:
        places = {(one.epoch, one.version): at for at, one in enumerate(history)}
        assert len(places) == len(history), "each version is one state"
        at, before = -1, Snapshot("", ())
        for epoch, version, snapshot in told:
            assert places[epoch, version] >= at, "told in order"
            at = places[epoch, version]
            truth = history[at].snapshot
            assert snapshot == truth, "told what control had"
            ids = {one.id for one in snapshot.instances}
            vanished = {one.id for one in before.instances} - ids
            assert vanished & truth.departed <= snapshot.departed, "told who left by their word"
            assert not ids & snapshot.departed
            assert {(snapshot.service, id_) for id_ in snapshot.departed} <= self.departed
            before = snapshot

    async def __aenter__(self) -> Self:
        for watcher in self.watchers:
            await watcher.subscription.__aenter__()
            watcher.watch()
        return self

    async def __aexit__(self, *_) -> None:
        for watcher in self.watchers:
            await watcher.subscription.__aexit__(None, None, None)
        for line in tuple(self._handlers):
            line.cut()
        self._running.cancel()
        await asyncio.gather(*self._handlers.values(), self._running, return_exceptions=True)


async def run(seed: int, steps: int, monkeypatch) -> World:
    """Return a world in which so much has happened; its histories are checked."""
    world = World(seed)
    channels = iter(watcher.channel for watcher in world.watchers)
    monkeypatch.setattr("grpc.aio.insecure_channel", lambda *_, **__: next(channels))
    async with world:
        for number in range(steps):
            await world.step()
            if number % 40 == 39:
                await world.settle()
        await world.settle()
        world.check()
    return world

"""Instances that come and go as services do, three processes that call them, and an operator.

A `Town` stands beside a rig of `registries.py` and uses its registry. Its instances make up an id of
their own each time and, unless told otherwise, take any port. Nothing here belongs to an event loop.
"""

import asyncio
import contextlib
import json
import shlex
import signal
import sys
import threading
import time
from dataclasses import dataclass, field

import meshrpc
from tests.faults.nursery import Child
from tests.faults.rig import PATIENCE, Execution, Process, RigError
from tests.faults.tenant import ASKED

WITNESSES = 3
RATE = 100.0
"""Calls a second of all witnesses together."""
LOOK_EVERY = 0.02


async def until(is_so, what, within=PATIENCE):
    """Return when it is so; `is_so` may be a coroutine function."""
    give_up = time.monotonic() + within
    while True:
        answer = is_so()
        if await answer if asyncio.iscoroutine(answer) else answer:
            return
        if time.monotonic() > give_up:
            raise RigError(f"not in {within:g} s: {what}")
        await asyncio.sleep(LOOK_EVERY)


class Tenant:
    """An instance that runs as services do; see `tenant.py`."""

    def __init__(self, town, service, name, lease):
        self.service = service
        self.id = self.address = ""
        self._town = town
        self._name = name
        self._lease = lease
        self._log = town.rig.folder / f"{name}.calls"
        self._log.touch()
        self._process = None

    def __repr__(self):
        return f"<Tenant {self.id or self._name} {self.address}>"

    @property
    def is_running(self):
        return self._process.is_running

    def load(self, listen="127.0.0.1:0"):
        """Start its process as far as it can go before it listens."""
        lease = () if self._lease is None else ("--lease", self._lease)
        given = (self.service, self._log, "--listen", listen, *lease)
        self._process = self._town.fork("tenant", self._name, *given)
        self._hear("loaded")

    def start(self):
        """Let it listen, and return when it has registered."""
        self._process.say("start")
        self.id, self.address = self._process.line().split()

    def _hear(self, expected):
        said = self._process.line()
        if said != expected:
            raise RigError(f"{self._name} said {said!r}")

    async def leave(self):
        """Have it leave by SIGTERM, and return when its process has ended."""
        self._process.signal(signal.SIGTERM)
        await until(lambda: not self.is_running, f"{self} has ended")

    async def kill(self):
        """End it by SIGKILL, and return when its process has ended, which frees its port."""
        self._process.signal(signal.SIGKILL)
        await until(lambda: not self.is_running, f"{self} has ended")

    def freeze(self):
        self._process.signal(signal.SIGSTOP)

    def thaw(self):
        self._process.signal(signal.SIGCONT)

    def close(self):
        if self._process is not None:
            self._process.end()

    def _lines(self):
        return [line.split() for line in self._log.read_text().splitlines()]

    def executions(self, since=0.0):
        """Return what its handlers were called for from then on, in order."""
        told = [line for line in self._lines() if line[1] != ASKED and float(line[0]) >= since]
        return [Execution(float(at), self.id, *rest) for at, *rest in told]

    def asked(self, word):
        """Return when it first asked its registry for that; None: it has not."""
        return next((float(a) for a, *rest in self._lines() if rest[:2] == [ASKED, word]), None)

    def errors(self):
        """Return what it wrote to stderr."""
        return (self._town.rig.folder / f"{self._name}.log").read_text()

    def incarnation(self):
        """Return the incarnation in which it asked last to be registered."""
        return max(int(line[3]) for line in self._lines() if line[1:3] == [ASKED, "register"])


@dataclass(slots=True)
class Seen:
    """What the witnesses saw of one service; whole when they have stopped."""

    town: object
    service: str
    calls: list[dict] = field(default_factory=list)
    """Those that did not fail because their process, or its machine, stood still."""
    attempts: list[dict] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    late: float = 0.0

    def __repr__(self):
        return (
            f"<Seen of {self.service} in {self.town.rig.kind} calls={len(self.calls)} "
            f"held={self.held} late={self.late:.3f} {self.warnings}>"
        )

    def take_in(self, witness, account):
        """Add what one witness saw."""
        self.calls += [{"witness": witness, **call} for call in account["calls"]]
        self.attempts += [{"witness": witness, **each} for each in account["attempts"]]
        self.held |= set(account["held"])
        self.warnings += account["warnings"]
        self.late = max(self.late, account["late"])

    def failed(self, *methods, since=0.0):
        """Return, in words, what failed of the calls of these methods, or of all, since then."""
        return [
            f"{call['started']:.3f}-{call['ended']:.3f} {call['code']} {call['details']}"
            for call in self.calls
            if call["code"] != "OK"
            and call["started"] >= since
            and (not methods or call["method"] in methods)
        ]

    def tried(self, id_, since, before):
        """Return when attempts at an instance began in this time, in order."""
        return sorted(
            each["began"]
            for each in self.attempts
            if each["instance"] == id_ and since <= each["began"] < before
        )

    def callers(self, since, before):
        """Return how many witnesses began attempts in this time."""
        return len({e["witness"] for e in self.attempts if since <= e["began"] < before})


class Town:
    """The witnesses, the operator and the instances beside one rig."""

    def __init__(self, rig, exits):
        self.rig = rig
        self._exits = exits
        self._settings = {
            **rig.settings(rig.address),
            "state_dir": str(rig.folder / "life"),
        }
        named = {f"MESHRPC_{name.upper()}": each for name, each in self._settings.items()}
        self.environment = {**rig.environment, **named}
        self._launched = 0
        command = (sys.executable, "-m", "tests.faults.nursery")
        self._forking = threading.Lock()
        self._nursery = Process("nursery", command, rig.folder, self.environment)
        exits.callback(self._nursery.end)
        self._nursery.line()
        self.witnesses = [self.witness() for _ in range(WITNESSES)]
        self._clerk = self.fork("clerk", "clerk")

    def __repr__(self):
        return f"<Town with {self.rig}>"

    def fork(self, module, name, *arguments):
        """Start a process of one of the modules here; it ends with the town."""
        with self._forking:  # several threads start tenants
            process = Child(self._nursery, self.rig.folder, name, module, *arguments)
        self._exits.callback(process.end)
        return process

    def witness(self):
        """Start one more process that can call services."""
        self._launched += 1
        witness = self.fork("witness", f"witness-{self._launched}", self._launched)
        witness.line()
        return witness

    def tenant(self, service, lease=None):
        """Return an instance that is still to be loaded and started."""
        self._launched += 1
        tenant = Tenant(self, service, f"{service}-tenant-{self._launched}", lease)
        self._exits.callback(tenant.close)
        return tenant

    async def arrive(self, tenant, listen="127.0.0.1:0"):
        """Start an instance and return it when it has registered."""
        await asyncio.to_thread(tenant.load, listen)
        await asyncio.to_thread(tenant.start)
        return tenant

    async def tenants(self, service, count, lease=None):
        """Start so many instances and return them when all have registered."""
        fresh = [self.tenant(service, lease) for _ in range(count)]
        return await asyncio.gather(*map(self.arrive, fresh))

    async def order(self, command):
        """Have the operator run a `meshrpc` command; return when it asked the registry for what."""

        def run():
            self._clerk.say(command)
            return json.loads(self._clerk.line())

        done = await asyncio.to_thread(run)
        if done["code"]:
            raise RigError(f"meshrpc {shlex.split(command)}: {done}")
        return done["asked"]

    @contextlib.asynccontextmanager
    async def registry(self):
        """Give the registry, as somebody sees it who only looks."""
        settings = {**self._settings, "state_dir": self.rig.folder / "observer"}
        async with meshrpc.Mesh("observer", **settings) as mesh:
            yield mesh.registry

    @contextlib.asynccontextmanager
    async def called(self, service, count, witnesses=None):
        """Let witnesses call a service of so many instances for a block; give what they `Seen`."""
        callers = self.witnesses if witnesses is None else witnesses
        line = f"call {service} {count} {RATE / WITNESSES}"
        await asyncio.gather(*(asyncio.to_thread(_ask, each, line) for each in callers))
        seen = Seen(self, service)
        try:
            yield seen
        finally:
            for account in await asyncio.gather(*(self._stop(each) for each in callers)):
                seen.take_in(*account)

    async def _stop(self, witness):
        file = self.rig.folder / f"{witness.name}.json"
        await asyncio.to_thread(_ask, witness, f"stop {file}")
        return witness.name, json.loads(file.read_text())

    async def all_tried(self, id_, times, since, witnesses=None):
        """Return when each witness has begun so many attempts at an instance since then."""

        async def have():
            callers = self.witnesses if witnesses is None else witnesses
            line = f"tried {id_} {since}"
            told = await asyncio.gather(*(asyncio.to_thread(_ask, each, line) for each in callers))
            return min(map(int, told)) >= times

        await until(have, f"all witnesses have called {id_} {times} times")

    async def all_see(self, expected, within=PATIENCE):
        """Return when each witness believes in these instances, given with their states, only."""

        async def do():
            told = await asyncio.gather(
                *(asyncio.to_thread(_ask, each, "sees") for each in self.witnesses)
            )
            return all(json.loads(sees) == expected for sees in told)

        await until(do, f"all witnesses see {expected}", within)


def _ask(process, line):
    process.say(line)
    return process.line()


async def recovered(registry, service):
    """Return when the registry takes an instance that is missing to be gone.

    The embedded one does not in its first seconds.
    """
    over = asyncio.Event()
    watch = registry.watch(service, lambda s: None if s.is_recovering else over.set())
    async with asyncio.timeout(PATIENCE):
        await over.wait()
    watch.close()


async def listed(registry, service):
    """Return the records of a service by id."""
    return {each.id: each for each in await registry.instances(service)}

"""The shop and its neighbour as a user runs them: `meshrpc run`, a supervisor and its workers each.

A `Shop` is a rig whose services are `Team`s. All processes of it, and of nobody else, have its folder
in their environment, which is how they are found, whoever started them and whatever became of that.
"""

import asyncio
import contextlib
import itertools
import os
import re
import signal
import sys
from collections import defaultdict
from pathlib import Path

from tests.faults.lives import until
from tests.faults.rig import PATIENCE, ROOT, Process, Rig, RigError
from tests.faults.slow_service import GRACE

MODULES = {
    "order": "services.order.app:service",
    "payment": "services.payment.app:service",
    "slow": "tests.faults.slow_service:service",
}
WORKERS = 2
POLICY = """
schema: meshrpc.policy/v1
service: "*"
concurrency: off
"""
"""A machine that is busy with other things overloads every worker, and that is not the question."""
_READY = re.compile(r"worker (\d+) ready at \S+ \(pid (\d+), \S+\)$", re.MULTILINE)


class Team:
    """A supervisor and its workers."""

    def __init__(self, shop, service, name, workers):
        self.service = service
        self.name = name
        self.size = workers
        self._shop = shop
        self._log = shop.folder / f"{name}.log"
        command = (sys.executable, "-m", "meshrpc", "run", MODULES[service])
        options = ("--workers", str(workers), "--app-dir", str(ROOT))
        self._process = Process(name, (*command, *options), shop.folder, shop.environment)

    def __repr__(self):
        return f"<Team {self.name} supervisor={self._process.pid} workers={self.workers}>"

    @property
    def supervisor(self):
        """Its supervisor's pid."""
        return self._process.pid

    @property
    def is_running(self):
        """Whether its supervisor is."""
        return self._process.is_running

    def said(self):
        """Return what it and its workers wrote to stderr so far."""
        return self._log.read_text()

    def heard(self):
        """Return the pids of all workers that ever served, by their numbers, oldest first."""
        pids = defaultdict(list)
        for number, pid in _READY.findall(self.said()):
            pids[int(number)].append(int(pid))
        return pids

    @property
    def workers(self):
        """The pid of the worker that served last, by number."""
        return {number: pids[-1] for number, pids in self.heard().items()}

    @property
    def processes(self):
        """The pids of its supervisor and its workers, as far as these are known to serve."""
        return {self.supervisor, *self.workers.values()}

    async def ready(self, without=frozenset()):
        """Return when all workers serve, and none of them is one of those pids."""

        def is_so():
            if not self.is_running:
                raise RigError(f"{self.name} ended: {self.said()[-2000:]}")
            pids = set(self.workers.values())
            return len(pids) == self.size and not pids & without

        await until(is_so, f"{self.name} is ready")

    async def rolled(self, before):
        """Return when workers serve in the place of those of before, and these have ended."""
        await self.ready(without=frozenset(before))
        await self._shop.ended(before)

    async def roll(self):
        """Have each worker replaced by another one, and return when they are."""
        before = frozenset(self.workers.values())
        self.signal(signal.SIGHUP)
        await self.rolled(before)

    async def replace(self, number):
        """Kill a worker, and return when another one serves in its place."""
        pid = self.workers[number]
        os.kill(pid, signal.SIGKILL)
        await self.rolled({pid})

    def signal(self, number):
        """Send its supervisor a signal."""
        self._process.signal(number)

    async def stop(self):
        """Let it leave, and return its exit code."""
        self.signal(signal.SIGTERM)
        return await self.end()

    async def end(self):
        """Return the exit code of its supervisor once that has ended."""
        await until(lambda: not self.is_running, f"{self.name} has ended")
        return self._process.exit_code

    def close(self):
        self._process.end()


class Shop(Rig):
    """A control service and teams of workers, first one of each service.

    `grace`: seconds that calls of the service `slow` have when a worker leaves.
    """

    def __init__(self, *, grace):
        super().__init__()
        self.teams = {}
        """The team of each service, the newest one where there have been several."""
        self._opened = []
        self._grace = grace
        self._numbers = itertools.count(1)

    def __repr__(self):
        return f"<Shop {list(self.teams.values())}>"

    def __enter__(self):
        super().__enter__()
        self._exits.callback(self._end)
        try:
            self.environment[GRACE] = str(self._grace)
            for service in MODULES:
                self.open(service)
            self.apply(POLICY)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def new_name(self, word):
        """Return a name that nothing else here has."""
        return f"{word}-{next(self._numbers)}"

    def open(self, service, workers=WORKERS):
        """Start one more team of a service; `Team.ready` returns when it serves."""
        team = Team(self, service, self.new_name(service), workers)
        self.teams[service] = team
        self._opened.append(team)
        self._exits.callback(team.close)
        return team

    async def ready(self):
        """Return when all teams are."""
        await asyncio.gather(*(team.ready() for team in self.teams.values()))

    async def roll(self):
        """Roll all workers of all services at once."""
        await asyncio.gather(*(team.roll() for team in self.teams.values()))

    def processes(self):
        """Return all processes of the shop that run, this one aside: what runs there, by pid."""
        mark = f"MESHRPC_STATE_DIR={self.folder}".encode()
        found = {}
        for place in Path("/proc").iterdir():
            # What is gone or a zombie has no environment, and what is not ours does not show it.
            with contextlib.suppress(OSError):
                if place.name.isdecimal() and mark in (place / "environ").read_bytes().split(b"\0"):
                    found[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ")
        found.pop(os.getpid(), None)
        return found

    def wanted(self):
        """Return the pids of those processes that should run now, and no others."""
        pids = {self.control_process.pid}
        return pids.union(*(team.processes for team in self._opened if team.is_running))

    async def ended(self, pids, within=PATIENCE):
        """Return when none of these processes runs any more."""
        await until(lambda: not self.processes().keys() & pids, f"{pids} have ended", within)

    async def close_all(self):
        """Let all teams leave; return the exit codes of their supervisors by name."""
        teams = [team for team in self._opened if team.is_running]
        codes = await asyncio.gather(*(team.stop() for team in teams))
        return dict(zip((team.name for team in teams), codes, strict=True))

    def _end(self):
        """End what still runs."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

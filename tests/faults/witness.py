"""A caller that tells all it saw: `python -m tests.faults.witness SEED`.

It says `ready`, then takes lines on stdin and answers each:

    call SERVICE COUNT RATE    become a member of the mesh, and call a service that has so many
                               instances, so many times a second; `calling` when all are connected
    sees                       the state of each instance that it believes in, in JSON
    tried ID SINCE             how many attempts at an instance it began from then on
    stop FILE                  end the calls and write what it saw to a file as JSON; `stopped`

Half of the calls are of a method that may be repeated, half of one that may not. The log of its
executions names the service that a call was meant for as its arm. When stdin ends it stops at once.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from meshrpc.registry.instance import State
from tests.faults.load import LOOK_EVERY, Lag, Load, MeshArm
from tests.faults.methods import GET, PUT
from tests.faults.words import say, told

DEADLINE = 5.0
"""Seconds: a busy machine is not what the tests are about."""


class Warnings(logging.Handler):
    """What the mesh warned of in this process."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


class Witness:
    """One member's calls of one service, while it is entered."""

    def __init__(self, seed, service, count, rate):
        # A fleet, as far as an arm needs it; the settings come from the environment.
        rig = SimpleNamespace(membership={})
        fleet = SimpleNamespace(rig=rig, service=service, victims=[None] * count, has_policy=False)
        self.arm = MeshArm(fleet)
        self.arm.name = service
        self._lag = Lag()
        self._load = Load(self.arm, rate, (GET, PUT), seed=seed, deadline=DEADLINE)
        self._over = asyncio.Event()
        self._held = set()
        self._warnings = Warnings()
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self):
        async with contextlib.AsyncExitStack() as exits:
            logging.getLogger("meshrpc").addHandler(self._warnings)
            exits.callback(logging.getLogger("meshrpc").removeHandler, self._warnings)
            await exits.enter_async_context(self.arm)
            for work in (self._lag.measure(), self._look()):
                exits.callback(asyncio.create_task(work).cancel)
            running = asyncio.create_task(self._load.run(self._over))
            exits.push_async_callback(self._end, running)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *error):
        await self._exits.aclose()

    async def _end(self, running):
        self._over.set()
        await running

    async def _look(self):
        while True:
            self._held |= {id_ for id_, state in self.sees().items() if state is State.HELD}
            await asyncio.sleep(LOOK_EVERY)

    def sees(self):
        """Return the state of each instance that it believes in, by id."""
        return {each.id: each.state for each in self.arm.destination.discovery.instances}

    def tried(self, id_, since):
        """Return how many attempts at an instance began from then on."""
        return sum(each.instance == id_ and each.began >= since for each in self.arm.attempts)

    def account(self):
        """Return all it saw, for JSON."""
        excused = {id(c) for c in self._load.failed()} - {
            id(c) for c in self._load.failed_by(self._lag)
        }
        calls = [
            {**asdict(call), "code": call.code and call.code.name}
            for call in self._load.calls
            if id(call) not in excused
        ]
        return {
            "calls": calls,
            "attempts": [asdict(each) for each in self.arm.attempts],
            "held": sorted(self._held),
            "warnings": self._warnings.said,
            "late": self._lag.worst,
        }


async def main(seed):
    say("ready")
    witness = None
    async for line in told():
        word, *rest = line.split()
        if word == "call":
            service, count, rate = rest
            witness = Witness(seed, service, int(count), float(rate))
            await witness.__aenter__()
            say(f"calling {time.monotonic():.6f}")
        elif word == "sees":
            say(json.dumps(witness.sees()))
        elif word == "tried":
            say(str(witness.tried(rest[0], float(rest[1]))))
        else:
            await witness.__aexit__()
            await asyncio.to_thread(Path(rest[0]).write_text, json.dumps(witness.account()))
            say("stopped")
    os._exit(0)  # the tests are over, or have died


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

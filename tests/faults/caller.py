"""A process that calls a service all the time: `python -m tests.faults.caller SERVICE`.

It says on stdout how many seconds after entering the mesh its first call was answered, without those
for which a busy machine kept it from running, or why it was not. Then it takes lines on stdin, and
answers each in a line of JSON: `since SECONDS`, a time as `time.monotonic`, what became of the calls
that were meant to start from then on; `sees`, the state of each instance that it is connected to. When
stdin ends it stops at once.
"""

import argparse
import asyncio
import json
import os
import random
import time
from pathlib import Path

import grpc.aio

import meshrpc
from meshrpc.resilience.health import Admission
from tests.faults.load import LOOK_EVERY, Lag, Load
from tests.faults.methods import GET, PUT
from tests.faults.words import say, told

NAME = "second"
FIRST_WITHIN = 10.0


class Arm:
    """This process, as the load needs it."""

    name = NAME

    def __init__(self, channel):
        self.channel = channel
        self.lag = Lag()
        self.ejected = {}
        """When an endpoint was seen ejected last, by its instance's id."""

    async def look(self):
        while True:
            for endpoint in self.channel.bound().endpoints:
                if endpoint.health.admission is not Admission.ADMITTED:
                    self.ejected[endpoint.instance.id] = time.monotonic()
            await asyncio.sleep(LOOK_EVERY)


def account(load, since):
    """Return what became of the calls meant since then, and who was ejected."""
    calls = [call for call in load.meant(since) if call.code is not None]
    failed = [
        {"method": call.method, "code": call.code.name, "details": call.details}
        for call in load.failed_by(load.arm.lag)
        if call.meant >= since and call.code is not None
    ]
    ejected = [id_ for id_, at in load.arm.ejected.items() if at >= since]
    return {"calls": len(calls), "failed": failed, "ejected": ejected}


def seen(arm):
    """Return the state of each instance that an arm is connected to, by id."""
    endpoints = arm.channel.bound().endpoints
    return {endpoint.instance.id: endpoint.instance.state for endpoint in endpoints}


def kept_waiting():
    """Return for how many seconds this thread could have run, and other processes ran instead."""
    told = Path(
        "/proc/thread-self/schedstat"
    )  # Linux's: nanoseconds on a core, and waiting for one
    return int(told.read_text().split()[1]) / 1e9 if told.exists() else 0.0


async def main(given):
    entering = time.monotonic() - kept_waiting()
    async with meshrpc.Mesh("second", rng=random.Random(11)) as mesh:
        arm = Arm(mesh.channel(given.service))
        try:
            await arm.channel.unary_unary(GET)(f"{NAME} first".encode(), timeout=FIRST_WITHIN)
        except grpc.aio.AioRpcError as error:
            say(f"{error.code().name}: {error.details()}")
        else:
            say(f"{time.monotonic() - kept_waiting() - entering:.3f}")
        load = Load(arm, given.rate, (GET, PUT), seed=os.getpid(), deadline=given.deadline)
        tasks = [
            asyncio.create_task(each)
            for each in (arm.look(), arm.lag.measure(), load.run(asyncio.Event()))
        ]
        async for line in told():
            word, _, since = line.partition(" ")
            say(json.dumps(seen(arm) if word == "sees" else account(load, float(since))))
        os._exit(any(task.done() for task in tasks))  # the tests are over, or have died


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    asyncio.run(main(parser.parse_args()))

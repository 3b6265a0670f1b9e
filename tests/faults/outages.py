"""What happens to a registry while its services are called, one outage at a time.

Each takes a rig of `registries.py` and returns the `Outage` it was. All end with the same test of
recovery: every instance is registered as active again, one more is registered and called by all
callers, and deregistered and called by none.
"""

import asyncio
import contextlib
import math
import time
from dataclasses import dataclass, field
from functools import partial

from meshrpc.registry.instance import State
from tests.faults.caller import NAME as SECOND
from tests.faults.load import LOOK_EVERY, Run, running
from tests.faults.methods import GET, PUT
from tests.faults.registries import DEADLINE, GATES, RATE
from tests.faults.rig import RigError

ANSWERED_WITHIN = 0.4
"""Seconds in which a registry that is there answers."""
BEFORE = 0.4
RECOVERY = 25.0
"""Seconds until a recovery is given up."""


@dataclass(slots=True)
class Outage:
    """What became of the calls, and of the registry afterwards."""

    rig: object
    run: Run | None = None
    second: dict = field(default_factory=dict)
    """The second caller's account."""
    ejected: set = field(default_factory=set)
    """Instances that this process's caller had ejected at any time."""
    is_one: bool = True
    """Whether the registry answered nobody meanwhile whom it should not."""
    first_answer: str = ""
    """What a caller that was started during the outage says of its first call."""

    def __repr__(self):
        others = f"second={self.second} first_answer={self.first_answer or None}"
        return f"<Outage of {self.rig.kind} {self.run} ejected={self.ejected} {others}>"

    def failed(self, *methods):
        """Return the calls of both callers that failed by the outage, each in words."""
        wanted = methods or (GET, PUT)
        mine = [
            {"method": call.method, "code": call.code.name, "details": call.details}
            for call in self.run.mesh.failed_by(self.run.lag, *wanted)
        ]
        return mine + [call for call in self.second["failed"] if call["method"] in wanted]

    def after(self, mark):
        """Return the seconds from the end of the outage to a mark."""
        return self.run.marks[mark] - self.run.marks["healed"]


@contextlib.asynccontextmanager
async def _outage(rig):
    """Put a load on a rig; the block is the outage, its end the recovery's begin."""
    outage = Outage(rig)
    async with running(
        rig.instances, rate=RATE, deadline=DEADLINE, arms=("mesh",), notes=False
    ) as run:
        outage.run = run
        looking = asyncio.create_task(_note_ejected(outage))
        try:
            await asyncio.sleep(BEFORE)
            run.mark("fault")
            yield outage
            run.mark("healed")
            await _recover(outage)
        finally:
            looking.cancel()
            outage.second = await asyncio.to_thread(rig.second_since, run.began)


async def _note_ejected(outage):
    while True:
        outage.ejected.update(e.instance.id for e in outage.run.arms["mesh"].ejected)
        await asyncio.sleep(LOOK_EVERY)


async def _recover(outage):
    """Mark when all instances are `listed`, and when a change made then has come to all callers.

    One more instance has `joined` when each of them has called it, and has `left` when none of them
    sees it any more, or calls it. It leaves as instances do, after a mark where that is needed.
    """
    run, rig = outage.run, outage.rig
    run.marks.update(dict.fromkeys(("listed", "joined", "left"), math.inf))
    async with rig.observer() as observer, asyncio.TaskGroup() as group:
        group.create_task(_look_for_all(run, observer))
        newcomer = rig.newcomer()
        try:
            await observer.register(newcomer)
            registered = time.monotonic()
            if await _happens(partial(_has_joined, outage, registered)):
                run.mark("joined")
            if not observer.acknowledges:
                await observer.drain(newcomer)
                await _happens(partial(_is_unseen, outage, State.ACTIVE))
        finally:
            await observer.deregister(newcomer)
        if await _happens(partial(_is_unseen, outage)):
            run.mark("left")
    if any(each.at > run.marks["left"] for each in rig.spare.executions()):
        run.marks["left"] = math.inf


async def _has_joined(outage, since):
    """Return whether all callers have called the newcomer since then."""
    arms = {each.arm for each in outage.rig.spare.executions() if each.at >= since}
    return arms == {"mesh", SECOND}


async def _is_unseen(outage, state=None):
    """Return whether no caller sees the newcomer; given a state, whether none sees it in that."""
    mine = {e.instance.id: e.instance.state for e in outage.run.arms["mesh"].destination.endpoints}
    others = await asyncio.to_thread(outage.rig.second_sees)
    states = {sees.get(outage.rig.spare.id) for sees in (mine, others)}
    return states == {None} if state is None else state not in states


async def _look_for_all(run, observer):
    with contextlib.suppress(RigError):
        await observer.listed(RECOVERY)
        run.mark("listed")


async def _happens(is_so):
    """Return whether it is so before a recovery is given up; as soon as it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RECOVERY):
            while not await is_so():  # noqa: ASYNC110 - other processes tell, when asked
                await asyncio.sleep(LOOK_EVERY)
            return True
    return False


async def _last(outage, seconds, gates=GATES):
    """Let the fault last so long, and see that nobody behind these gates is answered."""
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(outage.rig.answers(gate, ANSWERED_WITHIN)) for gate in gates]
        await asyncio.sleep(seconds)
    outage.is_one &= not any(each.result() for each in asked)


async def killed(rig, seconds):
    """The registry is killed, and comes back later with what it knew."""
    async with _outage(rig) as outage:
        await asyncio.to_thread(rig.take_down)
        await _last(outage, seconds)
        await asyncio.to_thread(rig.bring_back)
    return outage


async def emptied(rig, seconds=0.3):
    """The registry is killed, and comes back as if it had never known anybody."""
    async with _outage(rig) as outage:
        await asyncio.to_thread(rig.take_down)
        await _last(outage, seconds)
        await asyncio.to_thread(rig.bring_back, empty=True)
    return outage


async def slowed(rig, late, seconds):
    """Every answer of the registry comes so much later than it was asked for."""
    async with _outage(rig) as outage:
        await asyncio.to_thread(rig.gates, f"delay {late / 2}")
        await _last(outage, seconds)
        await asyncio.to_thread(rig.gates, "pass")
    return outage


async def spoilt(rig, each):
    """One kind of garbage after the other answers in the registry's place, for `each` seconds."""
    async with _outage(rig) as outage:
        for kind in rig.garbage:
            await asyncio.to_thread(rig.answer, kind)
            await _last(outage, each)
        await asyncio.to_thread(rig.answer, None)
    return outage


async def cut_off(rig, gates, word, seconds):
    """Some gates `hold` everything, or only one way, and let it through later."""
    async with _outage(rig) as outage:
        for gate in gates:
            await asyncio.to_thread(rig.gate, gate, word)
        await _last(outage, seconds, gates)
        await asyncio.to_thread(rig.gates, "pass")
    return outage


async def killed_and_more(rig, seconds):
    """The registry is down; a caller is started again meanwhile, and later an instance is killed."""
    async with _outage(rig) as outage:
        await asyncio.to_thread(rig.take_down)
        outage.first_answer = await asyncio.to_thread(rig.start_second)
        await _last(outage, seconds / 2)
        rig.instances[0].kill()
        await asyncio.sleep(seconds / 2)
        await asyncio.to_thread(rig.bring_back)
        await asyncio.to_thread(rig.instances.heal)
    return outage

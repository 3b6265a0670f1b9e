"""What happens to a fleet under load, one fault at a time; each returns the `Run` it was.

The marks of a run: `fault`, when it began, and `healed`, when it ended. Where calls go on `after` that,
they do so for so many seconds, or until `until(run)` holds. Fleets are given back broken; `Fleet.heal`
mends them.
"""

import asyncio
import contextlib

from tests.faults.load import running

BEFORE = 0.7
"""Seconds under load before the fault."""


@contextlib.asynccontextmanager
async def _faulty(fleet, **options):
    """Run a load, and let the fault begin once it is under way."""
    async with running(fleet, **options) as run:
        await asyncio.sleep(BEFORE)
        run.mark("fault")
        yield run


async def restart_one(fleet, *, dead=0.5, after=3.0, until=None, **options):
    """One instance is killed and started again, once."""
    async with _faulty(fleet, **options) as run:
        fleet[0].kill()
        await asyncio.sleep(dead)
        await fleet[0].start()
        run.mark("healed")
        await run.go_on(after, until)
    return run


async def nothing(fleet, happen, **options):
    """Nothing happens to the instances: `happen`, a coroutine function, does something else."""
    async with _faulty(fleet, **options) as run:
        await happen()
        run.mark("healed")
    return run


async def kill_one(fleet, *, dead=2.5, **options):
    """One instance is killed and stays dead."""
    async with _faulty(fleet, **options) as run:
        fleet[0].kill()
        await asyncio.sleep(dead)
    return run


async def kill_in_turn(fleet, *, times=10, dead=0.5, alive=0.3, **options):
    """One after the other is killed, and started again before the next one is."""
    async with _faulty(fleet, **options) as run:
        for number in range(times):
            victim = fleet[number % len(fleet.victims)]
            victim.kill()
            await asyncio.sleep(dead)
            await victim.start()
            await asyncio.sleep(alive)
    return run


async def freeze_one(fleet, *, frozen=5.0, after=3.0, until=None, **options):
    """One process is stopped, and goes on later."""
    async with _faulty(fleet, **options) as run:
        fleet[0].freeze()
        await asyncio.sleep(frozen)
        run.mark("healed")
        fleet[0].thaw()
        await run.go_on(after, until)
    return run


async def blackhole_one(fleet, *, cut=5.0, after=3.0, until=None, **options):
    """One wire lets nothing through, and does again later."""
    return await _cut_off(fleet, fleet.victims[:1], cut, after, until, options)


async def blackhole_half(fleet, *, cut=5.0, after=3.0, until=None, **options):
    """Two wires of four let nothing through, and do again later."""
    return await _cut_off(fleet, fleet.victims[:2], cut, after, until, options)


async def _cut_off(fleet, victims, cut, after, until, options):
    async with _faulty(fleet, **options) as run:
        for victim in victims:
            await victim.connect("blackhole")
        await asyncio.sleep(cut)
        run.mark("healed")
        for victim in victims:
            await victim.connect("none")
        await run.go_on(after, until)
    return run


async def lose_packets(fleet, lose, find, *, cut=5.0, after=3.0, until=None, **options):
    """The kernel drops the packets of one instance: `lose` begins that, `find` ends it."""
    async with _faulty(fleet, **options) as run:
        await asyncio.to_thread(lose)
        await asyncio.sleep(cut)
        run.mark("healed")
        await asyncio.to_thread(find)
        await run.go_on(after, until)
    return run


async def misbehave_one(fleet, word, *, bad=5.0, after=3.0, until=None, **options):
    """One instance fails, hangs, blocks or is slow, and works again later."""
    async with _faulty(fleet, **options) as run:
        await fleet[0].behave(word)
        await asyncio.sleep(bad)
        run.mark("healed")
        await fleet[0].behave("work")
        await run.go_on(after, until)
    return run


async def slow_one(fleet, *, healthy=3.0, slow=10.0, until=None, **options):
    """One instance takes 20 times as long, after a time for which all are `healthy`, marked so."""
    async with running(fleet, **options) as run:
        await asyncio.sleep(BEFORE)
        run.mark("healthy")
        await asyncio.sleep(healthy)
        run.mark("fault")
        await fleet[0].behave("slow")
        await run.go_on(slow, until)
        run.mark("healed")
    return run


async def misbehave_half(fleet, word, *, bad=5.0, after=3.0, until=None, **options):
    """Two of four fail, hang, block or are slow, and work again later."""
    async with _faulty(fleet, **options) as run:
        for victim in fleet.victims[:2]:
            await victim.behave(word)
        await asyncio.sleep(bad)
        for victim in fleet.victims[:2]:
            await victim.behave("work")
        run.mark("healed")
        await run.go_on(after, until)
    return run


async def refuse_one(fleet, *, refusing=3.0, after=2.0, until=None, **options):
    """Connections to one instance are reset and refused, and accepted again later."""
    async with _faulty(fleet, **options) as run:
        await fleet[0].connect("refuse")
        await asyncio.sleep(refusing)
        await fleet[0].connect("none")
        run.mark("healed")
        await run.go_on(after, until)
    return run


async def flap_one(fleet, *, times=3, down=2.0, up=2.0, **options):
    """One instance is killed and started again, over and over."""
    async with _faulty(fleet, **options) as run:
        for _ in range(times):
            fleet[0].kill()
            await asyncio.sleep(down)
            await fleet[0].start()
            run.mark("healed")
            await asyncio.sleep(up)
    return run


async def fail_all(fleet, *, word="fail", failing=4.0, apart=0.5, after=6.0, until=None, **options):
    """Every instance fails, or hangs; then they work again, one after the other."""
    async with _faulty(fleet, **options) as run:
        await fleet.behave(word)
        await asyncio.sleep(failing)
        run.mark("healed")
        for victim in fleet:
            await victim.behave("work")
            await asyncio.sleep(apart)
        await run.go_on(after, until)
    return run


async def kill_all(fleet, *, dead=3.0, apart=0.5, after=6.0, until=None, **options):
    """Every instance is killed; then they are started again, one after the other."""
    async with _faulty(fleet, **options) as run:
        for victim in fleet:
            victim.kill()
        await asyncio.sleep(dead)
        for number, victim in enumerate(fleet):
            await victim.start()
            if number == 0:
                run.mark("healed")
            await asyncio.sleep(apart)
        await run.go_on(after, until)
    return run


async def fail_leaf(front, leaf, *, failing=4.0, **options):
    """The last service of a chain fails, all of it."""
    async with _faulty(front, arms=("mesh",), **options) as run:
        await leaf.behave("fail")
        run.mark("failing")
        await asyncio.sleep(failing)
    return run

"""What breaks around the instances, and costs no call: the control service, the wall clock."""

import asyncio
import signal
import time

import pytest

from tests.faults import scenarios
from tests.faults.wall_clock import WallClock

pytestmark = [pytest.mark.process, pytest.mark.alone]

DAY = 24 * 3600


async def test_a_frozen_control_service_costs_no_call(fleet, rig):
    """With it the registry is frozen: what was known stays known, and calls go on."""

    async def happen():
        rig.control_process.signal(signal.SIGSTOP)
        await asyncio.sleep(2.0)
        rig.control_process.signal(signal.SIGCONT)

    try:
        run = await scenarios.nothing(fleet, happen)
    finally:
        rig.control_process.signal(signal.SIGCONT)
    assert run.mesh.failed_by(run.lag) == []


async def test_a_wall_clock_that_jumps_costs_no_call_and_ejects_nobody(started, rig):
    """A service that is called, and calls another, is a day ahead, then a day behind.

    Its deadlines, leases, backoff and limits are kept by monotonic time.
    """
    why_not = WallClock.why_not()
    if why_not:
        pytest.skip(why_not)
    clock = WallClock(rig.folder)
    started("leaf", 2)
    jumping = started("jumping", 2, calls="leaf", environment=clock.environment)

    async def happen():
        for ahead in (DAY, -DAY, 0):
            clock.jump(ahead)
            assert abs(await asyncio.to_thread(clock.now) - ahead - time.time()) < 2
            await asyncio.sleep(0.6)

    run = await scenarios.nothing(jumping, happen, rate=50)
    assert run.mesh.failed_by(run.lag) == []
    assert run.ejected_at_the_end == []

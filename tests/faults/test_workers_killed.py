"""What customers lose when processes of the shop are killed: nothing that was promised to them."""

import asyncio
import os
import signal

import grpc
import pytest

import meshrpc
from tests.faults import crowd
from tests.faults.books import mistakes, paid
from tests.faults.customers import INSISTENT, REPEATABLE
from tests.faults.errands import MUCH_PATIENCE
from tests.faults.lives import until
from tests.faults.slow_service import BLOCK
from tests.faults.teams import Shop

# Not alone: customers have patience, and what failed while the machine stood still is left out.
pytestmark = pytest.mark.process

SERVICES = ("order", "payment")
REPEATS = 3
FOR_EVER = 3600
"""Seconds that a handler blocks its event loop."""
FEW = 20
"""Calls lost with a worker that hangs, at most; of 40 a second."""
ORDERS = 50
"""Orders that are paid between two faults, so that each is one of its own."""
PAUSE = 3.0
"""Seconds until everybody has heard of those who came; also after the control service did."""


def check(shop, account):
    """No call failed, and what customers were told is in the books, once."""
    assert account.failed() == []
    assert account.paid
    assert mistakes(shop, account) == []


async def sold(shop, count):
    """Return when so many more orders are paid, by what is in the book."""
    enough = paid(shop) + count
    await until(lambda: paid(shop) >= enough, f"{count} more orders are paid")


async def test_a_kill_of_any_process_costs_no_order_and_leaves_no_orphan(shop):
    """A worker of each service, the control service and a supervisor end by SIGKILL.

    Workers come back. Those of a dead supervisor leave by themselves, while others serve.
    """
    await shop.ready()
    old = shop.teams["payment"]
    async with crowd.shopping(shop, rates=REPEATABLE) as account:
        replaced = [shop.teams[service].replace(1) for service in SERVICES]
        await asyncio.gather(*replaced, shop.open("payment").ready())
        await asyncio.to_thread(shop.restart_control)
        left = old.processes
        old.signal(signal.SIGKILL)
        await shop.ended(left)
    check(shop, account)
    assert shop.processes().keys() == shop.wanted()


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_kill_of_each_process_in_turn_costs_no_order():
    """Three times each: workers, control service, and supervisors, in whose place others serve."""
    with Shop(grace=3.0) as shop:
        await shop.ready()
        async with crowd.shopping(shop, rates=REPEATABLE) as account:
            for _ in range(REPEATS):
                for service in SERVICES:
                    old = shop.teams[service]
                    for number in old.workers:
                        await old.replace(number)
                        await asyncio.sleep(PAUSE)
                    await shop.open(service).ready()
                    await asyncio.sleep(PAUSE)
                    left = old.processes
                    old.signal(signal.SIGKILL)
                    await shop.ended(left)
                await asyncio.to_thread(shop.restart_control)
                await asyncio.sleep(PAUSE)
        check(shop, account)
        assert shop.processes().keys() == shop.wanted()


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_an_order_outlives_every_worker_and_supervisor_of_a_service():
    """While all of a service is gone orders fail; sent again, each is paid, and charged once.

    Once they are killed together, as at a power cut, and once the supervisor alone.
    """
    with Shop(grace=3.0) as shop:
        await shop.ready()
        async with crowd.shopping(shop, rates=INSISTENT) as account:
            for service in SERVICES * REPEATS:
                for survivors in (False, True):
                    team = shop.teams[service]
                    left = team.processes
                    team.signal(signal.SIGKILL)
                    if not survivors:
                        for pid in team.workers.values():
                            os.kill(pid, signal.SIGKILL)
                    await shop.ended(left)
                    await shop.open(service).ready()
                    await sold(shop, ORDERS)
        check(shop, account)
        assert shop.processes().keys() == shop.wanted()


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_a_crash_loop_of_one_worker_costs_no_call():
    """It is killed whenever it serves until that is called a crash loop; the other one serves."""
    with Shop(grace=3.0) as shop:
        await shop.ready()
        team = shop.teams["payment"]
        async with crowd.shopping(shop, rates=REPEATABLE) as account:
            while "worker 1 is in a crash loop" not in team.said():
                await team.replace(1)
            await sold(shop, ORDERS)
        check(shop, account)


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_a_worker_that_hangs_is_replaced():
    """Only those calls fail that it had taken; that is a few, since nobody sends it more."""
    with Shop(grace=3.0) as shop:
        await shop.ready()
        team = shop.teams["slow"]
        before = set(team.workers.values())
        async with (
            crowd.shopping(shop, rates={**REPEATABLE, "put": 20.0}) as account,
            meshrpc.Mesh("fault", **shop.membership) as mesh,
        ):
            block = mesh.channel("slow").unary_unary(BLOCK)(str(FOR_EVER).encode())
            await until(
                lambda: set(team.workers.values()) - before, "it is replaced", MUCH_PATIENCE
            )
            with pytest.raises(grpc.aio.AioRpcError):
                await block
        assert " hangs: no sign of life from its event loop for " in team.said()
        assert account.failed(*REPEATABLE) == []
        assert len(account.failed("put")) <= FEW

"""The registry inside one process, beyond what every registry promises."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from meshrpc.registry.instance import Instance, State
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registry import LEASE, Snapshot

ONE = Instance(id="1", service="payment", address="127.0.0.1:5001")
TWO = replace(ONE, id="2")


async def test_leases_run_out_until_the_last_of_several_blocks_ends(virtual_clock):
    """Meshes that share a registry may leave it in any order; then its task is gone."""
    before = asyncio.all_tasks()
    registry = MemoryRegistry(clock=virtual_clock)
    staging = registry.in_namespace("staging")
    await registry.__aenter__()
    await staging.__aenter__()
    await registry.__aexit__(None, None, None)
    await registry.register(ONE)
    await virtual_clock.advance(LEASE)
    assert await registry.instances("payment") == ()
    await staging.__aexit__(None, None, None)
    assert asyncio.all_tasks() == before


async def test_a_callback_that_changes_the_registry_is_told_in_order():
    """Nobody is told the older state after the newer one, nor the same one twice."""
    registry = MemoryRegistry()
    await registry.register(ONE)
    seen: list[Snapshot] = []

    def drain_at_sight(snapshot: Snapshot) -> None:
        if snapshot.instances[0].state is State.ACTIVE:
            with contextlib.suppress(StopIteration):  # on the spot: it waits for nothing
                registry.drain(snapshot.instances[0]).send(None)

    draining = replace(ONE, state=State.DRAINING)
    registry.watch("payment", drain_at_sight)
    registry.watch("payment", seen.append)
    assert [each.instances for each in seen] == [(draining,)]
    await registry.register(replace(ONE, incarnation=1))
    assert [each.instances for each in seen] == [(draining,), (replace(draining, incarnation=1),)]


async def test_a_callback_that_fails_does_not_keep_the_others_from_knowing(caplog):
    """Nor does its failure reach who made the change."""
    registry = MemoryRegistry()

    def fail(snapshot: Snapshot) -> None:
        raise KeyError(snapshot.service)

    seen: list[Snapshot] = []
    registry.watch("payment", fail)
    registry.watch("payment", seen.append)
    await registry.register(ONE)
    await registry.register(TWO)
    assert seen[-1].instances == (ONE, TWO)
    assert all(each.exc_info for each in caplog.records)


async def test_a_permanent_record_stays_and_leases_of_others_run_out(virtual_clock):
    """The task that expires them is not held up by what never ends."""
    async with MemoryRegistry(clock=virtual_clock) as registry:
        by_hand = replace(TWO, permanent=True)
        await registry.register(by_hand)
        await registry.register(ONE)
        await virtual_clock.advance(LEASE)
        assert await registry.instances("payment") == (by_hand,)


async def test_it_always_answers():
    """A watch has nothing to excuse."""
    watch = MemoryRegistry().watch("payment", lambda _: None)
    assert watch.why_silent() is None


async def test_repr_is_a_status_line():
    """It says whose view it is, and how much is in the table."""
    registry = MemoryRegistry("staging")
    await registry.register(ONE)
    line = "<MemoryRegistry staging <LeaseTable services=1 instances=1>>"
    assert repr(registry) == line

"""The order of leaving, step by step, on a clock that only the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from meshrpc.server.drain import Departure, leave, stop


class Steps:
    """A departure that writes down what happens when."""

    def __init__(self, clock, *, is_known: bool = True, acknowledges: bool = True) -> None:
        self.log: list[tuple[str, float]] = []
        self.started = clock.now()
        self.clock = clock
        self.deregistered = asyncio.Event()
        self.deregistered.set()
        self.departure = Departure(
            say_not_serving=self.say_not_serving,
            tell_calls=lambda: self.note("calls"),
            mark_draining=self.mark_draining,
            deregister=self.deregister,
            acknowledges=acknowledges,
        )
        self.is_known = is_known

    def note(self, what: str) -> None:
        self.log.append((what, self.clock.now() - self.started))

    async def say_not_serving(self) -> None:
        self.note("health")

    async def mark_draining(self) -> bool:
        self.note("mark")
        return self.is_known

    async def deregister(self) -> None:
        self.note("deregister")
        await self.deregistered.wait()


def leaving(steps: Steps, hurry: asyncio.Event | None = None) -> asyncio.Task[None]:
    return asyncio.create_task(
        leave(steps.departure, clock=steps.clock, hurry=hurry or asyncio.Event())
    )


async def test_everybody_learns_of_it_before_the_server_may_stop(virtual_clock):
    """Health, calls, mark, deregister, then silence for a second."""
    steps = Steps(virtual_clock)
    task = leaving(steps)
    await virtual_clock.advance(0.99)
    assert steps.log == [("health", 0.0), ("calls", 0.0), ("mark", 0.0), ("deregister", 0.0)]
    assert not task.done()
    await virtual_clock.advance(0.02)
    assert task.done()


async def test_without_acknowledgement_the_mark_stands_until_all_should_have_seen_it(virtual_clock):
    """Who vanishes from a registry without a mark may be doubted, and called on."""
    steps = Steps(virtual_clock, acknowledges=False)
    task = leaving(steps)
    await virtual_clock.advance(2.99)
    assert steps.log == [("health", 0.0), ("calls", 0.0), ("mark", 0.0)]
    await virtual_clock.advance(0.02)
    assert [what for what, _ in steps.log] == ["health", "calls", "mark", "deregister"]
    assert task.done()


async def test_time_that_deregistering_took_is_not_waited_again(virtual_clock):
    """The silence counts from the mark, so slow acknowledgements do not add to it."""
    steps = Steps(virtual_clock)
    steps.deregistered.clear()
    task = leaving(steps)
    await virtual_clock.advance(4.0)
    assert not task.done()
    steps.deregistered.set()
    await virtual_clock.settle()
    assert task.done()


async def test_an_instance_nobody_knew_leaves_at_once(virtual_clock):
    """Without a record no call can be on its way."""
    steps = Steps(virtual_clock, is_known=False)
    task = leaving(steps)
    await virtual_clock.settle()
    assert task.done()


async def test_a_hurry_cuts_every_wait_short(virtual_clock):
    """A second request to stop does not wait for a registry that does not answer."""
    steps, hurry = Steps(virtual_clock), asyncio.Event()
    steps.deregistered.clear()
    task = leaving(steps, hurry)
    await virtual_clock.settle()
    assert not task.done()
    hurry.set()
    async with asyncio.timeout(10):
        await task


async def test_also_in_a_hurry_the_registry_is_asked_to_forget_it(virtual_clock):
    """The second request comes while the mark still stands; asking takes a moment."""
    steps, hurry = Steps(virtual_clock, acknowledges=False), asyncio.Event()
    forgotten = asyncio.Event()

    async def deregister() -> None:
        await asyncio.sleep(0.01)
        forgotten.set()

    steps.departure = replace(steps.departure, deregister=deregister)
    task = leaving(steps, hurry)
    await virtual_clock.settle()
    hurry.set()
    async with asyncio.timeout(10):
        await task
    assert forgotten.is_set()


class FakeServer:
    """Ends its calls when told to, or when they have ended."""

    def __init__(self) -> None:
        self.graces: list[float | None] = []
        self.idle = asyncio.Event()

    async def stop(self, grace: float | None) -> None:
        self.graces.append(grace)
        if grace is None:
            self.idle.set()
        await self.idle.wait()


def stopping(
    server: FakeServer, cut: Callable[[], None], clock, hurry: asyncio.Event
) -> asyncio.Task[None]:
    return asyncio.create_task(stop(server, cut, grace=30.0, clock=clock, hurry=hurry))


async def test_calls_that_end_within_the_grace_are_left_alone(virtual_clock):
    """The server stops with its last call; nothing is cut."""
    server, cuts = FakeServer(), []
    task = stopping(server, lambda: cuts.append(1), virtual_clock, asyncio.Event())
    await virtual_clock.advance(29.0)
    assert not task.done()
    server.idle.set()
    await virtual_clock.settle()
    assert task.done()
    assert cuts == []
    assert server.graces[0] == 31.0  # longer than the grace: our own end of calls comes first


@pytest.mark.parametrize("by", ["grace", "hurry"])
async def test_calls_that_outlast_the_grace_are_cut(virtual_clock, by: str):
    """After the grace, or at once when there is a hurry, running calls are told."""
    server, hurry, cuts = FakeServer(), asyncio.Event(), []

    def cut() -> None:
        cuts.append(virtual_clock.now() - started)
        server.idle.set()

    started = virtual_clock.now()
    task = stopping(server, cut, virtual_clock, hurry)
    if by == "hurry":
        await virtual_clock.settle()
        hurry.set()
        await virtual_clock.settle()
    else:
        await virtual_clock.advance(30.0)
    async with asyncio.timeout(10):
        await task
    assert cuts == [0.0 if by == "hurry" else 30.0]

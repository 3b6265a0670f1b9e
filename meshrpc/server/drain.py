"""Leaving without losing a call: the order, and how long each step may take.

grpcio's `stop` closes its port at once, so calls already on their way to it are lost. First
everybody has to learn that this instance is leaving and stop picking it; only then may the server
stop. Calls that outlast the grace are ended with a status that says why. A second request to stop
(`hurry`) cuts every wait short.

The steps are given as functions and time as a clock, so that the order can be tested by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from meshrpc.clock import Clock

T = TypeVar("T")

# Callers that acknowledged may still have a call between picking and sending.
QUIET_AFTER_ACKNOWLEDGEMENT = 1.0
# Without acknowledgement: time for watches to deliver.
QUIET_WITHOUT_ACKNOWLEDGEMENT = 3.0
# A registry that does not answer must not hold a process: its lease runs out by itself.
LONGEST_WAIT = 5.0
# A record that nobody takes away stays for a lease: also in a hurry it is asked for.
SHORTEST_ASK = 0.5
# For calls that were cut, to send their last status.
LAST_WORDS = 1.0


class Stoppable(Protocol):
    """A grpc server, as far as stopping goes."""

    async def stop(self, grace: float | None) -> None:
        """Refuse new calls at once, wait for running ones, then end them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """What leaving consists of, in this order."""

    say_not_serving: Callable[[], Awaitable[None]]
    """Health checks answer NOT_SERVING, for load balancers outside the mesh."""
    tell_calls: Callable[[], None]
    """Running calls see that the process drains; long streams can come to an end."""
    mark_draining: Callable[[], Awaitable[bool]]
    """The registry's record says so too; returns whether anybody may know this instance."""
    deregister: Callable[[], Awaitable[None]]
    """The record goes away. Registries that acknowledge return once the callers let go; with the
    others this waits until they should have seen the mark."""
    acknowledges: bool
    """Whether this registry is one of the former."""


async def leave(departure: Departure, *, clock: Clock, hurry: asyncio.Event) -> None:
    """Make the instance unknown; returns when no new call should come any more."""
    await departure.say_not_serving()
    departure.tell_calls()
    marked_at = clock.now()
    is_known = await unless(hurry, departure.mark_draining(), LONGEST_WAIT)
    if is_known is not False and not departure.acknowledges:
        # The mark stands until everybody has seen it: who vanishes without one may be doubted.
        until = marked_at + QUIET_WITHOUT_ACKNOWLEDGEMENT
        await unless(hurry, clock.sleep(max(0.0, until - clock.now())), None)
    await unless(hurry, departure.deregister(), LONGEST_WAIT, at_least=SHORTEST_ASK)
    if is_known is not False and departure.acknowledges:
        until = marked_at + QUIET_AFTER_ACKNOWLEDGEMENT
        await unless(hurry, clock.sleep(max(0.0, until - clock.now())), None)


async def stop(
    server: Stoppable, cut: Callable[[], None], *, grace: float, clock: Clock, hurry: asyncio.Event
) -> None:
    """Stop the server: calls have `grace` seconds to end; `cut` then tells those still running."""
    stopping = asyncio.ensure_future(server.stop(grace + LAST_WORDS))
    over = asyncio.ensure_future(clock.sleep(grace))
    hurried = asyncio.ensure_future(hurry.wait())
    try:
        await asyncio.wait([stopping, over, hurried], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            cut()
            await asyncio.wait([stopping], timeout=LAST_WORDS)
    finally:
        await _end(over, hurried)
        # grpcio takes the shorter grace; without it, a cancelled exit would wait for the longer.
        await server.stop(None)
        await stopping


async def unless(
    hurry: asyncio.Event, step: Awaitable[T], within: float | None, *, at_least: float = 0.0
) -> T | None:
    """Await a step; give it up, returning None, when it takes too long or there is a hurry.

    It gets `at_least` so many seconds, whatever the hurry.
    """
    task = asyncio.ensure_future(step)
    hurried = asyncio.ensure_future(hurry.wait())
    try:
        if at_least > 0:
            await asyncio.wait([task], timeout=at_least)
        await asyncio.wait([task, hurried], timeout=within, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await _end(task, hurried)


async def _end(*tasks: asyncio.Future[Any]) -> None:
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)

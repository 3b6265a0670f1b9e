"""One instance's place in a registry: registered, kept, and given up in order.

A background task registers, then renews on the event loop, so that a process whose loop is stuck
loses its lease. A lease that was lost, to a freeze or an outage, is answered by registering
again as the next incarnation. A registry that does not answer is asked again for ever; nothing of
this ever stops the service itself.

It does not drain calls or wait for callers: `server/drain.py` orders that.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from meshrpc.backoff import backoff
from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import ReadOnlyRegistry, RegistryError, StaleIncarnation
from meshrpc.load_report import LoadReport
from meshrpc.outage import Outage
from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.registry import RENEW_EVERY, Registry

ASK_WITHIN = 5.0
"""Seconds one request to the registry may take; a service starts no later than that."""
DEREGISTER_WITHIN = 6.0
"""Seconds for the last one: an acknowledging registry itself waits up to 5 for the callers."""
UTILIZATION_MOVED = 0.1
"""A load is published again when its utilization has changed by more than this,"""
WEIGHT_MOVED = 1.25
"""or calls per second by utilization, which callers weigh it by, by more than this factor."""
TOO_IDLE = 0.05
"""Utilization below which that weight is mostly chance, and its changes are none."""

log = logging.getLogger(__name__)


class Registration:
    """Keeps `instance` registered from `start` to `stop`. Used once."""

    def __init__(
        self,
        registry: Registry,
        instance: Instance,
        *,
        replaces: str | None = None,
        load: Callable[[], LoadReport | None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        """`replaces`: the id of an instance that died without leaving; this one takes its place.

        `load` says how busy the instance is just now; None: nothing to be told of it.
        """
        self.registered = False
        """Whether the registry last said that it holds this instance."""
        self.refusal: ReadOnlyRegistry | StaleIncarnation | None = None
        """Why the registry will never hold it, if so."""
        self._registry = registry
        self._instance = instance
        self._predecessor = replaces and replace(instance, id=replaces)
        self._load = load
        self._clock = clock
        self._rng = rng or random.Random()
        self._keeper: asyncio.Task[None] | None = None
        self._health = instance.health
        self._has_news = asyncio.Event()
        self._tried = asyncio.Event()
        self._may_be_known = False
        self._ended = False
        self._outage = Outage()

    def __repr__(self) -> str:
        state = "registered" if self.registered else "ended" if self._ended else "not registered"
        return (
            f"<Registration {self._instance.id} incarnation={self._instance.incarnation} {state}>"
        )

    @property
    def instance(self) -> Instance:
        """The record as it stands now: incarnation, load, health and state change."""
        return self._instance

    def say(self, health: Health) -> None:
        """Have the record say this of the instance's health, as soon as the registry takes it."""
        self._health = health
        self._has_news.set()

    async def start(self) -> None:
        """Register; return after the first attempt, at most `ASK_WITHIN` seconds, either way."""
        if self._keeper is not None or self._ended:
            raise RuntimeError(f"{self!r} was started before")
        self._keeper = asyncio.create_task(self._keep(), context=contextvars.Context())
        try:
            await self._tried.wait()
        except asyncio.CancelledError:
            await self._end_keeper()
            raise

    async def drain(self) -> None:
        """Mark the instance as leaving, and keep its lease no longer: `stop` comes next."""
        await self._end_keeper()
        if self._may_be_known and self._instance.state is State.ACTIVE:
            self._instance = replace(self._instance, state=State.DRAINING)
            await self._try("drain", self._instance, self._registry.drain, ASK_WITHIN)

    async def stop(self) -> None:
        """Deregister. Errors are logged: the lease runs out by itself. Again: does nothing."""
        await self._end_keeper()
        if self._may_be_known:
            self._may_be_known = False
            self.registered = False
            await self._try(
                "deregister", self._instance, self._registry.deregister, DEREGISTER_WITHIN
            )

    async def _end_keeper(self) -> None:
        """End what registers. Before `drain` and `stop` ask anything, so that it is never undone."""
        self._ended = True
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        self._tried.set()  # a keeper that was cancelled before it began did not

    async def _keep(self) -> None:
        # Looked at each time: a call of grpcio's that fails as it is cancelled forgets that it was.
        while not self._ended:
            asked_at, was_registered = self._clock.now(), self.registered
            self._has_news.clear()
            try:
                async with self._clock.timeout(ASK_WITHIN):
                    await self._ask()
            except ReadOnlyRegistry as error:
                self.refusal = error
                log.warning("%s is not registered: %s", self._instance.id, error)
                self._may_be_known = False
                return
            except StaleIncarnation as error:
                # Another process has taken over this id: coming back would fight it.
                self.refusal = error
                log.error("%s leaves the registry: %s", self._instance.id, error)  # noqa: TRY400
                self._may_be_known = self.registered = False
                return
            except Exception as error:  # noqa: BLE001 - whatever a registry raises, the lease is kept
                self._warn(error)
                wait = backoff(self._outage.failures, self._rng)
            else:
                if self._outage.end():
                    log.info("%s is registered", self._instance.id)
                # A fleet that was started at once, or came back at once, does not renew at once.
                earliest = 0.9 if was_registered else 0.2
                due = asked_at + RENEW_EVERY * self._rng.uniform(earliest, 1.0)
                wait = max(0.0, due - self._clock.now())
            finally:
                self._tried.set()
            if self.registered and self._predecessor:
                # Known to be dead, so nobody needs to wait for the end of its lease.
                gone, self._predecessor = self._predecessor, None
                await self._try("deregister", gone, self._registry.deregister, DEREGISTER_WITHIN)
            if not self._ended:
                with suppress(TimeoutError):
                    async with self._clock.timeout(wait):
                        await self._has_news.wait()

    async def _ask(self) -> None:
        """Renew the lease, or register where there is none; say how busy it is."""
        if self.registered and not await self._registry.renew(self._instance):
            self.registered = False
            self._instance = replace(self._instance, incarnation=self._instance.incarnation + 1)
            log.warning(
                "%s had lost its lease; it registers again as incarnation %d",
                self._instance.id,
                self._instance.incarnation,
            )
        # Nothing but a renewal tells whether the lease still lives; so it has come first.
        load = None if self._load is None else self._load()
        is_news = self._health is not self._instance.health
        if not self.registered or is_news or has_moved(self._instance.load, load):
            self._may_be_known = True  # also when the answer gets lost
            record = replace(self._instance, load=load, health=self._health)
            await self._registry.register(record)
            self._instance = record
            self.registered = True

    async def _try(
        self,
        what: str,
        instance: Instance,
        ask: Callable[[Instance], Awaitable[None]],
        within: float,
    ) -> None:
        try:
            async with self._clock.timeout(within):
                await ask(instance)
        except Exception as error:  # noqa: BLE001 - leaving goes on, whatever a registry raises
            log.warning("cannot %s %s: %s", what, instance.id, _cause(error))

    def _warn(self, error: Exception) -> None:
        if self._outage.goes_on(self._clock.now()):
            what = "renew the lease of" if self.registered else "register"
            log.warning("cannot %s %s: %s; trying again", what, self._instance.id, _cause(error))


def has_moved(published: LoadReport | None, load: LoadReport | None) -> bool:
    """Whether a load is another one than was published, enough to tell a whole fleet of callers."""
    if published is None or load is None:
        return published is not load
    if abs(load.utilization - published.utilization) > UTILIZATION_MOVED:
        return True
    if min(load.utilization, published.utilization) < TOO_IDLE:
        return False
    was, now = published.rps / published.utilization, load.rps / load.utilization
    return max(was, now) > WEIGHT_MOVED * min(was, now)


def _cause(error: Exception) -> str:
    if isinstance(error, RegistryError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "the registry did not answer in time"
    return f"{type(error).__name__}: {error}"

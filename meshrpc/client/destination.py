"""A destination: one service as this process calls it.

Here the registry, the policy and the balancer meet: registry snapshots become endpoints, those
among them that are ready and not ejected what calls choose from, the policy a table by method. All
of it changes off the hot path, by replacing one reference; a call only reads.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Collection, Coroutine, Mapping
from typing import Any

import grpc
import grpc.aio

from meshrpc.client.admission_control import AdmissionControl
from meshrpc.client.aim import ANYWHERE, Aim
from meshrpc.client.attempt import Attempt
from meshrpc.client.choices import Choices
from meshrpc.client.discovery import Discovery
from meshrpc.client.ejections import Ejections
from meshrpc.client.endpoint import FAILING, READY, Dialing, Endpoint
from meshrpc.client.endpoints import Endpoints
from meshrpc.client.local_error import local_error
from meshrpc.client.mirroring import Mirrors
from meshrpc.client.roster import NOBODY, draw
from meshrpc.clock import Clock, SystemClock
from meshrpc.last_known import LastKnown
from meshrpc.policy.model import EffectivePolicy
from meshrpc.policy.subset import Subset
from meshrpc.policy.table import PolicyTable
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import Registry
from meshrpc.resilience.fault import FaultInjection
from meshrpc.resilience.health import Admission
from meshrpc.resilience.hedge import Hedges

ANSWER_WITHIN = 5.0
"""Seconds that a call waits for the registry's first answer, if its deadline allows. Only while
nothing at all is known: later outages of the registry cost no call anything."""

_HOPE = (READY, grpc.ChannelConnectivity.CONNECTING, grpc.ChannelConnectivity.IDLE, FAILING)
"""Connectivity of a whole is that of its best part, as in gRPC's load balancing policies."""

_log = logging.getLogger("meshrpc.client")


class Destination:
    """One service: its endpoints, the picker over the ready ones, its policy."""

    def __init__(
        self,
        service: str,
        dialing: Dialing,
        policy: EffectivePolicy,
        *,
        member: str,
        zone: str | None,
        clock: Clock,
        rng: random.Random,
        last_known: LastKnown | None = None,
    ) -> None:
        """`member` is the id of the process that calls, `zone` where it stands.

        `last_known`: where to look while the registry says nothing; None: nowhere.
        """
        self.service = service
        self.clock = clock
        self.rng = rng
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.table = PolicyTable(policy, dialing.caller)
        self.control = AdmissionControl(policy, clock.now(), rng)
        self._ejections = Ejections(policy.outlier, clock, rng, self._rebuild)
        self.outliers = self._ejections.detector
        self.hedges = Hedges()
        self.faults = FaultInjection()
        self.mirrors = Mirrors()
        self._dialing = dialing
        self._member = member
        self._zone = zone
        self._choices = Choices(policy, rng, zone=zone)
        self.discovery = Discovery(service, dialing.caller, clock, self._alive, last_known)
        self._roster = NOBODY
        self._endpoints = Endpoints(dialing, policy.balancer)
        self._is_stale = False
        self._changed = asyncio.Event()
        self._waiting: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Destination {self.service} endpoints={len(self._endpoints)} ready={self.ready_count}>"

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All that this process connects to, ready or not."""
        return tuple(self._endpoints)

    @property
    def closing(self) -> tuple[Endpoint, ...]:
        """Endpoints whose instance has gone, with calls that have not ended yet."""
        return self._endpoints.retiring

    @property
    def waiting(self) -> int:
        """How many calls wait for an endpoint, or to be tried again."""
        return len(self._waiting)

    @property
    def ready_count(self) -> int:
        """How many of them calls may go to just now."""
        return len(self._choices)

    def open(self, registry: Registry) -> None:
        """Begin to follow the service's instances."""
        self.discovery.open(registry, self._take_in)
        self._follow_callers()

    async def close(self, grace: float) -> None:
        """Stop following, and close every endpoint with `grace` seconds for calls under way.

        Calls that wait for an endpoint or for their next attempt end at once.
        """
        self.closed = True
        await self.discovery.close()
        await self._ejections.close()
        waiting = tuple(self._waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self._endpoints.close(grace, self._rebuild)

    def wait(
        self, waiting: Coroutine[Any, Any, None], context: contextvars.Context
    ) -> asyncio.Task[None]:
        """Run what a call waits with; closing the destination cancels it."""
        task = self.loop.create_task(waiting, context=context)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return task

    def expire(self, attempt: Attempt, timeout: float) -> None:
        """End an attempt after `timeout` seconds by this clock; by the system's, grpc does so."""
        if not isinstance(self.clock, SystemClock):
            expiry = self.wait(attempt.expire_after(timeout), contextvars.Context())
            attempt.inner.add_done_callback(lambda _: expiry.cancel())

    def configure(self, policy: EffectivePolicy) -> None:
        """Let calls that start from now on follow `policy`; those under way keep theirs."""
        self.table = PolicyTable(policy, self._dialing.caller)
        now = self.clock.now()
        self.control.configure(policy, now)
        self._ejections.configure(policy.outlier, now)
        self._endpoints.configure(policy, now)
        self._choices.configure(policy)
        self._follow_callers()
        self._take_in(self.discovery.instances)

    def state(self) -> grpc.ChannelConnectivity:
        """Return the most hopeful state among the endpoints; IDLE while none is known."""
        states = {endpoint.state for endpoint in self._endpoints}
        return next((state for state in _HOPE if state in states), grpc.ChannelConnectivity.IDLE)

    async def changed(self) -> None:
        """Return when the endpoints, or the state of one, have changed."""
        await self._changed.wait()

    async def wait_for_endpoint(
        self,
        deadline: float | None,
        *,
        wait_for_ready: bool,
        tried: Collection[Endpoint] = (),
        aim: Aim = ANYWHERE,
    ) -> Endpoint:
        """Return an endpoint for the next attempt, one not in `tried` where there is one.

        While endpoints are still connecting, or before the registry's first answer, this waits;
        with `wait_for_ready` it waits for as long as it takes.

        Raises:
            grpc.aio.AioRpcError: UNAVAILABLE, nothing to wait for; DEADLINE_EXCEEDED.
        """
        gives_up = self.clock.now() + ANSWER_WITHIN
        while True:
            now = self.clock.now()
            if aim.subset is not None and aim.subset.is_unknown:
                aim.subset = self.table.subset(aim.subset.name)  # the policy may know it by now
            endpoint = self._choices.pick_untried(tried, now, aim) or self.pick(now, aim)
            if endpoint is not None:
                return endpoint
            has_answered = self.discovery.has_answered
            if not wait_for_ready and not has_answered and now >= gives_up:
                raise local_error(grpc.StatusCode.UNAVAILABLE, self._why_none(aim.subset))
            if not wait_for_ready and has_answered:
                active = self._choices.among(aim.subset).active
                if not active:
                    raise local_error(grpc.StatusCode.UNAVAILABLE, self._why_none(aim.subset))
                if self.is_unreachable(aim):
                    # An attempt on one of them ends at once and tells the real cause.
                    return self.rng.choice([e for e in active if e not in tried] or active)
            is_asking = not has_answered and not wait_for_ready
            await self._wait_for_change(deadline, gives_up if is_asking else None)

    def is_unreachable(self, aim: Aim) -> bool:
        """Return whether connecting has failed to every instance that a call may go to."""
        self._settle(aim)
        return all(each.state is FAILING for each in self._choices.among(aim.subset).active)

    def pick_untried(self, tried: Collection[Endpoint], now: float, aim: Aim) -> Endpoint | None:
        """Return a ready endpoint where a call that went to `tried` has not been; None: no such."""
        return self._choices.pick_untried(tried, now, aim)

    async def _wait_for_change(self, deadline: float | None, gives_up: float | None) -> None:
        """Return when something changed, or at `gives_up`; raise at the deadline."""
        now = self.clock.now()
        waits = [at - now for at in (deadline, gives_up) if at is not None]
        try:
            async with self.clock.timeout(min(waits, default=None)):
                await self._changed.wait()
        except TimeoutError:
            if deadline is None or self.clock.now() < deadline:
                return
            what = (
                "no instance became ready"
                if self.discovery.has_answered
                else self.discovery.why_silent()
            )
            raise local_error(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"deadline passed while waiting for service {self.service!r}: {what}",
            ) from None

    def _why_none(self, subset: Subset | None) -> str:
        if not self.discovery.has_answered:
            known = len(self.discovery.instances)
            what = (
                f"none of the {known} instances last known answers" if known else "nothing is known"
            )
            return (
                f"{what} of service {self.service!r}: {self.discovery.why_silent()} "
                f"(waited {ANSWER_WITHIN:.0f} s; the log may say more)"
            )
        if subset is not None:
            return self._why_nobody_in(subset)
        if self._endpoints.skipped is not None:
            return f"no instance of service {self.service!r} can be used; {self._endpoints.skipped}"
        if self.discovery.instances:
            return f"every instance of service {self.service!r} is draining"
        return f"service {self.service!r} has no instances in the registry"

    def _why_nobody_in(self, subset: Subset) -> str:
        if subset.is_unknown:
            known = ", ".join(sorted(self.table.subsets)) or "none"
            return f"the policy of service {self.service!r} has no subset {subset.name!r}, only: {known}"
        return f"service {self.service!r} has no active instance in subset {subset}"

    def _take_in(self, before: tuple[Instance, ...]) -> None:
        """Connect to those instances that this process is to call, and to nobody else.

        Those that were not there `before` begin slowly.
        """
        self._roster = draw(
            self.discovery.instances,
            self.table.policy,
            self.table.subsets.values(),
            seed=self._member,
            zone=self._zone,
        )
        made = self._endpoints.take_in(
            self.discovery.instances, self._roster, self, self.clock.now()
        )
        if made:
            new = {each.id for each in made}
            were_there = {(each.id, each.address) for each in before if each.id in new}
            for endpoint in made:
                if (endpoint.id, endpoint.instance.address) not in were_there:
                    self._warm_up(endpoint)
        self._catch_up()

    def _follow_callers(self) -> None:
        """Know where the other callers are, as long as calls keep to their zone."""
        keeps_to_zone = self._zone is not None and self.table.policy.locality.zone
        self.discovery.follow_callers(self._on_callers if keeps_to_zone else None)

    def _on_callers(self, zones: Mapping[str | None, int]) -> None:
        self._choices.callers = zones
        self._catch_up_soon()

    def pick(self, now: float, aim: Aim = ANYWHERE, *, repeatable: bool = False) -> Endpoint | None:
        """Return a ready endpoint at once; None when there is none just now.

        `repeatable`: the call would be tried elsewhere if this attempt failed.
        """
        if aim.split is not None:
            self._settle(aim)
        if self._ejections.has_probes():
            subset = aim.subset
            probed = self._ejections.take_probe(
                now, lambda each: self._choices.is_in(subset, each), repeatable=repeatable
            )
            if probed is not None:
                return probed
        return self._choices.pick(now, aim)

    def _settle(self, aim: Aim) -> None:
        """Draw the subset of a call; once more whenever the one drawn has no instance (any more)."""
        choices = self._choices
        if aim.split is None or not self.discovery.is_known:
            return
        if aim.subset is None or not choices.among(aim.subset).active:
            aim.subset = aim.split.choose(
                aim.hash_key, lambda subset: bool(choices.among(subset).active), self.rng
            )

    def forget_call(self) -> None:
        """Count out a call that its user has forgotten."""
        self.control.call_ended(None, self.clock.now())

    def on_state(self, endpoint: Endpoint, before: grpc.ChannelConnectivity) -> None:
        """Take note that an endpoint's connection changed, or may have."""
        if endpoint.state is READY and before is not READY:
            now = self.clock.now()
            if self.outliers.on_reconnected(endpoint.health, now) or endpoint.was_unreachable:
                self._warm_up(endpoint)
            endpoint.was_unreachable = False
        self._catch_up_soon()

    def on_admission(self, endpoint: Endpoint) -> None:
        """Take note that an endpoint was ejected, or is back."""
        if endpoint.health.admission is Admission.ADMITTED:
            self._warm_up(endpoint)
        self._ejections.admission_changed(endpoint, self.clock.now())
        self._catch_up_soon()

    def _alive(self) -> frozenset[str]:
        """Return the ids of the instances whose connection stands."""
        return frozenset(each.id for each in self._endpoints if each.state is READY)

    def _give_up_failed(self) -> None:
        """Believe the registry that instances are gone which it lists no more and which fail."""
        failed = [
            each.id
            for each in self._endpoints
            if each.instance.state is State.HELD
            and (each.state is FAILING or each.health.admission is not Admission.ADMITTED)
        ]
        if failed:
            self.discovery.failed(failed)

    def _warm_up(self, endpoint: Endpoint) -> None:
        endpoint.warm_up(self.clock.now(), self.table.policy.slow_start.window)

    def _catch_up_soon(self) -> None:
        """Catch up before the loop waits again, once for all states that changed by then."""
        # One by one, a thousand connections coming up would mean a thousand pickers of a
        # thousand, each of which would wake every call that waits; and a thousand held ones
        # going down, a thousand rosters.
        if not self._is_stale:
            self._is_stale = True
            self.loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        self._is_stale = False
        self._rebuild()
        self._give_up_failed()

    def _rebuild(self) -> None:
        now = self.clock.now()
        active = tuple(endpoint for endpoint in self._endpoints if endpoint.instance.takes_calls)
        self._choices.replace(active, self._roster, now)
        self._ejections.offer(active, now)
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits for a change look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

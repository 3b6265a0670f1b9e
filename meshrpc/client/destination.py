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
from collections.abc import Collection, Coroutine
from typing import Any, Protocol, runtime_checkable

import grpc
import grpc.aio

from meshrpc.client.admission_control import AdmissionControl
from meshrpc.client.call_options import NOTHING_SAID, CallOptions
from meshrpc.client.choices import Choices
from meshrpc.client.ejections import Ejections
from meshrpc.client.endpoint import FAILING, READY, Dialing, Endpoint
from meshrpc.client.local_error import local_error
from meshrpc.clock import Clock
from meshrpc.policy.model import EffectivePolicy
from meshrpc.policy.table import PolicyTable
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import Registry, Snapshot, Watch
from meshrpc.resilience.health import Admission
from meshrpc.resilience.hedge import Hedges

CLOSE_GRACE = 30.0
"""Seconds that calls under way get to end when their instance leaves the registry."""

ANSWER_WITHIN = 5.0
"""Seconds that a call waits for the registry's first answer, if its deadline allows. Only while
nothing at all is known: later outages of the registry cost no call anything."""

_HOPE = (READY, grpc.ChannelConnectivity.CONNECTING, grpc.ChannelConnectivity.IDLE, FAILING)
"""Connectivity of a whole is that of its best part, as in gRPC's load balancing policies."""

_log = logging.getLogger("meshrpc.client")


@runtime_checkable
class _Explaining(Protocol):
    """A watch that knows why its registry has not answered yet."""

    def why_silent(self) -> str | None: ...


class Destination:
    """One service: its endpoints, the picker over the ready ones, its policy."""

    def __init__(
        self,
        service: str,
        dialing: Dialing,
        policy: EffectivePolicy,
        *,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.service = service
        self.clock = clock
        self.rng = rng
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.table = PolicyTable(policy)
        self.control = AdmissionControl(policy, clock.now(), rng)
        self._ejections = Ejections(policy.outlier, clock, rng, self._rebuild)
        self.outliers = self._ejections.detector
        self.hedges = Hedges()
        self._dialing = dialing
        self._choices = Choices(policy, rng)
        self._endpoints: dict[str, Endpoint] = {}
        self._known = False
        self._is_stale = False
        self._skipped: str | None = None
        """Why the registry's newest answer has an instance that is not among the endpoints."""
        self._changed = asyncio.Event()
        self._watch: Watch | None = None
        self._retiring: dict[asyncio.Task[None], Endpoint] = {}
        self._waiting: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Destination {self.service} endpoints={len(self._endpoints)} ready={self.ready_count}>"

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints, ready or not."""
        return tuple(self._endpoints.values())

    @property
    def closing(self) -> tuple[Endpoint, ...]:
        """Endpoints whose instance has gone, with calls that have not ended yet."""
        return tuple(self._retiring.values())

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
        self._watch = registry.watch(self.service, self._on_snapshot)

    async def close(self, grace: float) -> None:
        """Stop following, and close every endpoint with `grace` seconds for calls under way.

        Calls that wait for an endpoint or for their next attempt end at once.
        """
        self.closed = True
        if self._watch is not None:
            self._watch.close()
            self._watch = None  # it knows this destination
        await self._ejections.close()
        waiting = tuple(self._waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        endpoints = [*self._endpoints.values(), *self._retiring.values()]
        self._endpoints = {}
        self._rebuild()
        retiring = tuple(self._retiring)
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        await asyncio.gather(*(endpoint.close(grace) for endpoint in endpoints))

    def wait(
        self, waiting: Coroutine[Any, Any, None], context: contextvars.Context
    ) -> asyncio.Task[None]:
        """Run what a call waits with; closing the destination cancels it."""
        task = self.loop.create_task(waiting, context=context)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return task

    def configure(self, policy: EffectivePolicy) -> None:
        """Let calls that start from now on follow `policy`; those under way keep theirs."""
        self.table = PolicyTable(policy)
        now = self.clock.now()
        self.control.configure(policy, now)
        self._ejections.configure(policy.outlier, now)
        for endpoint in self._endpoints.values():
            endpoint.set_decay(policy.balancer.decay)
            endpoint.warm_at = min(endpoint.warm_at, now + policy.slow_start.window)
        self._choices.configure(policy, now)
        self.wake()

    def state(self) -> grpc.ChannelConnectivity:
        """Return the most hopeful state among the endpoints; IDLE while none is known."""
        states = {endpoint.state for endpoint in self._endpoints.values()}
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
        options: CallOptions = NOTHING_SAID,
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
            endpoint = self._choices.pick_untried(tried, now, options) or self.pick(now, options)
            if endpoint is not None:
                return endpoint
            if not wait_for_ready and not self._known and now >= gives_up:
                raise local_error(grpc.StatusCode.UNAVAILABLE, self._why_none(options.subset))
            if not wait_for_ready and self._known:
                active = self._active(options.subset)
                if not active:
                    raise local_error(grpc.StatusCode.UNAVAILABLE, self._why_none(options.subset))
                if self.is_unreachable(options):
                    # An attempt on one of them ends at once and tells the real cause.
                    return self.rng.choice([e for e in active if e not in tried] or active)
            is_asking = not self._known and not wait_for_ready
            await self._wait_for_change(deadline, gives_up if is_asking else None)

    def is_unreachable(self, options: CallOptions) -> bool:
        """Return whether connecting has failed to every instance that a call may go to."""
        return all(endpoint.state is FAILING for endpoint in self._active(options.subset))

    def _active(self, subset: str | None) -> list[Endpoint]:
        return [
            each
            for each in self.endpoints
            if each.instance.state is State.ACTIVE and self._choices.is_in(subset, each)
        ]

    def pick_untried(
        self, tried: Collection[Endpoint], now: float, options: CallOptions
    ) -> Endpoint | None:
        """Return a ready endpoint where a call that went to `tried` has not been; None: no such."""
        return self._choices.pick_untried(tried, now, options)

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
            what = "no instance became ready" if self._known else self._why_silent()
            raise local_error(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"deadline passed while waiting for service {self.service!r}: {what}",
            ) from None

    def _why_none(self, subset: str | None) -> str:
        if not self._known:
            return (
                f"nothing is known of service {self.service!r}: {self._why_silent()} "
                f"(waited {ANSWER_WITHIN:.0f} s; the log may say more)"
            )
        if subset is not None:
            return self._choices.why_nobody_in(subset)
        if self._endpoints:
            return f"every instance of service {self.service!r} is draining"
        if self._skipped is not None:
            return f"no instance of service {self.service!r} can be used; {self._skipped}"
        return f"service {self.service!r} has no instances in the registry"

    def _why_silent(self) -> str:
        cause = self._watch.why_silent() if isinstance(self._watch, _Explaining) else None
        return cause or "the registry has not answered"

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        is_first, self._known = not self._known, True
        self._skipped = None
        current: dict[str, Endpoint] = {}
        for instance in snapshot.instances:
            if instance.id in current:
                continue  # a record that stands there twice must not open a second connection
            endpoint = self._endpoints.get(instance.id)
            if endpoint is not None and endpoint.holds(instance):
                endpoint.instance = instance
                current[instance.id] = endpoint
            elif (made := self._make_endpoint(instance)) is not None:
                current[instance.id] = made
                if not is_first:  # the first ones have been there, for all that is known
                    self._warm_up(made)
        for id_, endpoint in self._endpoints.items():
            if current.get(id_) is not endpoint:
                self.outliers.remove(endpoint.health)
                self._retire(endpoint)
        self._endpoints = current
        self._rebuild()

    def _make_endpoint(self, instance: Instance) -> Endpoint | None:
        decay = self.table.policy.balancer.decay
        try:
            endpoint = Endpoint(instance, self._dialing, self, decay=decay)
        except Exception as error:  # noqa: BLE001 - one bad record must not cost the others
            _log.warning("instance %s of %s skipped: %s", instance.id, self.service, error)
            self._skipped = f"instance {instance.id} was skipped: {error}"
            return None
        self.outliers.add(endpoint.health)
        return endpoint

    def _retire(self, endpoint: Endpoint) -> None:
        task = asyncio.create_task(endpoint.close(CLOSE_GRACE), context=contextvars.Context())
        self._retiring[task] = endpoint
        task.add_done_callback(lambda _: self._retiring.pop(task))

    def pick(
        self, now: float, options: CallOptions = NOTHING_SAID, *, repeatable: bool = False
    ) -> Endpoint | None:
        """Return a ready endpoint at once; None when there is none just now.

        `repeatable`: the call would be tried elsewhere if this attempt failed.
        """
        if self._ejections.has_probes():
            subset = options.subset
            probed = self._ejections.take_probe(
                now, lambda each: self._choices.is_in(subset, each), repeatable=repeatable
            )
            if probed is not None:
                return probed
        return self._choices.pick(now, options)

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
        self._rebuild_soon()

    def on_admission(self, endpoint: Endpoint) -> None:
        """Take note that an endpoint was ejected, or is back."""
        if endpoint.health.admission is Admission.ADMITTED:
            self._warm_up(endpoint)
        self._ejections.admission_changed(endpoint, self.clock.now())

    def _warm_up(self, endpoint: Endpoint) -> None:
        endpoint.warm_up(self.clock.now(), self.table.policy.slow_start.window)

    def _rebuild_soon(self) -> None:
        """Rebuild before the loop waits again, once for all states that changed by then."""
        # One by one, a thousand connections coming up would mean a thousand pickers of a
        # thousand, and each would wake every call that waits.
        if not self._is_stale:
            self._is_stale = True
            self.loop.call_soon(self._rebuild)

    def _rebuild(self) -> None:
        self._is_stale = False
        now = self.clock.now()
        active = tuple(
            endpoint
            for endpoint in self._endpoints.values()
            if endpoint.instance.state is State.ACTIVE
        )
        self._choices.replace(active, now)
        self._ejections.offer(active, now)
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits for a change look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

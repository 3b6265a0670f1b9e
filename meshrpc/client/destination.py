"""A destination: one service as this process calls it.

Here the registry, the policy and the balancer meet: registry snapshots become endpoints, the
ready ones among them a picker, the policy a table by method. All of it changes off the hot
path, by replacing one reference; a call only reads.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Collection, Coroutine
from typing import Any

import grpc
import grpc.aio

from meshrpc.balancer import Picker, create_balancer
from meshrpc.balancer.peak_ewma import TwoChoicesPicker
from meshrpc.client.endpoint import FAILING, READY, Dialing, Endpoint
from meshrpc.clock import Clock
from meshrpc.policy.model import EffectivePolicy
from meshrpc.policy.table import PolicyTable
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.registry import Registry, Snapshot, Watch
from meshrpc.resilience.retry_budget import RetryBudget

CLOSE_GRACE = 30.0
"""Seconds that calls under way get to end when their instance leaves the registry."""

ANSWER_WITHIN = 5.0
"""Seconds that a call waits for the registry's first answer, if its deadline allows. Only while
nothing at all is known: later outages of the registry cost no call anything."""

_PICKS = 3
"""Picks that may hit an endpoint whose connection broke since the picker was made."""

_HOPE = (READY, grpc.ChannelConnectivity.CONNECTING, grpc.ChannelConnectivity.IDLE, FAILING)
"""Connectivity of a whole is that of its best part, as in gRPC's load balancing policies."""

_log = logging.getLogger("meshrpc.client")


def local_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """Return the error of a call that this client ended without sending it."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details, details)


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
        self.budget = RetryBudget(policy.retry_budget, clock.now())
        self._dialing = dialing
        self._balancer = create_balancer(policy.balancer, rng)
        self._endpoints: dict[str, Endpoint] = {}
        self._picker: Picker[Endpoint] | None = None
        self._ready: tuple[Endpoint, ...] = ()
        self._known = False
        self._skipped: str | None = None
        """Why the registry's newest answer has an instance that is not among the endpoints."""
        self._changed = asyncio.Event()
        self._watch: Watch | None = None
        self._retiring: dict[asyncio.Task[None], Endpoint] = {}
        self._waiting: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return (
            f"<Destination {self.service} endpoints={len(self._endpoints)} "
            f"ready={len(self._ready)}>"
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints, ready or not."""
        return tuple(self._endpoints.values())

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
        before, self.table = self.table.policy, PolicyTable(policy)
        self.budget.configure(policy.retry_budget, self.clock.now())
        if policy.balancer != before.balancer:
            self._balancer = create_balancer(policy.balancer, self.rng)
            for endpoint in self._endpoints.values():
                endpoint.set_decay(policy.balancer.decay)
            self._rebuild()

    def state(self) -> grpc.ChannelConnectivity:
        """Return the most hopeful state among the endpoints; IDLE while none is known."""
        states = {endpoint.state for endpoint in self._endpoints.values()}
        return next((state for state in _HOPE if state in states), grpc.ChannelConnectivity.IDLE)

    async def changed(self) -> None:
        """Return when the endpoints, or the state of one, have changed."""
        await self._changed.wait()

    def pick(self, now: float) -> Endpoint | None:
        """Return a ready endpoint at once; None when there is none just now."""
        picker = self._picker
        if picker is None:
            return None
        for _ in range(_PICKS):
            endpoint = picker.pick(now)
            if endpoint.is_ready():
                return endpoint
        return next((endpoint for endpoint in self._ready if endpoint.is_ready()), None)

    async def wait_for_endpoint(
        self, deadline: float | None, *, wait_for_ready: bool, tried: Collection[Endpoint] = ()
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
            endpoint = self._pick_untried(tried, now) or self.pick(now)
            if endpoint is not None:
                return endpoint
            if not wait_for_ready and not self._known and now >= gives_up:
                raise local_error(grpc.StatusCode.UNAVAILABLE, self._why_none())
            if not wait_for_ready and self._known:
                active = [e for e in self.endpoints if e.instance.state is State.ACTIVE]
                if not active:
                    raise local_error(grpc.StatusCode.UNAVAILABLE, self._why_none())
                failing = [e for e in active if e.state is FAILING]
                if len(failing) == len(active):
                    # An attempt on one of them ends at once and tells the real cause.
                    return self.rng.choice([e for e in failing if e not in tried] or failing)
            is_asking = not self._known and not wait_for_ready
            await self._wait_for_change(deadline, gives_up if is_asking else None)

    def _pick_untried(self, tried: Collection[Endpoint], now: float) -> Endpoint | None:
        """Return the less loaded of two untried endpoints, whatever the balancer.

        The balancer itself is left alone: were retries to take turns of a round robin, every
        call after a failed one could begin at the same bad endpoint again.
        """
        untried = [e for e in self._ready if e not in tried and e.is_ready()] if tried else ()
        return TwoChoicesPicker(tuple(untried), self.rng).pick(now) if untried else None

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
            what = "no instance became ready" if self._known else "the registry has not answered"
            raise local_error(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"deadline passed while waiting for service {self.service!r}: {what}",
            ) from None

    def _why_none(self) -> str:
        if not self._known:
            return (
                f"nothing is known of service {self.service!r}: the registry has not answered "
                f"within {ANSWER_WITHIN:.0f} s (the log says why)"
            )
        if self._endpoints:
            return f"every instance of service {self.service!r} is draining"
        if self._skipped is not None:
            return f"no instance of service {self.service!r} can be used; {self._skipped}"
        return f"service {self.service!r} has no instances in the registry"

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        self._known = True
        self._skipped = None
        current: dict[str, Endpoint] = {}
        for instance in snapshot.instances:
            if instance.id in current:
                continue  # a record that stands there twice must not open a second connection
            endpoint = self._endpoints.get(instance.id)
            if endpoint is not None and endpoint.instance.address == instance.address:
                endpoint.instance = instance
                current[instance.id] = endpoint
            elif (made := self._make_endpoint(instance)) is not None:
                current[instance.id] = made
        for id_, endpoint in self._endpoints.items():
            if current.get(id_) is not endpoint:
                self._retire(endpoint)
        self._endpoints = current
        self._rebuild()

    def _make_endpoint(self, instance: Instance) -> Endpoint | None:
        decay = self.table.policy.balancer.decay
        try:
            return Endpoint(instance, self._dialing, decay=decay, on_state=self._rebuild)
        except (TypeError, ValueError) as error:
            _log.warning("instance %s of %s skipped: %s", instance.id, self.service, error)
            self._skipped = f"instance {instance.id} was skipped: {error}"
            return None

    def _retire(self, endpoint: Endpoint) -> None:
        task = asyncio.create_task(endpoint.close(CLOSE_GRACE), context=contextvars.Context())
        self._retiring[task] = endpoint
        task.add_done_callback(lambda _: self._retiring.pop(task))

    def _rebuild(self) -> None:
        self._ready = tuple(
            endpoint
            for endpoint in self._endpoints.values()
            if endpoint.state is READY and endpoint.instance.state is State.ACTIVE
        )
        self._picker = self._balancer.picker(self._ready) if self._ready else None
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits for a change look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

"""Delivery: who is subscribed, whose turn it is to be sent something, and who waits for whom.

`pushes` and `quota` decide, `content` has what is sent; this carries the decisions out under one
clock. It wakes the streams that may have something to write, ends what gathers, gives up on who does
not answer, and tells who waits until the callers of an instance have let go of it. How a message is
read and written on the wire is for `control_service`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, cast

import grpc

from meshrpc.clock import Clock
from meshrpc.control.content import Content
from meshrpc.control.pushes import ANSWER_WITHIN, ProcessState, Pushes
from meshrpc.control.quota import Quota
from meshrpc.control.quota_member import Holder
from meshrpc.control.store import Applied, PolicyStore
from meshrpc.control.stream import Stream
from meshrpc.control.subscriber import Kind, Process, Resource, Subscriber
from meshrpc.limits.shares import Claim
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.registry import LEASE

MAX_GRANT: Final = 1 << 63
"""Grants of one stream: as many as nobody is ever given, and the next number fits its field."""

_log = logging.getLogger(__name__)


class Delivery:
    """Subscribers, their streams, and what they are sent.

    Args:
        store: where policies are read; its changes are pushed.
        leases: where instances are read; whoever changes it calls `instances_changed`.
        clock: monotonic time.
        quota: who has which shares of rate limits; by default as of a control service that has
            just started.
    """

    def __init__(
        self,
        store: PolicyStore,
        leases: LeaseTable,
        *,
        clock: Clock,
        quota: Quota | None = None,
    ) -> None:
        self.content = Content(store, leases)
        self.pushes = Pushes()
        """Who is subscribed and how far each is; to be read only."""
        self.quota = quota or Quota(clock.now())
        """Who has which shares of rate limits over the fleet; to be read only."""
        self._clock = clock
        self._streams: dict[Subscriber, Stream] = {}
        self._due_changed = asyncio.Event()
        self._acknowledgements: dict[Resource, asyncio.Event] = {}
        self._is_stopping = False
        store.on_change = self._policies_changed

    def __repr__(self) -> str:
        return f"<Delivery {self.pushes!r}>"

    # One process and its stream.

    def join(self, process: Process) -> Subscriber:
        """Add a process whose stream has begun; it wants nothing yet."""
        subscriber = self.pushes.join(process, self._clock.now())
        self._streams[subscriber] = Stream()
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a process whose stream has ended, and let go of who waits for it."""
        self.quota.leave(self._streams.pop(subscriber))
        watched = tuple(subscriber.wants)
        self.pushes.leave(subscriber)
        self._dropped(watched)

    def stream(self, subscriber: Subscriber) -> Stream:
        """Return the stream of one that has joined."""
        return self._streams[subscriber]

    def want(
        self, subscriber: Subscriber, wanted: Sequence[Resource], held: Mapping[Resource, int]
    ) -> None:
        """Replace what the process wants; `held` are the versions it has from an earlier stream."""
        dropped = subscriber.wants.keys() - set(wanted)
        self.pushes.want(subscriber, {one: self.content.version(one) for one in wanted}, held)
        self._dropped(dropped)

    def answered(
        self,
        subscriber: Subscriber,
        nonce: str,
        refused: Mapping[tuple[Kind, str], str],
        ignored: Iterable[str],
    ) -> None:
        """Note what the process says of a push: what it refuses and why, which fields it ignores."""
        for (kind, name), reason in refused.items():
            _log.warning("%s refuses the %s of %s: %s", subscriber, kind, name, reason)
        taken = self.pushes.answered(
            subscriber, nonce, self._clock.now(), refused=refused, ignored=ignored
        )
        self._acknowledged(taken)

    def reported(self, subscriber: Subscriber, grant: int, claims: Sequence[Claim]) -> None:
        """Note which shares of rate limits the process wants and uses, as of a grant's number."""
        process, stream = subscriber.process, self._streams.get(subscriber)
        if stream is None or stream.has_ended or not process.instance:
            return  # whoever is nobody in particular cannot be told apart from others
        if grant > MAX_GRANT:
            stream.end(grpc.StatusCode.INVALID_ARGUMENT, "no grant has this number")
            return
        holder = Holder(process.namespace, process.service, process.instance)
        self.quota.report(holder, stream, grant, claims, self._clock.now())
        self._due_changed.set()

    def next_message(self, subscriber: Subscriber) -> bytes | None:
        """Return what to write to the process now, as it travels; None: nothing."""
        stream = self._streams[subscriber]
        if questions := stream.questions():
            return self.content.asking(questions)
        if (grant := stream.grant()) is not None:
            return self.content.giving(grant)
        push = self.pushes.next_push(subscriber, self.content.revision, self._clock.now())
        if push is not None:
            self._due_changed.set()
            return self.content.serialized(push)
        if self._is_stopping:
            stream.end(grpc.StatusCode.UNAVAILABLE, "the control service is stopping")
        return None

    def give_up(self, subscriber: Subscriber) -> None:
        """End the stream of a process that does not answer, or does not read."""
        stream = self._streams[subscriber]
        if stream.has_ended:
            return
        _log.warning("%s has not answered for %.0f s: given up", subscriber, ANSWER_WITHIN)
        stream.end(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"a push was not answered within {ANSWER_WITHIN:.0f} s",
        )

    # All of them.

    def find(self, namespace: str, instance: str) -> Subscriber | None:
        """Return the process that says it is this instance; of several, who came last."""
        return self.pushes.find(namespace, instance)

    def status(self, namespace: str) -> tuple[ProcessState, ...]:
        """Return how far each process of the namespace is."""
        return self.pushes.status(namespace, self.content.revision, self._clock.now())

    def instances_changed(self, namespace: str, service: str) -> None:
        """Push what the lease table now has of the service."""
        resource = Resource(Kind.INSTANCES, namespace, service)
        self._changed(resource, self.content.version(resource))

    def all_instances_changed(self) -> None:
        """Push what the lease table now has of every service."""
        for resource in self.pushes.wanted(Kind.INSTANCES):
            self._changed(resource, self.content.version(resource))

    async def until_acknowledged(self, namespace: str, service: str, within: float) -> bool:
        """Wait until all who watch the service have what the lease table has now.

        Returns False when that takes longer than `within` seconds.
        """
        resource = Resource(Kind.INSTANCES, namespace, service)
        version = self.content.version(resource)
        try:
            async with asyncio.timeout(within):
                while not self.pushes.acknowledged(namespace, service, version):
                    event = self._acknowledgements.setdefault(resource, asyncio.Event())
                    await event.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """End gatherings and give up on who does not answer, until cancelled."""
        while True:
            waits = (self.pushes.next_due(), self.content.next_due(), self.quota.next_due())
            due = min((one for one in waits if one is not None), default=None)
            self._due_changed.clear()
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(None if due is None else due - self._clock.now()):
                    await self._due_changed.wait()
            now = self._clock.now()
            self._wake(self.pushes.tick(now))
            for subscriber in self.pushes.overdue(now):
                self.give_up(subscriber)
            self.content.forget(now)
            for stream, grant in self.quota.grants(now):
                cast("Stream", stream).give(grant)
            for stream in self.quota.overdue():
                cast("Stream", stream).end(
                    grpc.StatusCode.DEADLINE_EXCEEDED, f"no word of its shares for {LEASE:.0f} s"
                )

    def stop(self) -> None:
        """End every stream; the processes keep what they know and come back later."""
        self._is_stopping = True
        self._wake(tuple(self._streams))

    def _policies_changed(self, namespace: str, applied: Applied) -> None:
        for service in applied.changed:
            self._changed(Resource(Kind.POLICY, namespace, service), applied.revision)

    def _changed(self, resource: Resource, version: int) -> None:
        self._wake(self.pushes.changed(resource, version, self._clock.now()))
        self._due_changed.set()

    def _wake(self, subscribers: Collection[Subscriber]) -> None:
        for subscriber in subscribers:
            self._streams[subscriber].wake.set()

    def _dropped(self, resources: Collection[Resource]) -> None:
        """Let go of what a subscriber no longer wants: nobody waits for its answer."""
        self._acknowledged(resources)
        now = self._clock.now()
        for resource in resources:
            if not self.pushes.is_wanted(resource):
                self.content.release(resource, now)
                self._due_changed.set()

    def _acknowledged(self, resources: Collection[Resource]) -> None:
        for resource in resources:
            event = self._acknowledgements.pop(resource, None)
            if event is not None:
                event.set()

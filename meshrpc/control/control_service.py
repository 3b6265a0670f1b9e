"""The gRPC face of the pushes: one `Subscribe` stream per process, and `Status`.

What goes out when is decided in `pushes`; this module carries it out. Each stream has two tasks:
the handler writes pushes, another reads what the process says. One more, for all, waits for what
gathers and for answers that do not come.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator, Collection
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from meshrpc.clock import Clock
from meshrpc.control.instance_sets import InstanceSets
from meshrpc.control.pushes import ANSWER_WITHIN, Pushes, State
from meshrpc.control.refusals import name_problem
from meshrpc.control.store import Applied, PolicyStore
from meshrpc.control.subscriber import Kind, Process, Push, Resource, Subscriber
from meshrpc.registry.leases import LeaseTable
from meshrpc.v1 import control_pb2, control_pb2_grpc

DEFAULT_NAMESPACE: Final = "default"

_KINDS = {
    control_pb2.Refusal.KIND_POLICY: Kind.POLICY,
    control_pb2.Refusal.KIND_INSTANCES: Kind.INSTANCES,
}
_STATES = {
    State.SYNCED: control_pb2.ProcessStatus.STATE_SYNCED,
    State.PENDING: control_pb2.ProcessStatus.STATE_PENDING,
    State.REFUSED: control_pb2.ProcessStatus.STATE_REFUSED,
}

_log = logging.getLogger(__name__)


class ControlService(control_pb2_grpc.ControlServicer):
    """Subscribers and what they are sent.

    Args:
        store: where policies are read; its changes are pushed.
        leases: where instances are read; whoever changes it calls `instances_changed`.
        clock: monotonic time.
    """

    def __init__(self, store: PolicyStore, leases: LeaseTable, *, clock: Clock) -> None:
        self._store = store
        self._leases = leases
        self._clock = clock
        self._pushes = Pushes()
        self._streams: dict[Subscriber, _Stream] = {}
        self._due_changed = asyncio.Event()
        self._acknowledgements: dict[Resource, asyncio.Event] = {}
        self._is_stopping = False
        self._instance_sets = InstanceSets(leases)
        store.on_change = self._policies_changed

    def __repr__(self) -> str:
        return f"<ControlService {self._pushes!r}>"

    @property
    def pushes(self) -> Pushes:
        """Who is subscribed and how far each is."""
        return self._pushes

    async def Subscribe(
        self, request_iterator: AsyncIterator[control_pb2.SubscribeRequest], context: Any
    ) -> None:
        """Push to one process until it goes, stops answering, or this service stops."""
        # Before anything else: this is how the process knows that it is connected.
        await context.send_initial_metadata(())
        requests = aiter(request_iterator)
        process = await self._hello(requests, context)
        subscriber = self._pushes.join(process, self._clock.now())
        stream = self._streams[subscriber] = _Stream()
        reader = asyncio.create_task(
            self._read(requests, subscriber, stream),
            name=f"meshrpc reader of {process.instance}",
            context=contextvars.Context(),
        )
        try:
            await self._write(context, subscriber, stream)
        finally:
            reader.cancel()
            del self._streams[subscriber]
            watched = tuple(subscriber.wants)
            self._pushes.leave(subscriber)
            self._dropped(watched)
            # Last: it may be cancelled, and a subscriber left behind would hold up every drain.
            await asyncio.wait([reader])
        if stream.why_ended is not None:
            await context.abort(*stream.why_ended)

    async def _hello(
        self, requests: AsyncIterator[control_pb2.SubscribeRequest], context: Any
    ) -> Process:
        first = None
        with contextlib.suppress(TimeoutError, DecodeError):
            async with asyncio.timeout(ANSWER_WITHIN):
                first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "hello" or not first.hello.service:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "the first message is a hello with a service"
            )
            raise AssertionError  # abort raises
        hello = first.hello
        for name in ("namespace", "service", "instance", "version", "library"):
            if problem := name_problem(name, getattr(hello, name), is_optional=True):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        return Process(
            namespace=hello.namespace or DEFAULT_NAMESPACE,
            service=hello.service,
            instance=hello.instance,
            version=hello.version or None,
            pid=hello.pid or None,
            library=hello.library,
            accepts_differences=hello.accepts_differences,
        )

    async def _write(self, context: Any, subscriber: Subscriber, stream: _Stream) -> None:
        while not stream.has_ended:
            push = self._pushes.next_push(subscriber, self._store.revision, self._clock.now())
            if push is None:
                stream.wake.clear()
                if self._is_stopping:
                    stream.end(grpc.StatusCode.UNAVAILABLE, "the control service is stopping")
                    return
                await stream.wake.wait()
                continue
            self._due_changed.set()
            try:
                # A process that does not read blocks this only once its window is full.
                async with asyncio.timeout(ANSWER_WITHIN):
                    await context.write(self._encode(push))
            except TimeoutError:
                self._give_up(subscriber)
            except (grpc.aio.BaseError, asyncio.InvalidStateError):
                stream.end()  # the connection is gone

    async def _read(
        self,
        requests: AsyncIterator[control_pb2.SubscribeRequest],
        subscriber: Subscriber,
        stream: _Stream,
    ) -> None:
        try:
            async for request in requests:
                self._hear(subscriber, request)
                stream.wake.set()
        except (grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # the connection is gone
        except DecodeError:
            _log.warning("%s sent what is no message of this protocol", subscriber)
            stream.end(grpc.StatusCode.INVALID_ARGUMENT, "this is no message of this protocol")
        except Exception:  # noqa: BLE001 - one bad stream harms no other
            _log.exception("what %s says cannot be taken", subscriber)
            stream.end(grpc.StatusCode.INTERNAL, "this message cannot be taken")
        finally:
            stream.end()

    def _hear(self, subscriber: Subscriber, request: control_pb2.SubscribeRequest) -> None:
        match request.WhichOneof("message"):
            case "interest":
                namespace = subscriber.process.namespace
                interest = request.interest
                wanted = [Resource(Kind.POLICY, namespace, name) for name in interest.policies]
                wanted += [Resource(Kind.INSTANCES, namespace, name) for name in interest.instances]
                dropped = subscriber.wants.keys() - set(wanted)
                self._pushes.want(subscriber, {one: self._version(one) for one in wanted})
                self._dropped(dropped)
            case "acknowledgement":
                answer = request.acknowledgement
                refused = {
                    (_KINDS[one.kind], one.name): one.reason
                    for one in answer.refused
                    if one.kind in _KINDS
                }
                for (kind, name), reason in refused.items():
                    _log.warning("%s refuses the %s of %s: %s", subscriber, kind, name, reason)
                taken = self._pushes.answered(
                    subscriber,
                    answer.nonce,
                    self._clock.now(),
                    refused=refused,
                    ignored=answer.ignored,
                )
                self._acknowledged(taken)

    async def Status(
        self, request: control_pb2.StatusRequest, _context: Any
    ) -> control_pb2.StatusResponse:
        """Return how far each process of the namespace is."""
        revision = self._store.revision
        namespace = request.namespace or DEFAULT_NAMESPACE
        rows = self._pushes.status(namespace, revision, self._clock.now())
        return control_pb2.StatusResponse(
            revision=revision,
            processes=[
                control_pb2.ProcessStatus(
                    service=row.process.service,
                    instance=row.process.instance,
                    version=row.process.version or "",
                    revision=row.revision,
                    state=_STATES[row.state],
                    reason=row.reason,
                    age_seconds=row.age,
                    pid=row.process.pid or 0,
                    library=row.process.library,
                )
                for row in rows
            ],
        )

    def instances_changed(self, namespace: str, service: str) -> None:
        """Push what the lease table now has of the service."""
        resource = Resource(Kind.INSTANCES, namespace, service)
        self._changed(resource, self._version(resource))

    async def until_acknowledged(self, namespace: str, service: str, within: float) -> bool:
        """Wait until all who watch the service have what the lease table has now.

        Returns False when that takes longer than `within` seconds.
        """
        version = self._leases.version(namespace, service)
        resource = Resource(Kind.INSTANCES, namespace, service)
        try:
            async with asyncio.timeout(within):
                while not self._pushes.acknowledged(namespace, service, version):
                    event = self._acknowledgements.setdefault(resource, asyncio.Event())
                    await event.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """End gatherings and give up on who does not answer, until cancelled."""
        while True:
            due = self._pushes.next_due()
            self._due_changed.clear()
            waking = asyncio.ensure_future(self._due_changed.wait())
            try:
                wait = None if due is None else max(0.0, due - self._clock.now())
                await asyncio.wait([waking], timeout=wait)
            finally:
                waking.cancel()
            now = self._clock.now()
            self._wake(self._pushes.tick(now))
            for subscriber in self._pushes.overdue(now):
                self._give_up(subscriber)

    def stop(self) -> None:
        """End every stream; the processes keep what they know and come back later."""
        self._is_stopping = True
        self._wake(tuple(self._streams))

    def _give_up(self, subscriber: Subscriber) -> None:
        if self._streams[subscriber].has_ended:
            return
        _log.warning("%s has not answered for %.0f s: given up", subscriber, ANSWER_WITHIN)
        self._streams[subscriber].end(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"a push was not answered within {ANSWER_WITHIN:.0f} s",
        )

    def _policies_changed(self, namespace: str, applied: Applied) -> None:
        for service in applied.changed:
            self._changed(Resource(Kind.POLICY, namespace, service), applied.revision)

    def _changed(self, resource: Resource, version: int) -> None:
        self._wake(self._pushes.changed(resource, version, self._clock.now()))
        self._due_changed.set()

    def _wake(self, subscribers: Collection[Subscriber]) -> None:
        for subscriber in subscribers:
            self._streams[subscriber].wake.set()

    def _dropped(self, resources: Collection[Resource]) -> None:
        """Let go of what a subscriber no longer wants: nobody waits for its answer."""
        self._acknowledged(resources)
        for resource in resources:
            if resource.kind is Kind.INSTANCES and not self._pushes.is_wanted(resource):
                self._instance_sets.forget(resource.namespace, resource.name)

    def _acknowledged(self, resources: Collection[Resource]) -> None:
        for resource in resources:
            event = self._acknowledgements.pop(resource, None)
            if event is not None:
                event.set()

    def _version(self, resource: Resource) -> int:
        source = self._store if resource.kind is Kind.POLICY else self._leases
        return source.version(resource.namespace, resource.name)

    def _encode(self, push: Push) -> control_pb2.Push:
        message = control_pb2.Push(nonce=push.nonce, revision=push.revision)
        for resource in push.resources:
            namespace, name = resource.namespace, resource.name
            if resource.kind is Kind.POLICY:
                stored = self._store.get(namespace, name)
                message.policies.add(
                    namespace=namespace,
                    service=name,
                    revision=self._store.version(namespace, name),
                    document="" if stored is None else stored.document,
                )
            else:
                base = push.bases.get(resource, 0)
                message.instances.append(self._instance_sets.newest(namespace, name, base))
        return message


class _Stream:
    """The waking of one handler, and why it is to end."""

    __slots__ = ("has_ended", "wake", "why_ended")

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.has_ended = False
        self.why_ended: tuple[grpc.StatusCode, str] | None = None

    def end(self, code: grpc.StatusCode | None = None, details: str = "") -> None:
        if not self.has_ended and code is not None:
            self.why_ended = (code, details)
        self.has_ended = True
        self.wake.set()

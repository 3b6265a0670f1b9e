"""The gRPC face of the pushes: one `Subscribe` stream per process, `View` and `Status`.

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
from typing import Any, Final, cast

import grpc
from google.protobuf.message import DecodeError

from meshrpc.clock import Clock
from meshrpc.control.content import Content
from meshrpc.control.pushes import ANSWER_WITHIN, ProcessState, Pushes, State
from meshrpc.control.quota import Quota
from meshrpc.control.quota_member import Holder
from meshrpc.control.refusals import details, name_problem
from meshrpc.control.store import Applied, PolicyStore
from meshrpc.control.stream import Stream, StreamEnded
from meshrpc.control.subscriber import Kind, Process, Resource, Subscriber
from meshrpc.limits.shares import Claim
from meshrpc.registry.leases import LeaseTable
from meshrpc.registry.registry import LEASE
from meshrpc.v1 import control_pb2

DEFAULT_NAMESPACE: Final = "default"
MAX_CLAIMS: Final = 20_000
"""Buckets of which one process may say what it wants: memory is bounded, whoever it is."""
MAX_GRANT: Final = 1 << 63
"""Grants of one stream: as many as nobody is ever given, and the next number fits its field."""
VIEW_WITHIN: Final = 5.0
"""Seconds that a process has to say what it makes of a service."""

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


class ControlService:
    """Subscribers and what they are sent.

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
        self._content = Content(store, leases)
        self._clock = clock
        self._pushes = Pushes()
        self.quota = quota or Quota(clock.now())
        """Who has which shares of rate limits over the fleet; to be read only."""
        self._streams: dict[Subscriber, Stream] = {}
        self._due_changed = asyncio.Event()
        self._acknowledgements: dict[Resource, asyncio.Event] = {}
        self._is_stopping = False
        store.on_change = self._policies_changed

    def __repr__(self) -> str:
        return f"<ControlService {self._pushes!r}>"

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve `meshrpc.v1.Control` there.

        By hand, not by the generated function: the pushes are serialised already.
        """
        handlers: dict[str, Any] = {
            "Subscribe": grpc.stream_stream_rpc_method_handler(
                self.Subscribe, request_deserializer=control_pb2.SubscribeRequest.FromString
            ),
            "View": grpc.unary_unary_rpc_method_handler(
                self.View,
                request_deserializer=control_pb2.ViewRequest.FromString,
                response_serializer=control_pb2.ViewResponse.SerializeToString,
            ),
            "Status": grpc.unary_unary_rpc_method_handler(
                self.Status,
                request_deserializer=control_pb2.StatusRequest.FromString,
                response_serializer=control_pb2.StatusResponse.SerializeToString,
            ),
        }
        name = control_pb2.DESCRIPTOR.services_by_name["Control"].full_name
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

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
        stream = self._streams[subscriber] = Stream()
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
            self.quota.leave(stream)
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

    async def _write(self, context: Any, subscriber: Subscriber, stream: Stream) -> None:
        while not stream.has_ended:
            message = self._next_message(subscriber, stream)
            if message is None:
                stream.wake.clear()
                if self._is_stopping:
                    stream.end(grpc.StatusCode.UNAVAILABLE, "the control service is stopping")
                    return
                await stream.wake.wait()
                continue
            try:
                # A process that does not read blocks this only once its window is full.
                async with asyncio.timeout(ANSWER_WITHIN):
                    await context.write(message)
            except TimeoutError:
                self._give_up(subscriber)
            except (grpc.aio.BaseError, asyncio.InvalidStateError):
                stream.end()  # the connection is gone

    def _next_message(self, subscriber: Subscriber, stream: Stream) -> bytes | None:
        if questions := stream.questions():
            return self._content.asking(questions)
        if (grant := stream.grant()) is not None:
            return self._content.giving(grant)
        push = self._pushes.next_push(subscriber, self._content.revision, self._clock.now())
        if push is None:
            return None
        self._due_changed.set()
        return self._content.serialized(push)

    async def _read(
        self,
        requests: AsyncIterator[control_pb2.SubscribeRequest],
        subscriber: Subscriber,
        stream: Stream,
    ) -> None:
        try:
            async for request in requests:
                self._hear(subscriber, stream, request)
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

    def _hear(
        self, subscriber: Subscriber, stream: Stream, request: control_pb2.SubscribeRequest
    ) -> None:
        match request.WhichOneof("message"):
            case "interest":
                self._interested(subscriber, request.interest)
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
            case "answer":
                stream.answered(request.answer)
            case "quota":
                self._reported(subscriber, stream, request.quota)

    def _interested(self, subscriber: Subscriber, interest: control_pb2.Interest) -> None:
        namespace = subscriber.process.namespace
        wanted = [Resource(Kind.POLICY, namespace, name) for name in interest.policies]
        wanted += [Resource(Kind.INSTANCES, namespace, name) for name in interest.instances]
        held = {}
        if interest.epoch == self._content.epoch:
            held = {
                Resource(Kind.INSTANCES, namespace, name): version
                for name, version in interest.held.items()
            }
        dropped = subscriber.wants.keys() - set(wanted)
        self._pushes.want(subscriber, {one: self._content.version(one) for one in wanted}, held)
        self._dropped(dropped)

    def _reported(
        self, subscriber: Subscriber, stream: Stream, report: control_pb2.QuotaReport
    ) -> None:
        process = subscriber.process
        if stream.has_ended or not process.instance:
            return  # whoever is nobody in particular cannot be told apart from others
        if report.grant > MAX_GRANT:
            stream.end(grpc.StatusCode.INVALID_ARGUMENT, "no grant has this number")
            return
        claims = [
            Claim(one.limit, one.key, one.demand, one.share, one.is_granted)
            for one in report.claims[:MAX_CLAIMS]
        ]
        holder = Holder(process.namespace, process.service, process.instance)
        self.quota.report(holder, stream, report.grant, claims, self._clock.now())
        self._due_changed.set()

    async def View(
        self, request: control_pb2.ViewRequest, context: Any
    ) -> control_pb2.ViewResponse:
        """Ask a connected process what it makes of a service's instances."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        subscriber = self._pushes.find(namespace, request.instance)
        who = f"process {request.instance!r}"
        if subscriber is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                details(
                    f"no {who} is connected in namespace {namespace!r}; "
                    "`meshrpc status` lists those that are"
                ),
            )
            raise AssertionError  # abort raises
        try:
            async with asyncio.timeout(VIEW_WITHIN):
                return await self._streams[subscriber].ask(request.service)
        except TimeoutError:
            why = (
                f"{who} has not answered within {VIEW_WITHIN:.0f} s: it hangs, "
                f"or its release ({subscriber.process.library or 'unknown'}) cannot be asked"
            )
        except StreamEnded:
            why = f"{who} has just gone"
        await context.abort(grpc.StatusCode.UNAVAILABLE, details(why))
        raise AssertionError  # abort raises

    async def Status(
        self, request: control_pb2.StatusRequest, _context: Any
    ) -> control_pb2.StatusResponse:
        """Return how far each process of the namespace is."""
        revision = self._content.revision
        namespace = request.namespace or DEFAULT_NAMESPACE
        rows = self._pushes.status(namespace, revision, self._clock.now())
        return control_pb2.StatusResponse(revision=revision, processes=map(_to_wire, rows))

    def instances_changed(self, namespace: str, service: str) -> None:
        """Push what the lease table now has of the service."""
        resource = Resource(Kind.INSTANCES, namespace, service)
        self._changed(resource, self._content.version(resource))

    def all_instances_changed(self) -> None:
        """Push what the lease table now has of every service."""
        for resource in self._pushes.wanted(Kind.INSTANCES):
            self._changed(resource, self._content.version(resource))

    async def until_acknowledged(self, namespace: str, service: str, within: float) -> bool:
        """Wait until all who watch the service have what the lease table has now.

        Returns False when that takes longer than `within` seconds.
        """
        resource = Resource(Kind.INSTANCES, namespace, service)
        version = self._content.version(resource)
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
            waits = (self._pushes.next_due(), self._content.next_due(), self.quota.next_due())
            due = min((one for one in waits if one is not None), default=None)
            self._due_changed.clear()
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(None if due is None else due - self._clock.now()):
                    await self._due_changed.wait()
            now = self._clock.now()
            self._wake(self._pushes.tick(now))
            for subscriber in self._pushes.overdue(now):
                self._give_up(subscriber)
            self._content.forget(now)
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
        now = self._clock.now()
        for resource in resources:
            if not self._pushes.is_wanted(resource):
                self._content.release(resource, now)
                self._due_changed.set()

    def _acknowledged(self, resources: Collection[Resource]) -> None:
        for resource in resources:
            event = self._acknowledgements.pop(resource, None)
            if event is not None:
                event.set()


def _to_wire(row: ProcessState) -> control_pb2.ProcessStatus:
    return control_pb2.ProcessStatus(
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

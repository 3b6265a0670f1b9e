"""The gRPC face of the delivery: one `Subscribe` stream per process, `View` and `Status`.

Each stream has two tasks: the handler writes what `delivery` has for the process, another reads what
the process says and hands it on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from meshrpc.control.delivery import Delivery
from meshrpc.control.pushes import ANSWER_WITHIN, ProcessState, State
from meshrpc.control.refusals import details, name_problem
from meshrpc.control.stream import Stream, StreamEnded
from meshrpc.control.subscriber import Kind, Process, Resource, Subscriber
from meshrpc.limits.shares import Claim
from meshrpc.server.context import DecodingError
from meshrpc.v1 import control_pb2

DEFAULT_NAMESPACE: Final = "default"
MAX_CLAIMS: Final = 20_000
"""Buckets of which one process may say what it wants: memory is bounded, whoever it is."""
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
    """What processes and commands ask of the delivery.

    Args:
        delivery: who is subscribed, and what each is sent.
    """

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    def __repr__(self) -> str:
        return f"<ControlService {self._delivery.pushes!r}>"

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

    async def Subscribe(
        self, request_iterator: AsyncIterator[control_pb2.SubscribeRequest], context: Any
    ) -> None:
        """Push to one process until it goes, stops answering, or this service stops."""
        # Before anything else: this is how the process knows that it is connected.
        await context.send_initial_metadata(())
        requests = aiter(request_iterator)
        process = await self._hello(requests, context)
        subscriber = self._delivery.join(process)
        stream = self._delivery.stream(subscriber)
        reader = asyncio.create_task(
            self._read(requests, subscriber, stream),
            name=f"meshrpc reader of {process.instance}",
            context=contextvars.Context(),
        )
        try:
            await self._write(context, subscriber, stream)
        finally:
            reader.cancel()
            self._delivery.leave(subscriber)
            # Last: it may be cancelled, and a subscriber left behind would hold up every drain.
            await asyncio.wait([reader])
        if stream.why_ended is not None:
            await context.abort(*stream.why_ended)

    async def _hello(
        self, requests: AsyncIterator[control_pb2.SubscribeRequest], context: Any
    ) -> Process:
        first = None
        with contextlib.suppress(TimeoutError, DecodingError):
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
            stream.wake.clear()
            message = self._delivery.next_message(subscriber)
            if message is None:
                await stream.wake.wait()
                continue
            try:
                # A process that does not read blocks this only once its window is full.
                async with asyncio.timeout(ANSWER_WITHIN):
                    await context.write(message)
            except TimeoutError:
                self._delivery.give_up(subscriber)
            except (grpc.aio.BaseError, asyncio.InvalidStateError):
                stream.end()  # the connection is gone

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
        except DecodingError:
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
                self._delivery.answered(subscriber, answer.nonce, refused, answer.ignored)
            case "answer":
                stream.answered(request.answer)
            case "quota":
                self._reported(subscriber, request.quota)

    def _interested(self, subscriber: Subscriber, interest: control_pb2.Interest) -> None:
        namespace = subscriber.process.namespace
        wanted = [Resource(Kind.POLICY, namespace, name) for name in interest.policies]
        wanted += [Resource(Kind.INSTANCES, namespace, name) for name in interest.instances]
        held = {}
        if interest.epoch == self._delivery.content.epoch:
            held = {
                Resource(Kind.INSTANCES, namespace, name): version
                for name, version in interest.held.items()
            }
        self._delivery.want(subscriber, wanted, held)

    def _reported(self, subscriber: Subscriber, report: control_pb2.QuotaReport) -> None:
        claims = [
            Claim(one.limit, one.key, one.demand, one.share, one.is_granted)
            for one in report.claims[:MAX_CLAIMS]
        ]
        self._delivery.reported(subscriber, report.grant, claims)

    async def View(
        self, request: control_pb2.ViewRequest, context: Any
    ) -> control_pb2.ViewResponse:
        """Ask a connected process what it makes of a service's instances."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        subscriber = self._delivery.find(namespace, request.instance)
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
                return await self._delivery.stream(subscriber).ask(request.service)
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
        rows = self._delivery.status(request.namespace or DEFAULT_NAMESPACE)
        return control_pb2.StatusResponse(
            revision=self._delivery.content.revision, processes=map(_to_wire, rows)
        )


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

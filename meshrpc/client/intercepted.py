"""Calls through the user's interceptors: grpcio's own kind, on the endpoints' channels.

An interceptor runs once per attempt and sees what it would see on a bare channel: messages instead
of bytes, and the user's metadata. What the mesh adds to a call comes in beneath all of them, so that
one that replaces the metadata cannot lose it. Calls of a kind that nobody intercepts take none of
this way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from meshrpc.client.method import Method
from meshrpc.metadata import checked
from meshrpc.wire import Metadata

_log = logging.getLogger("meshrpc.client")

_ADDED: ContextVar[Metadata] = ContextVar("meshrpc_added_metadata")
"""What the mesh adds to the call that is being started: grpcio runs interceptors in a task, which
has a copy of the context in which the call was started."""


@contextmanager
def adding(metadata: Metadata) -> Iterator[None]:
    """Have calls started in this block carry `metadata` beneath their interceptors."""
    token = _ADDED.set(metadata)
    try:
        yield
    finally:
        _ADDED.reset(token)


class InterceptedMethod(Method):
    """A method whose calls are intercepted: grpcio gets its messages as they are.

    They are turned into bytes beneath the interceptors, which may change or make messages.
    """

    intercepted = True

    def serialize(self, message: Any) -> Any:
        """Return the message itself; what its serialiser raises, this raises."""
        super().serialize(message)
        return message

    def deserialize(self, data: Any) -> Any:
        """Return the message itself.

        Raises:
            grpc.aio.AioRpcError: INTERNAL, the bytes that came were none.
        """
        if isinstance(data, _Unreadable):
            raise data.error
        return data

    def multicallable(self, channel: grpc.aio.Channel, kind: str) -> Callable[..., Any]:
        """Return grpcio's multicallable of this method."""
        made: Callable[..., Any] = getattr(channel, kind)(self.path, self._send, self._receive)
        return made

    def _send(self, message: Any) -> Any:
        try:
            return super().serialize(message)
        except Exception as error:  # noqa: BLE001 - grpcio would send an empty message instead
            _log.warning("%s: an interceptor made what cannot be sent: %r", self.path, error)
            return UnsendableMessage()

    def _receive(self, data: bytes) -> Any:
        try:
            return super().deserialize(data)
        except grpc.aio.AioRpcError as error:
            return _Unreadable(error)


class UnsendableMessage:
    """Stands for the bytes of what an interceptor made; grpcio refuses it with a TypeError."""


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for a message whose bytes could not be read; grpcio would have None."""

    error: grpc.aio.AioRpcError


def _beneath(details: Any) -> grpc.aio.ClientCallDetails:
    given = details.metadata
    return grpc.aio.ClientCallDetails(
        details.method,
        details.timeout,
        grpc.aio.Metadata(*(checked(given) if given else ()), *_ADDED.get()),
        details.credentials,
        None,  # the call has waited for an endpoint to be ready, or goes on waiting for another
    )


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_beneath(details), request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_beneath(details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(_beneath(details), requests)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(_beneath(details), requests)


_KINDS = (
    ("unary_unary", grpc.aio.UnaryUnaryClientInterceptor, _UnaryUnary()),
    ("unary_stream", grpc.aio.UnaryStreamClientInterceptor, _UnaryStream()),
    ("stream_unary", grpc.aio.StreamUnaryClientInterceptor, _StreamUnary()),
    ("stream_stream", grpc.aio.StreamStreamClientInterceptor, _StreamStream()),
)
"""In the order in which grpcio asks which kind an interceptor is of: it runs for the first alone."""


def intercepted_kinds(interceptors: Sequence[grpc.aio.ClientInterceptor]) -> frozenset[str]:
    """Return the kinds of call (`unary_unary`, ...) that any of the interceptors is run for."""
    return frozenset(map(_kind, interceptors))


def _kind(interceptor: grpc.aio.ClientInterceptor) -> str:
    for kind, interface, _ in _KINDS:
        if isinstance(interceptor, interface):
            return kind
    raise ValueError(f"interceptor {interceptor!r} is none of grpc.aio's client interceptors")


def with_beneath(
    interceptors: Sequence[grpc.aio.ClientInterceptor],
) -> tuple[grpc.aio.ClientInterceptor, ...]:
    """Return the interceptors with the mesh's own beneath those of each kind.

    Raises:
        ValueError: an interceptor is none.
    """
    kinds = intercepted_kinds(interceptors)
    return (*interceptors, *(own for kind, _, own in _KINDS if kind in kinds))

"""Running a handler over bytes, with grpcio's own interceptors next to it.

One function for every arity and shape: it decodes the request, or each one of a stream, runs the
handler, and encodes what it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from meshrpc.interceptors.compose import status_of
from meshrpc.interceptors.method_handler import Behavior, Handler, behavior_of, is_async
from meshrpc.interceptors.sync_handler import SyncHandlers
from meshrpc.server.context import CallContext, RequestStream
from meshrpc.wire import Metadata

Serve = Callable[[Any, CallContext], Awaitable[Any]]
"""Takes what grpcio read, bytes or a stream of them; returns the bytes of a single response."""


def served(handler: Handler) -> Serve:
    """Return what decodes, runs the handler and encodes, for its arity and shape."""
    behavior = behavior_of(handler)
    decoder, encoder = handler.request_deserializer, handler.response_serializer
    if handler.response_streaming:
        respond = _generated(behavior) if is_async(behavior, generator=True) else behavior
    else:
        respond = _encoded(behavior)
    streams_in, streams_out = handler.request_streaming, handler.response_streaming

    async def serve(request: Any, context: CallContext) -> Any:
        context.decoder, context.encoder = decoder, encoder
        if streams_out:
            context.writing = asyncio.Lock()
        message = RequestStream(request, context) if streams_in else context.decode(request)
        return await respond(message, context)

    return serve


async def _nobody(_requests: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


NOBODY: Handler = grpc.stream_stream_rpc_method_handler(_nobody)
"""Stands for the handler of a method that has none: interceptors may still answer it."""


def intercepted(
    method: str,
    handler: Handler,
    interceptors: tuple[grpc.aio.ServerInterceptor, ...],
    sync_handlers: SyncHandlers,
) -> Serve:
    """Serve through grpcio's own interceptors, which choose the handler for each call."""
    latest: tuple[Handler, Serve] = (handler, served(handler))
    innermost = None if handler is NOBODY else handler

    async def choose(index: int, details: grpc.HandlerCallDetails) -> Handler | None:
        if index == len(interceptors):
            return innermost

        async def continuation(details: grpc.HandlerCallDetails) -> Handler | None:
            return await choose(index + 1, details)

        return await interceptors[index].intercept_service(continuation, details)

    async def serve(request: Any, context: CallContext) -> Any:
        nonlocal latest
        chosen = await choose(0, _Details(method, context.invocation_metadata()))
        if chosen is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        if chosen is not latest[0]:
            fitting = _fitted(served(sync_handlers.adapt(method, chosen)), method, chosen, handler)
            latest = chosen, fitting
        return await latest[1](request, context)

    return serve


def _fitted(serve: Serve, method: str, chosen: Handler, handler: Handler) -> Serve:
    """Serve streams with a handler that knows one message only.

    Interceptors that refuse calls commonly have one such handler for every method, which aborts.
    """
    reads_one = bool(handler.request_streaming and not chosen.request_streaming)
    writes_one = bool(handler.response_streaming and not chosen.response_streaming)
    if (chosen.request_streaming and not handler.request_streaming) or (
        chosen.response_streaming and not handler.response_streaming
    ):
        raise TypeError(f"an interceptor answers {method} with a handler of streams")
    if not reads_one and not writes_one:
        return serve

    async def fitted(request: Any, context: CallContext) -> Any:
        if reads_one:
            request = await anext(aiter(request), b"")
        response = await serve(request, context)
        if writes_one and status_of(context) is grpc.StatusCode.OK:
            await context.write_encoded(response)
            return None
        return response

    return fitted


def _encoded(behavior: Behavior) -> Serve:
    async def respond(request: Any, context: CallContext) -> bytes:
        response = await behavior(request, context)
        if status_of(context) is not grpc.StatusCode.OK:
            return b""  # grpcio sends no message beside an error
        return context.encode(response)

    return respond


def _generated(behavior: Behavior) -> Serve:
    async def respond(request: Any, context: CallContext) -> None:
        async with contextlib.aclosing(behavior(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return respond


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str, invocation_metadata: Metadata) -> None:
        self.method = method
        self.invocation_metadata = invocation_metadata

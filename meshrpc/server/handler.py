"""All methods of a server in one table, each handler wrapped once, with a guard outermost.

grpcio asks one generic handler, because methods registered one by one cost every call something
for each of them. Around each handler stands a guard that always answers: an exception becomes a
status without its text, and a `CancelledError` that the client did not cause becomes UNAVAILABLE,
where grpcio would never answer at all. Messages are encoded and decoded here, after the concerns
have had their say: refusing a call must not cost decoding it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import grpc

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.interceptors.compose import ServerInterceptor, compose, status_of
from meshrpc.interceptors.method_handler import (
    Behavior,
    Handler,
    behavior_of,
    is_async,
    is_infrastructure,
    with_behavior,
)
from meshrpc.interceptors.server_call import CURRENT
from meshrpc.interceptors.sync_handler import SyncHandlers
from meshrpc.server.context import CallContext, DecodingError, EncodingError, RequestStream
from meshrpc.wire import DRAIN, Metadata, split_method

_LOG = logging.getLogger("meshrpc.server")
_Serve = Callable[[Any, CallContext], Awaitable[Any]]

# Wrapped handlers of methods that only a generic handler of the user's knows; see `_ask`.
_MOST_DYNAMIC_METHODS = 4096

_LEAVING: Metadata = ((DRAIN, "1"),)


class ActiveCalls:
    """The calls being handled; those that outlast the grace are told that the server leaves."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_cut = False

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"<ActiveCalls {len(self)}{' cut' if self.is_cut else ''}>"

    def start(self) -> asyncio.Task[Any]:
        """Count the running task as a call."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - grpcio runs each call in a task
        self._tasks.add(task)
        return task

    def finish(self, task: asyncio.Task[Any]) -> None:
        """Stop counting it."""
        self._tasks.discard(task)

    def cut(self) -> None:
        """End every call still running with UNAVAILABLE and `mesh-drain`."""
        self.is_cut = True
        for task in self._tasks:
            task.cancel("the server is leaving")


class HandlerTable(grpc.GenericRpcHandler):
    """Everything a server answers."""

    def __init__(self, sync_handlers: SyncHandlers | None = None) -> None:
        self._sync_handlers = sync_handlers or SyncHandlers()
        self._registered: dict[str, Handler] = {}
        self._generic: dict[str, Handler] = {}
        self._dynamic: list[grpc.GenericRpcHandler] = []
        self._wrap: Callable[[str, Handler], Handler] | None = None
        self._wrapped: dict[str, Handler] = {}
        self._asked: dict[str, tuple[Handler, Handler]] = {}

    def __repr__(self) -> str:
        return f"<HandlerTable {len(self.methods)} methods>"

    @property
    def methods(self) -> Mapping[str, Handler]:
        """Handlers as registered, by `/pkg.Service/Method`."""
        return {**self._generic, **self._registered}

    @property
    def services(self) -> tuple[str, ...]:
        """Names of the gRPC services registered, sorted."""
        return tuple(sorted({split_method(method)[0] for method in self.methods}))

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Register generic handlers, as all generated code does."""
        for handler in handlers:
            # What grpc.method_handlers_generic_handler makes is a dictionary; read, it can be
            # checked now and wrapped once. Any other kind is asked about each call.
            known = getattr(handler, "_method_handlers", None)
            if not isinstance(known, dict):
                self._dynamic.append(handler)
                continue
            for method, method_handler in known.items():
                adapted = self._sync_handlers.adapt(method, method_handler)
                self._generic.setdefault(method, adapted)  # grpcio asks in order: first wins

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Register methods by name, as newer generated code does as well."""
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._registered[method] = self._sync_handlers.adapt(method, handler)

    def copy(self) -> HandlerTable:
        """Return a table with the same handlers, to which more can be added."""
        table = HandlerTable(self._sync_handlers)
        table._registered = dict(self._registered)
        table._generic = dict(self._generic)
        table._dynamic = list(self._dynamic)
        return table

    def wrap(
        self,
        concerns: Sequence[ServerInterceptor] = (),
        *,
        inner: Sequence[grpc.aio.ServerInterceptor] = (),
        active: ActiveCalls | None = None,
        infrastructure: ActiveCalls | None = None,
        draining: asyncio.Event | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Put guard and concerns round every handler: from now on this table answers.

        `inner` are grpcio's own kind of interceptor. They run next to the handler, under the
        guard, and see messages as they would on a bare server. Calls are counted in `active`,
        those of health checks and reflection in `infrastructure`.
        """
        guard = _Guard(
            ActiveCalls() if active is None else active, tuple(inner), self._sync_handlers
        )
        bare_guard = _Guard(
            ActiveCalls() if infrastructure is None else infrastructure, (), self._sync_handlers
        )

        def wrap(method: str, handler: Handler) -> Handler:
            outermost = bare_guard if is_infrastructure(method) else guard
            guarded = outermost.around(method, handler)
            return compose(method, guarded, concerns, draining=draining, clock=clock)

        self._wrap = wrap
        self._wrapped = {method: wrap(method, handler) for method, handler in self.methods.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the wrapped handler of a method; how grpcio asks."""
        method = handler_call_details.method
        return self._wrapped.get(method) or self._ask(method, handler_call_details)

    def _ask(self, method: str, details: grpc.HandlerCallDetails) -> Handler | None:
        for generic in self._dynamic:
            handler = generic.service(details)
            if handler is None:
                continue
            known = self._asked.get(method)
            if known is not None and known[0] is handler:
                return known[1]
            assert self._wrap is not None  # noqa: S101 - grpcio asks after start
            wrapped = self._wrap(method, self._sync_handlers.adapt(method, handler))
            if len(self._asked) >= _MOST_DYNAMIC_METHODS:
                self._asked.clear()
            self._asked[method] = (handler, wrapped)
            return wrapped
        return None


class _Guard:
    def __init__(
        self,
        active: ActiveCalls,
        inner: tuple[grpc.aio.ServerInterceptor, ...],
        sync_handlers: SyncHandlers,
    ) -> None:
        self._active = active
        self._inner = inner
        self._sync_handlers = sync_handlers

    def around(self, method: str, handler: Handler) -> Handler:
        """Return the handler over bytes, as a coroutine whatever its shape was.

        One shape, because grpcio writes a generator's messages outside of it: there, nobody
        would notice that the client went away.
        """
        serve = self._intercepted(method, handler) if self._inner else _serve(handler)
        active = self._active

        async def guarded(request: Any, raw: Any) -> Any:
            context = CallContext(raw, CURRENT.get())
            task = active.start()
            try:
                return await serve(request, context)
            except grpc.aio.AbortError as error:
                if error is context.aborted:
                    raise
                await self._answer(method, error, context, task)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the client gets an answer
                await self._answer(method, error, context, task)
            finally:
                active.finish(task)

        return with_behavior(handler, guarded, raw=True)

    async def _answer(
        self,
        method: str,
        error: BaseException,
        context: CallContext,
        task: asyncio.Task[Any],
    ) -> NoReturn:
        if context.aborted is not None:
            # The handler turned abort's exception into another one; the status is sent already.
            raise context.aborted
        if isinstance(error, asyncio.CancelledError):
            if self._active.is_cut:
                task.uncancel()
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is leaving", _LEAVING)
            if task.cancelling():
                context.was_cancelled = True
                raise error
            # Something the handler awaited was cancelled. Without an answer the client would
            # wait for its deadline, or for ever.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "call interrupted")
        if not isinstance(error, Exception):
            raise error
        if isinstance(error, DecodingError):
            # INTERNAL is what gRPC's table of status codes says for a request that cannot be
            # parsed, and what grpcio's synchronous server answers.
            _LOG.warning("%s: %s: %s", method, error, error.__cause__)
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        if task.cancelling() and isinstance(error, grpc.aio.InternalError):
            raise error  # writing to a client that has gone
        status = status_of(context)
        if status is grpc.StatusCode.UNIMPLEMENTED and isinstance(error, NotImplementedError):
            # What generated base classes do for methods nobody has written.
            await context.abort(status, context.details() or "")
        number = secrets.token_hex(4)
        _LOG.error("%s: internal error %s", method, number, exc_info=error)
        call = CURRENT.get()
        if call is not None and call.span is not None:
            call.span.record_exception(error)
        if status is not grpc.StatusCode.OK:
            await context.abort(status, context.details() or f"internal error {number}")
        text = f"internal error {number}"
        if isinstance(error, grpc.aio.AioRpcError):
            text += f": nested call failed: {error.code().name}"
        elif isinstance(error, EncodingError):
            text += f": {error}"
        await context.abort(grpc.StatusCode.INTERNAL, text)

    def _intercepted(self, method: str, handler: Handler) -> _Serve:
        """Serve through grpcio's own interceptors, which choose the handler for each call."""
        latest: tuple[Handler, _Serve] = (handler, _serve(handler))

        async def choose(index: int, details: grpc.HandlerCallDetails) -> Handler | None:
            if index == len(self._inner):
                return handler

            async def continuation(details: grpc.HandlerCallDetails) -> Handler | None:
                return await choose(index + 1, details)

            return await self._inner[index].intercept_service(continuation, details)

        async def serve(request: Any, context: CallContext) -> Any:
            nonlocal latest
            chosen = await choose(0, _Details(method, context.invocation_metadata()))
            if chosen is None:
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            if chosen is not latest[0]:
                if _arity(chosen) != _arity(handler):
                    raise TypeError(f"an interceptor changed the arity of {method}")
                latest = chosen, _serve(self._sync_handlers.adapt(method, chosen))
            return await latest[1](request, context)

        return serve


def _serve(handler: Handler) -> _Serve:
    """Return what decodes, runs the handler and encodes, for its arity and shape."""
    behavior = behavior_of(handler)
    decoder, encoder = handler.request_deserializer, handler.response_serializer
    if handler.response_streaming:
        respond = _generated(behavior) if is_async(behavior, generator=True) else behavior
    else:
        respond = _encoded(behavior)
    streams_in = handler.request_streaming

    async def serve(request: Any, context: CallContext) -> Any:
        context.decoder, context.encoder = decoder, encoder
        message = RequestStream(request, context) if streams_in else context.decode(request)
        return await respond(message, context)

    return serve


def _encoded(behavior: Behavior) -> _Serve:
    async def respond(request: Any, context: CallContext) -> bytes:
        response = await behavior(request, context)
        if status_of(context) is not grpc.StatusCode.OK:
            return b""  # grpcio sends no message beside an error
        return context.encode(response)

    return respond


def _generated(behavior: Behavior) -> _Serve:
    async def respond(request: Any, context: CallContext) -> None:
        async with contextlib.aclosing(behavior(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return respond


def _arity(handler: Handler) -> tuple[bool, bool]:
    return bool(handler.request_streaming), bool(handler.response_streaming)


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str, invocation_metadata: Metadata) -> None:
        self.method = method
        self.invocation_metadata = invocation_metadata

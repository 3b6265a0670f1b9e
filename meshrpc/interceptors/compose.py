"""Server-side concerns, and how they come round a handler.

A concern has two hooks: `begin` sees a call before its handler and may refuse it, or have it wait,
`end` sees how it came out, whatever the way out was. `compose` puts several of them round a
handler once per method, for every arity and both shapes of a streaming handler, so that a call
costs a few function calls and no further task. Each concern is an ordinary grpcio server
interceptor too: alone on a bare `grpc.aio.server` it composes itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.interceptors.chain_stop import stopped
from meshrpc.interceptors.draining import Draining
from meshrpc.interceptors.method_handler import (
    Behavior,
    Handler,
    behavior_of,
    is_async,
    with_behavior,
)
from meshrpc.interceptors.server_call import CURRENT, ServerCall
from meshrpc.interceptors.sync_handler import SyncHandlers, threads_of
from meshrpc.wire import Metadata

_LOG = logging.getLogger("meshrpc.server")

# Wrapped handlers kept by a concern used alone. A server has few methods; a proxy that answers to
# any name must not fill memory, so past this the table starts anew, without the longest names.
_MOST_METHODS = 4096
_LONGEST_NAME = 256

_CODES = {code.value[0]: code for code in grpc.StatusCode}

_Wait = tuple[int, Awaitable[None]]
"""The concern, by its place, for which a call has to wait."""


class Refused(Exception):
    """Raised by `begin`: the call ends here with this status, and its handler never runs."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: Metadata = ()) -> None:
        self.code = code
        self.details = details
        self.trailers = trailers
        super().__init__(f"{code.name}: {details}")


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Base of the mesh's server-side concerns. Override what the concern needs.

    Hooks run on the event loop, in the task of the call, and must not block.
    """

    def __init__(self) -> None:
        self._composed: dict[str, tuple[Handler, Handler]] = {}
        self._sync_handlers: SyncHandlers | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def applies_to(self, method: str) -> bool:  # noqa: ARG002 - for those that override it
        """Whether this concern has anything to do with `/pkg.Service/Method`; asked once."""
        return True

    def begin(self, call: ServerCall) -> Awaitable[None] | None:
        """See a call before its handler; raise `Refused` to end it.

        To have it wait, return what is to be awaited, which may raise `Refused` as well. A call
        that is cancelled meanwhile was not begun by this concern, and will not be ended by it.
        """

    def end(self, call: ServerCall, code: grpc.StatusCode) -> None:
        """See how a call that this concern began came out; must not raise."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Put this concern alone round the handler; how grpcio calls an interceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        known = self._composed.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        if self._sync_handlers is None:
            self._sync_handlers = SyncHandlers()
        adapted = self._sync_handlers.adapt(method, handler)
        composed = compose(method, adapted, (self,), threads=threads_of(adapted), alone=True)
        if len(method) <= _LONGEST_NAME:
            if len(self._composed) >= _MOST_METHODS:
                self._composed.clear()
            self._composed[method] = (handler, composed)
        return composed


def compose(
    method: str,
    handler: Handler,
    interceptors: Sequence[ServerInterceptor],
    *,
    draining: Draining | None = None,
    clock: Clock = SYSTEM_CLOCK,
    threads: int = 0,
    alone: bool = False,
) -> Handler:
    """Return `handler` with the concerns round it, the first one outermost; its shape stays.

    The handler must be asynchronous. It runs with `current_call()` set. `draining` is the event
    that its calls show. `threads`: one of so many runs it (`threads_of`). `alone`: its context is grpcio's own, whose `abort` knows nothing of the
    trailers that concerns add.
    """
    around = _Around(
        method,
        tuple(concern for concern in interceptors if concern.applies_to(method)),
        Draining() if draining is None else draining,
        clock,
        is_stream=bool(handler.request_streaming or handler.response_streaming),
        threads=threads,
        alone=alone,
    )
    behavior = behavior_of(handler)
    # Fewer cases than it seems: whether requests stream makes no difference here.
    if handler.response_streaming and not is_async(behavior, generator=False):
        return with_behavior(handler, around.generator(behavior))
    return with_behavior(handler, around.coroutine(behavior))


def status_of(context: Any) -> grpc.StatusCode:
    """Return the status that a handler set or aborted with; OK when it did neither."""
    code = context.code()
    if code is None:
        return grpc.StatusCode.OK
    if isinstance(code, grpc.StatusCode):
        return code
    return _CODES.get(code, grpc.StatusCode.UNKNOWN)


class _Around:
    """The concerns of one method, and the two shapes in which they come round its handler."""

    def __init__(
        self,
        method: str,
        concerns: tuple[ServerInterceptor, ...],
        draining: Draining,
        clock: Clock,
        *,
        is_stream: bool,
        threads: int,
        alone: bool,
    ) -> None:
        self._method = method
        self._is_stream = is_stream
        self._threads = threads
        self._concerns = concerns
        self._draining = draining
        self._clock = clock
        self._alone = alone

    def coroutine(self, behavior: Behavior) -> Behavior:
        """Wrap a handler that is one coroutine: unary responses, and streams it writes itself."""

        async def call_handler(request: Any, context: Any) -> Any:
            call = self._arrive(context)
            obstacle = self._begin(call)
            if obstacle is not None:
                await self._overcome(context, call, obstacle)
            early = self._set_early(context, call)
            code = grpc.StatusCode.UNKNOWN
            try:
                response = await behavior(request, context)
                code = status_of(context)
            except BaseException as error:
                code = _status_of_failure(error, context)
                raise
            finally:
                if call.dependency_failed or call.has_trailers:
                    _set_trailers(context, call, code, early)
                self._end(call, code, self._concerns)
            return response

        return call_handler

    def generator(self, behavior: Behavior) -> Behavior:
        """Wrap a handler that is an async generator.

        grpcio writes each message outside of the generator, and drops the generator where it
        stands when the client goes away: its `finally` runs whenever it is collected. The
        context's done callback comes at once, so whichever is first ends the call.
        """

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            call = self._arrive(context)
            obstacle = self._begin(call)
            if obstacle is not None:
                await self._overcome(context, call, obstacle)
            early = self._set_early(context, call)
            open_calls = [call]

            def end(code: grpc.StatusCode) -> None:
                if open_calls:
                    self._end(open_calls.pop(), code, self._concerns)

            context.add_done_callback(lambda _context: end(grpc.StatusCode.CANCELLED))
            try:
                async with contextlib.aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        yield response
            except BaseException as error:
                code = _status_of_failure(error, context)
                raise
            else:
                code = status_of(context)
            finally:
                if call.dependency_failed or call.has_trailers:
                    _set_trailers(context, call, code, early)
                end(code)

        return stream

    def _arrive(self, context: Any) -> ServerCall:
        call = ServerCall(
            self._method,
            context.invocation_metadata() or (),
            is_stream=self._is_stream,
            threads=self._threads,
            timeout=context.time_remaining(),
            draining=self._draining,
            clock=self._clock,
        )
        CURRENT.set(call)
        return call

    def _begin(self, call: ServerCall, first: int = 0) -> _Wait | Refused | None:
        for index, concern in enumerate(self._concerns[first:] if first else self._concerns, first):
            try:
                waiting = concern.begin(call)
            except Exception as error:  # noqa: BLE001 - without an answer the client would wait
                return self._refusal(call, index, error)
            if waiting is not None:
                return index, waiting
        return None

    async def _overcome(self, context: Any, call: ServerCall, obstacle: _Wait | Refused) -> None:
        """Wait for as long as concerns want it, and begin the rest; or refuse the call."""
        while not isinstance(obstacle, Refused):
            index, waiting = obstacle
            try:
                await waiting
            except Exception as error:  # noqa: BLE001 - as above
                obstacle = self._refusal(call, index, error)
                continue
            except BaseException:
                self._end(call, grpc.StatusCode.CANCELLED, self._concerns[:index])
                raise
            further = self._begin(call, index + 1)
            if further is None:
                return
            obstacle = further
        await context.abort(obstacle.code, obstacle.details, call.with_trailers(obstacle.trailers))
        raise obstacle  # abort never returns

    def _refusal(self, call: ServerCall, index: int, error: Exception) -> Refused:
        """End what was begun before concern number `index` has refused the call, or failed."""
        if isinstance(error, Refused):
            refusal = error
        else:
            _LOG.error(
                "%r failed at the beginning of %s",
                *(self._concerns[index], call.method),
                exc_info=error,
            )
            refusal = Refused(grpc.StatusCode.INTERNAL, "internal error")
        call.is_refused = True
        self._end(call, refusal.code, self._concerns[:index])
        return refusal

    def _set_early(self, context: Any, call: ServerCall) -> Metadata:
        """Set what concerns send where the handler's `abort` would send what is set by then."""
        if not (self._alone and call.has_trailers):
            return ()
        early = call.with_trailers(())
        context.set_trailing_metadata(early)
        return early

    @staticmethod
    def _end(
        call: ServerCall, code: grpc.StatusCode, concerns: tuple[ServerInterceptor, ...]
    ) -> None:
        for concern in reversed(concerns):
            try:
                concern.end(call, code)
            except Exception:  # noqa: BLE001 - what watches a call must not change it
                _LOG.exception("%r failed at the end of %s", concern, call.method)


def _set_trailers(context: Any, call: ServerCall, code: grpc.StatusCode, early: Metadata) -> None:
    # Too late for an abort, which sends the trailers at once: `CallContext` sees to that.
    trailers: Metadata = context.trailing_metadata() or ()
    if early:
        trailers = tuple(pair for pair in trailers if pair not in early)
    if call.dependency_failed and code is not grpc.StatusCode.OK:
        trailers = stopped(trailers)
    context.set_trailing_metadata(call.with_trailers(trailers))


def _status_of_failure(error: BaseException, context: Any) -> grpc.StatusCode:
    # InternalError: grpcio could not write. The client has gone, and the cancellation is due.
    if isinstance(error, (asyncio.CancelledError, GeneratorExit, grpc.aio.InternalError)):
        return grpc.StatusCode.CANCELLED
    code = status_of(context)
    # As grpcio answers: the status that was set, or UNKNOWN for an exception without one.
    return grpc.StatusCode.UNKNOWN if code is grpc.StatusCode.OK else code

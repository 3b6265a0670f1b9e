"""The outermost wrapper of a handler, which always answers.

An exception becomes a status, without its text unless that was meant for callers
(`error_mapping.py`), and a `CancelledError` that the client did not
cause becomes UNAVAILABLE, where grpcio would never answer at all.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any, NoReturn

import grpc

from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.interceptors.compose import status_of
from meshrpc.interceptors.method_handler import Handler, with_behavior
from meshrpc.interceptors.server_call import CURRENT
from meshrpc.interceptors.sync_handler import SyncHandlers
from meshrpc.log_rate import LogRate
from meshrpc.server.active_calls import ActiveCalls
from meshrpc.server.context import CallContext, DecodingError, EncodingError, sendable
from meshrpc.server.error_mapping import ErrorMapping
from meshrpc.server.execution import intercepted, served
from meshrpc.server.rich_status import shortened, trailers_of
from meshrpc.wire import DRAIN, Metadata

_LOG = logging.getLogger("meshrpc.server")

_LEAVING: Metadata = ((DRAIN, "1"),)


class Guard:
    """Serves over bytes, counts the calls, and answers for handlers that do not."""

    def __init__(
        self,
        active: ActiveCalls,
        inner: tuple[grpc.aio.ServerInterceptor, ...],
        sync_handlers: SyncHandlers,
        errors: ErrorMapping,
    ) -> None:
        self._active = active
        self._errors = errors
        self._log_rate = LogRate()
        self._inner = inner
        self._sync_handlers = sync_handlers

    def around(self, method: str, handler: Handler) -> Handler:
        """Return the handler over bytes, as a coroutine whatever its shape was.

        One shape, because grpcio writes a generator's messages outside of it: there, nobody
        would notice that the client went away.
        """
        serve = served(handler)
        if self._inner:
            serve = intercepted(method, handler, self._inner, self._sync_handlers)
        active = self._active

        async def guarded(request: Any, raw: Any) -> Any:
            context = CallContext(raw, CURRENT.get())
            task = active.start(method)
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
        if context.was_cancelled or context.has_status or isinstance(error, GeneratorExit):
            raise error  # nobody is left to answer, or it is answered, or nothing to answer with
        call = CURRENT.get()
        if isinstance(error, asyncio.CancelledError):
            if self._active.is_cut:
                task.uncancel()
                if call is not None:
                    call.dependency_failed = False  # this is no fault further down
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is leaving", _LEAVING)
            # Cancelled by the client most likely, and then this ends here. Otherwise something
            # that the handler awaited was, or the handler itself: without an answer the client
            # would wait for its deadline, or for ever.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "call interrupted")
        if isinstance(error, DecodingError):
            # INTERNAL is what gRPC's table of status codes says for a request that cannot be
            # parsed, and what grpcio's synchronous server answers.
            left_out = self._log_rate.allows(method, SYSTEM_CLOCK.now())
            if left_out is not None:
                more = f" (and {left_out} before)" if left_out else ""
                _LOG.warning("%s: %s: %s%s", method, error, error.__cause__, more)
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        status = status_of(context)
        meaning = self._errors.meaning(error, call)
        if meaning is not None and (status is grpc.StatusCode.OK or meaning is error):
            text = shortened(sendable(meaning.message))
            await context.abort(meaning.code, text, trailers_of(meaning, text))
        if status is grpc.StatusCode.UNIMPLEMENTED and isinstance(error, NotImplementedError):
            # What generated base classes do for methods nobody has written.
            await context.abort(status, context.details() or "")
        if isinstance(error, grpc.aio.InternalError):
            # Writing failed, as it does when the client goes before grpcio has noticed: then this
            # fails too, and there is nothing to log.
            await context.abort(grpc.StatusCode.INTERNAL, "the response could not be sent")
        number = secrets.token_hex(4)
        _LOG.error("%s: internal error %s", method, number, exc_info=error)
        if call is not None and call.span is not None:
            call.span.record_exception(error)
        text = f"internal error {number}"
        if status is not grpc.StatusCode.OK:
            text = context.details() or text
        elif isinstance(error, grpc.aio.AioRpcError):
            text += f": nested call failed: {error.code().name}"
        elif isinstance(error, EncodingError):
            text += f": {error}"
        try:
            await context.abort(
                grpc.StatusCode.INTERNAL if status is grpc.StatusCode.OK else status, text
            )
        except grpc.aio.AbortError:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise error from None  # they mean the program, which ends once the caller knows
            raise

"""All methods of a server in one table, each handler wrapped once, with a guard outermost.

grpcio asks one generic handler, because methods registered one by one cost every call something
for each of them. Around each handler stands a guard that always answers: an exception becomes a
status without its text, and a `CancelledError` that the client did not cause becomes UNAVAILABLE,
where grpcio would never answer at all. Messages are encoded and decoded here, after the concerns
have had their say: refusing a call must not cost decoding it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import grpc

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.interceptors.compose import ServerInterceptor, compose, status_of
from meshrpc.interceptors.method_handler import Handler, is_infrastructure, with_behavior
from meshrpc.interceptors.server_call import CURRENT
from meshrpc.interceptors.sync_handler import SyncHandlers
from meshrpc.server.context import CallContext, DecodingError, EncodingError
from meshrpc.server.execution import NOBODY, intercepted, served
from meshrpc.wire import DRAIN, Metadata, split_method

_LOG = logging.getLogger("meshrpc.server")

# Wrapped handlers of methods that only a generic handler of the user's knows; see `_ask`.
_MOST_DYNAMIC_METHODS = 4096

_LEAVING: Metadata = ((DRAIN, "1"),)


class ActiveCalls:
    """The calls being handled; those that outlast the grace are told that the server leaves."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], str] = {}
        self.is_cut = False

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"<ActiveCalls {len(self)}{' cut' if self.is_cut else ''}>"

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of these calls, each once."""
        return tuple(sorted(set(self._tasks.values())))

    def start(self, method: str) -> asyncio.Task[Any]:
        """Count the running task as a call of `method`."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - grpcio runs each call in a task
        self._tasks[task] = method
        return task

    def finish(self, task: asyncio.Task[Any]) -> None:
        """Stop counting it."""
        self._tasks.pop(task, None)

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
        self._answers_unknown = False
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
        self._answers_unknown = bool(inner)  # grpcio runs them for methods nobody serves, too
        self._wrapped = {method: wrap(method, handler) for method, handler in self.methods.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the wrapped handler of a method; how grpcio asks."""
        method = handler_call_details.method
        found = self._wrapped.get(method) or self._ask(method, handler_call_details)
        if found is None and self._answers_unknown:
            assert self._wrap is not None  # noqa: S101 - grpcio asks after start
            return self._wrap(method, NOBODY)
        return found

    def _ask(self, method: str, details: grpc.HandlerCallDetails) -> Handler | None:
        assert self._wrap is not None  # noqa: S101 - grpcio asks after start
        for generic in self._dynamic:
            try:
                handler = generic.service(details)
                if handler is None:
                    continue
                known = self._asked.get(method)
                if known is not None and known[0] is handler:
                    return known[1]
                adapted = self._sync_handlers.adapt(method, handler)
            except Exception as error:  # noqa: BLE001 - grpcio would tell the caller all of it
                return self._wrap(method, _failing(error))
            wrapped = self._wrap(method, adapted)
            if len(self._asked) >= _MOST_DYNAMIC_METHODS:
                self._asked.clear()
            self._asked[method] = (handler, wrapped)
            return wrapped
        return None


def _failing(error: Exception) -> Handler:
    """Return a handler that raises `error` where the guard answers and logs it."""

    async def fail(_requests: Any, _context: Any) -> None:
        raise error

    return grpc.stream_stream_rpc_method_handler(fail)


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
        if context.was_cancelled or isinstance(error, GeneratorExit):
            raise error  # nobody is left to answer, or nothing to answer with
        if isinstance(error, asyncio.CancelledError):
            if self._active.is_cut:
                task.uncancel()
                call = CURRENT.get()
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
            _LOG.warning("%s: %s: %s", method, error, error.__cause__)
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        status = status_of(context)
        if status is grpc.StatusCode.UNIMPLEMENTED and isinstance(error, NotImplementedError):
            # What generated base classes do for methods nobody has written.
            await context.abort(status, context.details() or "")
        if isinstance(error, grpc.aio.InternalError):
            # Writing failed, as it does when the client goes before grpcio has noticed: then this
            # fails too, and there is nothing to log.
            await context.abort(grpc.StatusCode.INTERNAL, "the response could not be sent")
        number = secrets.token_hex(4)
        _LOG.error("%s: internal error %s", method, number, exc_info=error)
        call = CURRENT.get()
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

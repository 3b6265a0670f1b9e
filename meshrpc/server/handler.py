"""All methods of a server in one table, each handler wrapped once, with a guard outermost.

grpcio asks one generic handler, because methods registered one by one cost every call something
for each of them. Messages are encoded and decoded inside of the concerns: refusing a call must not
cost decoding it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.interceptors.compose import ServerInterceptor, compose
from meshrpc.interceptors.draining import Draining
from meshrpc.interceptors.method_handler import Handler, is_infrastructure
from meshrpc.interceptors.sync_handler import SyncHandlers, threads_of
from meshrpc.server.active_calls import ActiveCalls
from meshrpc.server.error_mapping import ErrorMapping
from meshrpc.server.execution import NOBODY
from meshrpc.server.guard import Guard
from meshrpc.server.request_arrival import RequestArrival
from meshrpc.wire import split_method

# Wrapped handlers of methods that only a generic handler of the user's knows; see `_ask`.
_MOST_DYNAMIC_METHODS = 4096
_LONGEST_METHOD = 256


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
        self._arrival: RequestArrival | None = None
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
        concerns: Sequence[ServerInterceptor] | None = (),
        *,
        inner: Sequence[grpc.aio.ServerInterceptor] = (),
        active: ActiveCalls | None = None,
        infrastructure: ActiveCalls | None = None,
        draining: Draining | None = None,
        clock: Clock = SYSTEM_CLOCK,
        errors: ErrorMapping | None = None,
        request_timeout: float | None = None,
    ) -> None:
        """Put guard and concerns round every handler: from now on this table answers.

        `concerns` None: no handler asks for its `current_call()`, so that calls need not have one.
        `inner` are grpcio's own kind of interceptor. They run next to the handler, under the
        guard, and see messages as they would on a bare server. Calls are counted in `active`,
        those of health checks and reflection in `infrastructure`. `request_timeout`: seconds
        until the one message of a call must have come; None: no bound.
        """
        mapping = errors or ErrorMapping()
        sync_handlers = self._sync_handlers
        # Not `or`: where no call is active, there is nothing in it yet.
        active = ActiveCalls() if active is None else active
        infrastructure = ActiveCalls() if infrastructure is None else infrastructure
        guard = Guard(active, tuple(inner), sync_handlers, mapping)
        bare_guard = Guard(infrastructure, (), sync_handlers, ErrorMapping())
        arrival = None if request_timeout is None else RequestArrival(request_timeout)
        self._arrival = arrival

        def wrap(method: str, handler: Handler) -> Handler:
            outermost = bare_guard if is_infrastructure(method) else guard
            guarded = outermost.around(method, handler)
            if concerns is not None:
                threads = threads_of(handler)
                guarded = compose(
                    method, guarded, concerns, draining=draining, clock=clock, threads=threads
                )
            return guarded if arrival is None else arrival.around(guarded)

        self._wrap = wrap
        self._answers_unknown = bool(inner)  # grpcio runs them for methods nobody serves, too
        self._wrapped = {method: wrap(method, handler) for method, handler in self.methods.items()}

    def cut(self) -> None:
        """End the calls whose request has not arrived, for the server is leaving."""
        if self._arrival is not None:
            self._arrival.cut()

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
            if len(method) > _LONGEST_METHOD:
                return wrapped  # a client may call by names of 16 KiB
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

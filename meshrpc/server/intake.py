"""Taking calls in: many at a time, where grpcio's server asks for one and waits.

Between one call and the next grpcio's accept loop takes some five turns of the event loop and a
round trip to another thread. While handlers compute, a turn is as long as a handler, so calls
queue up inside of grpc, for seconds, where nobody sees them, can choose among them, or notices that
their callers have gone. Here a server asks for as many calls as it has room for, up to `MOST`. What
comes waits in Python, where it is counted; and a call costs a third less CPU, because the loop does
not wait for each.

Who is served is not decided here (`interceptors/concurrency.py`), as long as all can be looked at.
Where even that is too much, which `fall_behind` says, there is room for half as many, until it is
enough: the oldest are let go of unanswered, and no more are asked for. Then grpc cancels what comes
(`grpc.server.max_pending_requests` in `options.py`), by chance, but for nothing, where to refuse a call costs as
much as to serve one. And the newest go first, since the oldest are waited for the least ("adaptive
LIFO", Maurer, "Fail at Scale", ACM Queue 2015).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio
from grpc._cython import cygrpc
from grpc.aio import _server as grpc_server

from meshrpc.server.method_name import readable

_LOG = logging.getLogger("meshrpc.server")

MOST: Final = 1_000
"""Calls that may come at once: as many as one connection may have under way."""
_OVERRIDDEN: Final = ("_request_call", "_start_shutting_down")
"""Of grpcio's server; `_make_request_call_future` came with 1.83."""
LEAST: Final = 8
"""Calls that may wait here in the worst of times."""
BEHIND: Final = 0.05
"""Seconds the oldest has waited when the newest go first."""


def create_server(
    handlers: Sequence[grpc.GenericRpcHandler], options: Sequence[tuple[str, Any]]
) -> tuple[grpc.aio.Server, Intake]:
    """Return a server of grpcio's and the intake that it has; use it in the running loop.

    With a grpcio that asks for calls in some other way than those that are known, it is grpcio's
    own server, and the intake stays empty.
    """
    # Not grpc.aio.server: OpenTelemetry's instrumentation replaces that name with a function
    # that adds its own interceptor, and every call would have two server spans.
    server: grpc.aio.Server
    replaced: Any = getattr(cygrpc, "AioServer", None)
    core = None if replaced is None else _core_of(replaced)
    if core is not None:
        # grpcio makes this object itself, and takes no other. Nothing else runs until it has.
        cygrpc.AioServer = core
        try:
            server = grpc_server.server(handlers=handlers, options=options)
        finally:
            cygrpc.AioServer = replaced
        made = getattr(server, "_server", None)
        if isinstance(made, core):
            return server, made.intake
    _LOG.warning(
        "grpcio %s takes calls in by ways of its own: in an overload fewer will be answered",
        grpc.__version__,
    )
    return grpc_server.server(handlers=handlers, options=options), Intake()


class Intake:
    """The calls that have been taken in and are not begun; `clock` gives real seconds."""

    def __init__(self, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self.dropped = 0
        """Calls let go of unanswered."""
        self.bound = most
        """Calls for which there is room at present."""
        self._most = most
        self._clock = clock
        self._calls: deque[tuple[float, Any]] = deque()
        self._wanted: asyncio.Future[Any] | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def __repr__(self) -> str:
        return f"<Intake waiting={len(self)} dropped={self.dropped}>"

    def add(self, call: Any) -> None:
        """Take a call in."""
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(call)
            self._wanted = None
            return
        self._calls.append((self._clock(), call))
        self._trim()

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits for a call."""
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_exception(error)
            self._wanted = None

    def next(self) -> asyncio.Future[Any]:
        """Return the next call, as a future: the oldest, or the newest where that is hopeless."""
        future = asyncio.get_running_loop().create_future()
        if not self._calls:
            self._wanted = future
            if self.bound < self._most:
                self.bound = min(self._most, self.bound + self.bound // 4)
        elif self._clock() - self._calls[0][0] > BEHIND:
            future.set_result(self._calls.pop()[1])
        else:
            future.set_result(self._calls.popleft()[1])
        return future

    def fall_behind(self) -> None:
        """Have fewer calls wait, unless they are few: more come than can be looked at."""
        if len(self) <= LEAST:
            return  # they are looked at soon enough
        self.bound = max(min(LEAST, self._most), min(self.bound, 2 * len(self)) // 2)
        self._trim()

    def drop_late(self) -> None:
        """Fall behind if the oldest has waited for long: nobody has the time to look at it."""
        if self._calls and self._clock() - self._calls[0][0] > BEHIND:
            self.fall_behind()

    def clear(self) -> None:
        """Let go of all."""
        self._calls.clear()

    def _trim(self) -> None:
        while len(self._calls) > self.bound:
            self._calls.popleft()
            self.dropped += 1


# To type checkers it has grpcio's methods, which is untyped; which class they are of is seen later.
_Base: Any = object


def _core_of(core: Any) -> Any:
    """Return grpcio's server with an intake; None where it has not the methods that this needs."""
    if not all(callable(getattr(core, name, None)) for name in _OVERRIDDEN):
        return None
    try:
        return type("_Server", (_Core, core), {})
    except TypeError:  # it can have no subclasses
        return None


class _Core(_Base):  # type: ignore[misc]  # untyped
    """What grpcio's server asks itself for calls by, put before its own methods."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.intake = Intake()
        self._asked = 0
        self._is_leaving = False
        self._is_readable = readable(self)

    def _make_request_call_future(self, method: bytes | None) -> Any:
        # grpcio from 1.83 on. Methods registered by name have a request of their own each.
        if method is not None:
            return super()._make_request_call_future(method)
        return self._next()

    async def _request_call(self) -> Any:
        # Before 1.83.
        return await self._next()

    async def _start_shutting_down(self) -> None:
        self._is_leaving = True
        # As grpc does with those it has not given out. It would wait for them otherwise.
        self.intake.clear()
        await super()._start_shutting_down()

    def _next(self) -> asyncio.Future[Any]:
        future = self.intake.next()
        self._ask_for_more()
        return future

    def _ask_for_more(self) -> None:
        for _ in range(self.intake.bound - len(self.intake) - self._asked):
            self._ask()

    def _ask(self) -> None:
        self._asked += 1
        self._go_on(super()._request_call(), None)

    def _go_on(self, request: Coroutine[Any, Any, Any], _: asyncio.Future[Any] | None) -> None:
        """Carry a request on, as a task would do.

        A task could be cancelled by whoever cancels all there are, and with it would go the memory
        that grpc is about to write the call to.
        """
        try:
            future = request.send(None)
        except StopIteration as stop:
            self._asked -= 1
            if not self._is_leaving:
                if self._is_readable(stop.value):
                    self.intake.add(stop.value)
                self._ask_for_more()
        except Exception as error:  # noqa: BLE001 - grpcio's loop knows what it means
            self._asked -= 1
            self.intake.fail(error)
        else:
            future._asyncio_future_blocking = False  # noqa: SLF001 - as a task says that it waits
            future.add_done_callback(partial(self._go_on, request))

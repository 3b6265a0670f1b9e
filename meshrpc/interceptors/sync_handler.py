"""Plain `def` handlers, run in a bounded pool of threads beside the event loop.

grpcio can run them too, but its `abort` waits across threads and can hang a stream, and it takes
an async callable object for one of them. Here they see a context of their own (`sync_context.py`),
and no thread waits for the loop to end a call. The handler sees the call's context variables,
in a copy. Streams from the client are refused: they would hold a thread for as long as they last.
When all threads are taken calls wait, and what nobody wants any more when its turn comes is not
run: in an overload, that work would be at the cost of calls which still can be answered.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from meshrpc.errors import SettingsError
from meshrpc.interceptors.method_handler import (
    Behavior,
    Handler,
    behavior_of,
    is_async,
    with_behavior,
)
from meshrpc.interceptors.sync_context import Aborted, SyncContext
from meshrpc.telemetry.thread_load import ThreadLoad
from meshrpc.wire import NOT_EXECUTED, Metadata

# As many as Python's own default executor has on a machine of average size.
DEFAULT_THREADS = 16

_END = object()
_UNSEEN: Metadata = ((NOT_EXECUTED, "1"),)


_THREADS = "_meshrpc_threads"


def threads_of(handler: Handler) -> int:
    """Return how many threads there are for what `SyncHandlers` has adapted; 0: it needs none."""
    threads: int = getattr(behavior_of(handler), _THREADS, 0)
    return threads


class SyncHandlers:
    """Makes `def` handlers asynchronous; owns the threads that run them."""

    def __init__(self, threads: int = DEFAULT_THREADS) -> None:
        self.load = ThreadLoad(threads)
        """How busy the threads are."""
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"<SyncHandlers threads={self._threads} {'idle' if self._pool is None else 'used'}>"

    def close(self) -> None:
        """Let running handlers finish in the background; may be used again afterwards."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    def adapt(self, method: str, handler: Handler) -> Handler:
        """Return the handler with an asynchronous function; itself when it has one already.

        Raises:
            SettingsError: a `def` handler takes a stream of requests.
        """
        behavior = behavior_of(handler)
        if inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior):
            return handler
        if is_async(behavior):
            return with_behavior(handler, _as_function(behavior))
        if _is_generated(behavior):
            return with_behavior(handler, _unimplemented(streams=handler.response_streaming))
        if handler.request_streaming:
            raise SettingsError(
                f"{method} is a plain def and takes a stream of requests: make it async def"
            )
        if handler.response_streaming:
            adapted = self._server_stream(behavior)
        else:
            adapted = self._unary(behavior)
        setattr(adapted, _THREADS, self._threads)
        return with_behavior(handler, adapted)

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="meshrpc-handler")
        return self._pool.submit(_carry_out, self.load, time.monotonic(), work, *arguments)

    def _unary(self, behavior: Behavior) -> Behavior:
        async def unary(request: Any, context: Any) -> Any:
            seen = SyncContext(context)
            run = contextvars.copy_context().run
            try:
                response = await asyncio.wrap_future(
                    self._submit(_in_time, seen, _UNSEEN, run, behavior, request, seen)
                )
            except Aborted:
                pass
            finally:
                seen.run_callbacks()
            await seen.carry_out_abort()
            return response

        return unary

    def _server_stream(self, behavior: Behavior) -> Behavior:
        async def server_stream(request: Any, context: Any) -> AsyncIterator[Any]:
            seen = SyncContext(context)
            run = contextvars.copy_context().run
            iterator: Iterator[Any] | None = None
            step: Future[Any] | None = None
            is_at_end = False
            loop_thread = threading.get_ident()
            try:
                step = self._submit(
                    _in_time, seen, _UNSEEN, run, lambda: iter(behavior(request, seen))
                )
                iterator = await asyncio.wrap_future(step)
                while True:
                    step = self._submit(_in_time, seen, (), run, next, iterator, _END)
                    response = await asyncio.wrap_future(step)
                    if response is _END:
                        is_at_end = True
                        break
                    if seen.is_aborted:
                        break
                    yield response
            except Aborted:
                pass
            finally:
                seen.run_callbacks()
                close = getattr(iterator, "close", None)
                if close is not None and step is not None and not is_at_end:

                    def close_it(_step: Future[Any]) -> None:
                        if threading.get_ident() == loop_thread:
                            self._submit(run, close)
                        else:
                            # Right behind the step: the pool may have been closed meanwhile.
                            run(close)

                    # A generator cannot be closed while a thread is inside it.
                    step.add_done_callback(close_it)
            await seen.carry_out_abort()

        return server_stream


def _carry_out(
    load: ThreadLoad, submitted: float, work: Callable[..., Any], *arguments: Any
) -> Any:
    started = load.start(submitted)
    try:
        return work(*arguments)
    except StopIteration as error:
        # A future cannot carry it, and whoever waits would wait for ever. As in generators.
        raise RuntimeError("handler raised StopIteration") from error
    finally:
        load.finish(started)


def _in_time(
    seen: SyncContext, trailers: Metadata, work: Callable[..., Any], *arguments: Any
) -> Any:
    """Do the work in its thread, unless the call was over before there was one."""
    remaining = seen.time_remaining()
    if not seen.is_active() or (remaining is not None and remaining <= 0):
        seen.abort(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "the deadline passed while the call waited for a thread",
            trailers,
        )
    return work(*arguments)


def _is_generated(behavior: Behavior) -> bool:
    """Return whether this is the method that protoc wrote and nobody has overridden."""
    return str(getattr(behavior, "__module__", "")).endswith("_pb2_grpc")


def _unimplemented(*, streams: bool) -> Behavior:
    """Return a handler that answers as protoc's own method does, without a thread."""

    async def unary(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")

    async def stream(_request: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")
        yield

    return stream if streams else unary


def _as_function(behavior: Any) -> Behavior:
    """Make a function of a callable object; grpcio looks at functions only."""
    if is_async(behavior, generator=True):

        async def generator(request: Any, context: Any) -> AsyncIterator[Any]:
            async for response in behavior(request, context):
                yield response

        return generator

    async def coroutine(request: Any, context: Any) -> Any:
        return await behavior(request, context)

    return coroutine

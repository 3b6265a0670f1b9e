"""Plain `def` handlers, run in a bounded pool of threads beside the event loop.

grpcio can run them too, but its `abort` waits across threads and can hang a stream, and it takes
an async callable object for one of them. Here a thread never waits for the loop to end a call:
`abort` notes the status and unwinds the thread. The handler sees the call's context variables,
in a copy. Streams from the client are refused: they would hold a thread for as long as they last.
When all threads are taken calls wait, and what nobody wants any more when its turn comes is not
run: in an overload, that work would be at the cost of calls which still can be answered.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from meshrpc.errors import SettingsError
from meshrpc.interceptors.method_handler import (
    Behavior,
    Handler,
    behavior_of,
    is_async,
    with_behavior,
)
from meshrpc.telemetry.thread_load import ThreadLoad
from meshrpc.wire import NOT_EXECUTED, Metadata

_LOG = logging.getLogger("meshrpc.server")

# As many as Python's own default executor has on a machine of average size.
DEFAULT_THREADS = 16

_END = object()
_UNSEEN: Metadata = ((NOT_EXECUTED, "1"),)


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
            return with_behavior(handler, self._server_stream(behavior))
        return with_behavior(handler, self._unary(behavior))

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
            except _Aborted:
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
            except _Aborted:
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


class _Aborted(Exception):
    """Leaves a thread after `abort`."""


class SyncContext(grpc.ServicerContext):
    """The context a `def` handler sees: grpcio's synchronous interface over the call's own."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._abort: tuple[grpc.StatusCode, str, Any] | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._is_active = True
        context.add_done_callback(self._done)

    def _done(self, _context: Any) -> None:
        self._is_active = False

    @property
    def is_aborted(self) -> bool:
        """Whether the handler has called `abort`, even if it goes on."""
        return self._abort is not None

    def run_callbacks(self) -> None:
        """Tell those who asked that the call is over."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001 - as in grpcio: the call's answer stands
                _LOG.exception("a callback of a call failed")

    async def carry_out_abort(self) -> None:
        """End the call if the handler aborted it, even where it caught what `abort` raised."""
        if self._abort is not None:
            await self._context.abort(*self._abort)

    def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> NoReturn:
        """End the call with this status; raises to leave the handler."""
        if self._abort is None:
            self._abort = (code, details, tuple(trailing_metadata))
        raise _Aborted

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with this status; raises to leave the handler."""
        self.abort(status.code, status.details, status.trailing_metadata or ())

    def is_active(self) -> bool:
        """Whether the client still waits."""
        return self._is_active

    def time_remaining(self) -> float | None:  # type: ignore[override]  # None: no deadline
        """Return the seconds left; None without a deadline."""
        remaining: float | None = self._context.time_remaining()
        return remaining

    def cancel(self) -> bool:
        """End the call as CANCELLED; raises to leave the handler."""
        self.abort(grpc.StatusCode.CANCELLED, "cancelled by the handler")

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called when the handler is done; False when it already is."""
        if not self._is_active:
            return False
        self._callbacks.append(callback)
        return True

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send initial metadata now."""
        sending = self._context.send_initial_metadata(tuple(initial_metadata))
        asyncio.run_coroutine_threadsafe(sending, self._loop).result()

    def invocation_metadata(self) -> Any:
        """Return the request's metadata."""
        return self._context.invocation_metadata()

    def peer(self) -> str:
        """Return the client's address."""
        peer: str = self._context.peer()
        return peer

    def peer_identities(self) -> Any:
        """Return the client's proven identities, if any."""
        return self._context.peer_identities()

    def peer_identity_key(self) -> Any:
        """Return what kind of identity `peer_identities` holds."""
        return self._context.peer_identity_key()

    def auth_context(self) -> Any:
        """Return what the transport knows of the client."""
        return self._context.auth_context()

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress what is sent."""
        self._context.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        """Send the next message as it is."""
        self._context.disable_next_message_compression()

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set what is sent after the response."""
        self._context.set_trailing_metadata(tuple(trailing_metadata))

    def trailing_metadata(self) -> Any:
        """Return what will be sent after the response."""
        return self._context.trailing_metadata()

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the call's status."""
        self._context.set_code(code)

    def code(self) -> Any:
        """Return the status set so far."""
        return self._context.code()

    def set_details(self, details: str) -> None:
        """Set the text beside the status."""
        self._context.set_details(details)

    def details(self) -> Any:
        """Return the text set so far."""
        return self._context.details()

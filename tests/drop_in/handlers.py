"""What servers answer in scenarios: handlers of the four kinds, and what they do on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


async def echo(request: Any, context: Any) -> Any:
    """Answer with the request."""
    return request


async def echo_twice(request: Any, context: Any) -> Any:
    """Answer with the request, and once more."""
    yield request
    yield request


async def join(requests: Any, context: Any) -> bytes:
    """Answer with all requests in one."""
    return b" ".join([request async for request in requests])


async def echo_each(requests: Any, context: Any) -> Any:
    """Answer each request with itself."""
    async for request in requests:
        yield request


HANDLERS: dict[str, Any] = dict(zip(KINDS, (echo, echo_twice, join, echo_each), strict=True))


Behaviour = Callable[[Any], Awaitable[Any]]
"""What a handler does with its context, whatever its kind."""


def answering(kind: str, behave: Behaviour, *, at_start: bool = False) -> Any:
    """Make a handler of `kind` that answers with its requests, after `behave(context)`.

    That is awaited when all requests have come, or `at_start` before any.
    """

    async def received(request: Any, context: Any) -> list[bytes]:
        if at_start:
            await behave(context)
        streamed = kind.startswith("stream")
        requests = [each async for each in request] if streamed else [request]
        if not at_start:
            await behave(context)
        return requests

    async def unary(request: Any, context: Any) -> bytes:
        return b" ".join(await received(request, context))

    async def stream(request: Any, context: Any) -> Any:
        for each in await received(request, context):
            yield each

    return stream if kind.endswith("stream") else unary


async def at_once(context: Any) -> None:
    """Let a handler answer at once."""


def aborting(code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> Behaviour:
    """Let a handler abort."""

    async def behave(context: Any) -> None:
        await context.abort(code, details, trailing)

    return behave


class Opening:
    """Initial metadata that a handler sends, to end only when its caller has it.

    Where both come at once grpcio may see the end of a stream first, and forgets the beginning.
    What is answered with one message has both with that: nobody waits.
    """

    def __init__(self, kind: str, *metadata: tuple[str, str | bytes]) -> None:
        self._is_stream = kind.endswith("stream")
        self._metadata = metadata
        self._had = asyncio.Event()

    async def send(self, context: Any) -> None:
        """Send it."""
        await context.send_initial_metadata(self._metadata)
        if self._is_stream:
            await self._had.wait()

    async def of(self, call: Any) -> Any:
        """Return a call, of a stream once its initial metadata has come."""
        if self._is_stream:
            await call.initial_metadata()
            self._had.set()
        return call


class Held:
    """Lets a handler wait until it may go on, or is cancelled, and tells how far it is."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, context: Any) -> None:
        """Wait."""
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

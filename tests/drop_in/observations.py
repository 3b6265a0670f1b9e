"""What scenarios observe: calls, what they answer or raise, and all they say of themselves.

What differs from run to run, or is added by grpcio or the mesh on purpose, is left out.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

_ADDED = re.compile(r"mesh-.*|traceparent|tracestate|baggage|user-agent")
"""Metadata that grpcio or the mesh adds by itself; the battery has one scenario that looks at it."""
_WHERE = re.compile(r" \(\S+ may have executed the call\)$")
"""What the mesh adds to the error of a call whose connection broke; one scenario looks at it."""
_BROKEN = re.compile(
    r"Cancelling all calls|Socket closed|Stream removed \(.*\)|.*(sendmsg|recvmsg|Broken pipe).*"
)
"""What grpcio says of a connection that its peer has ended."""
_ADDRESS = re.compile(r"(ipv4:)?127\.0\.0\.1:\d+")


def begin(kind: str, multicallable: Any, *requests: Any, **options: Any) -> Any:
    """Start a call of `kind` with `requests`, b"request" if none is given.

    Where a call takes one request that is the first one.
    """
    requests = requests or (b"request",)
    return multicallable(requests[0] if kind.startswith("unary") else iter(requests), **options)


async def answer(call: Any) -> Any:
    """Return the answer of a call; a list if it is a stream."""
    if hasattr(call, "__await__"):
        return await call
    return [message async for message in call]


async def outcome(call: Any) -> Any:
    """Return what a call answers or raises, and all it says of itself then."""
    return await raised(answer(call)), await status(call)


async def status(call: Any) -> dict[str, Any]:
    """Return all that a call says of itself once it is over."""
    return {
        "code": await call.code(),
        "details": text(await call.details()),
        "initial_metadata": plain(await call.initial_metadata()),
        "trailing_metadata": plain(await call.trailing_metadata()),
        "cancelled": call.cancelled(),
        "done": call.done(),
    }


async def raised(awaitable: Awaitable[Any]) -> Any:
    """Return what awaiting raises, as plain values; ("returned", value) when nothing."""
    try:
        return ("returned", await awaitable)
    except grpc.aio.AioRpcError as error:
        return (
            "AioRpcError",
            error.code(),
            text(error.details()),
            plain(error.initial_metadata()),
            plain(error.trailing_metadata()),
        )
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - that is the question
        return (type(error).__name__, text(str(error)))


async def is_soon_over(waiting: asyncio.Future[Any]) -> bool:
    """Return whether it is done after some 0.3 s of a running process; cancel it if it is not.

    It waits in steps: a time in which the whole process stood still is no more than one of them.
    """
    for _ in range(30):
        await asyncio.wait([waiting], timeout=0.01)
        if waiting.done():
            return True
    waiting.cancel()
    return False


def refused(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what calling `make` raises, its type and text; None when it raises nothing."""
    try:
        make(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - that is the question
        return (type(error).__name__, text(str(error)))
    return None


def plain(metadata: Any) -> list[tuple[str, Any]] | None:
    """Return metadata without what grpcio and the mesh add by themselves."""
    if metadata is None:
        return None
    return [(key, value) for key, value in metadata if not _ADDED.fullmatch(key)]


def text(details: str | None) -> str | None:
    """Return details without what is another one each time.

    That is the address of the server, and which part of gRPC noticed first that a deadline has
    passed, or that a connection is broken.
    """
    if details is None:
        return None
    if details == "Stream removed (Deadline Exceeded)":
        return "Deadline Exceeded"
    return _ADDRESS.sub("ADDRESS", _BROKEN.sub("broken", _WHERE.sub("", details)))

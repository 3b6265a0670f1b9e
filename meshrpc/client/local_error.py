"""The errors of calls that this client ended by itself, or has something to say about."""

from __future__ import annotations

import grpc
import grpc.aio

from meshrpc import wire

CANCELLED_HERE = "Locally cancelled by application!"
"""The details that grpcio gives a call which this side cancelled; nothing else public tells it
from one that a server ended with CANCELLED."""

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
_NOT_EXECUTED: wire.Metadata = ((wire.NOT_EXECUTED, "1"),)


def local_error(
    code: grpc.StatusCode, details: str, trailers: wire.Metadata = ()
) -> grpc.aio.AioRpcError:
    """Return the error of a call that this client ended without an answer from any server."""
    trailing = grpc.aio.Metadata(*trailers)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details, details)


def refused(service: str, why: str) -> grpc.aio.AioRpcError:
    """Return the error of a call that is not sent, because its service has too much to do."""
    return local_error(_UNAVAILABLE, f"service {service!r}: {why}", _NOT_EXECUTED)


def left(instance: str | None = None) -> grpc.aio.AioRpcError:
    """Return the error of a call that had not ended when its mesh was left.

    `instance` is who may have executed it, unless nobody has or its user knows.
    """
    why = "the mesh was left"
    if instance is None:
        return local_error(_UNAVAILABLE, why)
    return broken(_UNAVAILABLE, why, instance, None)


def cancelled_here() -> grpc.aio.AioRpcError:
    """Return the error of a call that its user cancelled."""
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, nothing, nothing, CANCELLED_HERE)


def cannot_start(error: BaseException) -> grpc.aio.AioRpcError:
    """Return the error of a call that something unexpected keeps from being sent."""
    return local_error(grpc.StatusCode.INTERNAL, f"cannot start the call: {error}")


def broken(
    code: grpc.StatusCode, details: str, instance: str, said: grpc.aio.AioRpcError | None
) -> grpc.aio.AioRpcError:
    """Return the error of a call under which its connection broke or was closed, or `instance` left.

    Whoever made a call that must not be made twice has to know that it may have been executed.
    `said` is what grpcio had to say of it, if anything.
    """
    details = f"{details} ({instance} may have executed the call)"
    if said is None:
        return local_error(code, details)
    return grpc.aio.AioRpcError(
        code,
        said.initial_metadata(),
        said.trailing_metadata(),
        details,
        said.debug_error_string(),
    )

"""The error of a call that this client ended by itself."""

from __future__ import annotations

import grpc
import grpc.aio

from meshrpc import wire


def local_error(
    code: grpc.StatusCode, details: str, trailers: wire.Metadata = ()
) -> grpc.aio.AioRpcError:
    """Return the error of a call that this client ended without an answer from any server."""
    trailing = grpc.aio.Metadata(*trailers)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details, details)

"""The error of a call that this client ended by itself."""

from __future__ import annotations

import grpc
import grpc.aio


def local_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """Return the error of a call that this client ended without an answer from any server."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details, details)

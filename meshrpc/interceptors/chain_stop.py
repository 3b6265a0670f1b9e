"""Chain-stop: a failure that comes from further down is not tried again by everybody above it.

When a handler fails after a call that it made has failed for good, the attempts were made where
the fault is; its caller's own would multiply them, at each level of a chain again. So the answer
says not to come back: a negative `grpc-retry-pushback-ms` (gRFC A6), the word that every gRPC
client knows. Whoever makes the nested call marks `ServerCall.dependency_failed`; this is what
the trailers of a call so marked become.
"""

from __future__ import annotations

from meshrpc.wire import RETRY_PUSHBACK, Metadata

_STOP = (RETRY_PUSHBACK, "-1")


def stopped(trailers: Metadata) -> Metadata:
    """Return the trailers with the word to stop, or as they are when they say when to come back."""
    if any(key == RETRY_PUSHBACK for key, _ in trailers):
        return trailers
    return (*trailers, _STOP)

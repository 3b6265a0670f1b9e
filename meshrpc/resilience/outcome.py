"""Outcome: what one attempt says about the endpoint it went to.

A caller's own mistake (INVALID_ARGUMENT and its like) says nothing about the instance that
pointed it out; a refusal for its rate says that it is alive and busy. Only what the instance or
the way to it did wrong counts as a failure.
"""

from __future__ import annotations

import enum

import grpc


class Outcome(enum.Enum):
    """What an attempt says about its endpoint."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"
    """It answered, with a code that says nothing of how well it works."""
    UNREACHED = "unreached"
    """No connection could be made: it was never asked."""
    ABANDONED = "abandoned"
    """This side gave the attempt up."""


_FAILURES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)

CONNECT_FAILED = "failed to connect to all addresses"
NO_CONNECTION = (
    CONNECT_FAILED,
    "connections to all backends failing",  # round_robin, where a channel was told to use it
    "errors resolving ",  # its address is a name, and nobody knows it
    "DNS resolution failed for ",
)
"""How C-core's details begin when there was no connection; it says so only in words, and
tests/integration/test_not_executed.py pins them against the installed grpcio. What comes after them
may be anything: refused, `tcp handshaker shutdown` (it took too long), a handshake that failed."""


def classify(code: grpc.StatusCode, details: str = "") -> Outcome:
    """Return what a status says about the endpoint that it came from."""
    if code is grpc.StatusCode.OK:
        return Outcome.SUCCESS
    if code not in _FAILURES:
        return Outcome.IGNORED
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(NO_CONNECTION):
        return Outcome.UNREACHED
    return Outcome.FAILURE

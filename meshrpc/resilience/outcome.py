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
"""How C-core's details begin when there was no connection; it says so only in words, and
tests/integration/test_not_executed.py pins them against the installed grpcio."""


def classify(code: grpc.StatusCode, details: str = "") -> Outcome:
    """Return what a status says about the endpoint that it came from."""
    if code is grpc.StatusCode.OK:
        return Outcome.SUCCESS
    if code not in _FAILURES:
        return Outcome.IGNORED
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(CONNECT_FAILED):
        return Outcome.UNREACHED
    return Outcome.FAILURE

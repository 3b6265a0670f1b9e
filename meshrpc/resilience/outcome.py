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


_FAILURES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def classify(code: grpc.StatusCode) -> Outcome:
    """Return what a status code says about the endpoint that it came from."""
    if code is grpc.StatusCode.OK:
        return Outcome.SUCCESS
    if code in _FAILURES:
        return Outcome.FAILURE
    return Outcome.IGNORED

"""Retry: whether a failed attempt is followed by another, and after how long.

Three things must hold (DESIGN "retry", gRFC A6): the code is one the policy retries; the call
may be repeated, because its method is idempotent or because this attempt provably was not
executed; and neither the attempts nor the server's pushback forbid it. Whether the retry budget
has a token left is asked last, by the caller of these functions.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import grpc

from meshrpc import wire
from meshrpc.policy.model import Backoff, Retry
from meshrpc.resilience.outcome import NO_CONNECTION

JITTER = 0.2
"""Backoff is spread by this share either way (gRFC A6: "random(0.8, 1.2)")."""

# C-core reports what never reached a handler only in words; tests/integration/
# test_not_executed.py pins each against the installed grpcio.
_STREAM_REFUSED = "Received RST_STREAM with error code 7"
_HANDSHAKE_FAILED = "handshake failed"

# Nor does it tell otherwise whether a status is the server's or its own, for a connection that broke
# under the call.
_BROKEN = re.compile(
    "Stream removed|Socket closed|Connection reset|Connection timed out|Broken pipe|ping timeout"
    "|Cancelling all calls|GOAWAY|Endpoint (read|write) failed|max connection age"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt, as far as retrying it is concerned."""

    code: grpc.StatusCode
    not_executed: bool = False
    """No handler has seen it."""
    not_sent: bool = False
    """It has not even left this process: there was no connection."""
    misdirected: bool = False
    """It came to another instance than was meant: one that has the address now."""
    broken: bool = False
    """The connection broke under it, or its server left: nobody knows what a handler did of it."""
    untrusted: bool = False
    """There was no connection because one side did not trust the other: trying does not help."""
    timed_out: bool = False
    """It ended by `per_attempt_timeout`, with time left for the call."""
    pushback: float | None = None
    """Seconds the server asked to wait; negative: it asked not to come back."""


def has_broken(code: grpc.StatusCode, details: str) -> bool:
    """Return whether this status means that the connection broke under the attempt."""
    return code is grpc.StatusCode.UNAVAILABLE and _BROKEN.search(details) is not None


def read_failure(
    code: grpc.StatusCode, details: str, trailers: wire.Metadata, *, timed_out: bool = False
) -> Failure:
    """Read a failed attempt's status, which this side did not bring about by cancelling."""
    if code is grpc.StatusCode.CANCELLED:
        # A server that stops drops what waits in its accept queue with CANCELLED; nobody here
        # cancelled, so it means the same as UNAVAILABLE.
        code = grpc.StatusCode.UNAVAILABLE
    pushback, cut, misdirected = None, False, False
    unavailable = code is grpc.StatusCode.UNAVAILABLE
    not_sent = unavailable and details.startswith(NO_CONNECTION)
    not_executed = not_sent or (unavailable and _STREAM_REFUSED in details)
    for key, value in trailers:
        if key == wire.NOT_EXECUTED:
            not_executed = True
            misdirected = value == wire.WRONG_TARGET
        elif key == wire.DRAIN:
            cut = True
        elif key == wire.RETRY_PUSHBACK:
            pushback = _read_pushback(value)
    return Failure(
        code,
        not_executed=not_executed,
        not_sent=not_sent,
        misdirected=misdirected,
        broken=unavailable and not not_executed and (cut or has_broken(code, details)),
        untrusted=not_sent and _HANDSHAKE_FAILED in details,
        timed_out=timed_out,
        pushback=pushback,
    )


def _read_pushback(value: str | bytes) -> float:
    # gRFC A6: "If the value for pushback is negative or unparseable, then it will be seen as
    # the server asking the client not to retry at all."
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return int(text) / 1000 if text.isascii() and text.isdecimal() else -1.0


def pause_before_retry(
    policy: Retry,
    failure: Failure,
    *,
    attempts: int,
    idempotent: bool,
    remaining: float | None,
    rng: random.Random,
) -> float | None:
    """Return the seconds to wait before the attempt after number `attempts`; None: there is none.

    `remaining` is what is left of the call's deadline, in seconds; None: it has none.
    """
    if not may_retry(policy, failure, attempts=attempts, idempotent=idempotent):
        return None
    wait = backoff(policy.backoff, failure, retry=attempts, rng=rng)
    return wait if remaining is None or wait < remaining else None


def may_retry(policy: Retry, failure: Failure, *, attempts: int, idempotent: bool) -> bool:
    """Return whether attempt `attempts` (counted from 1) may be followed by another."""
    if attempts >= policy.attempts:
        return False
    if failure.pushback is not None and failure.pushback < 0:
        return False
    if not (idempotent or failure.not_executed):
        return False
    return failure.timed_out or failure.code in policy.codes


def backoff(policy: Backoff, failure: Failure, *, retry: int, rng: random.Random) -> float:
    """Return the seconds to wait before retry number `retry` (counted from 1).

    What provably was not executed goes elsewhere at once the first time: nothing is overloaded
    by a connection that was refused.
    """
    if failure.pushback is not None:
        return failure.pushback
    if failure.not_executed and retry == 1:
        return 0.0
    wait = min(policy.base * 2.0 ** (retry - 1), policy.max)
    return wait * rng.uniform(1 - JITTER, 1 + JITTER)

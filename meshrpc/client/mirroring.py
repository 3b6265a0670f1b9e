"""Mirroring: copies of calls, sent to a subset whose answers nobody waits for.

A copy is made when its call has gone out, so it cannot hold it up, and it has a budget of its own,
so that a subset that hangs costs its caller `max_active` calls and no more. It has one attempt, at
an instance that is ready, or none. What becomes of it is nothing to the call; what it shows of its
instance is learned.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from meshrpc import wire
from meshrpc.client.aim import Aim
from meshrpc.client.attempt import Attempt
from meshrpc.client.endpoint import Endpoint
from meshrpc.client.intercepted import adding
from meshrpc.client.method import Method
from meshrpc.policy.table import MirrorTo

if TYPE_CHECKING:
    from meshrpc.client.destination import Destination

LONGEST = 15.0
"""Seconds that a copy of a call without a deadline may take."""

_log = logging.getLogger("meshrpc.client")


class Sent(NamedTuple):
    """What was sent for a call."""

    method: Method
    request: Any
    metadata: wire.Metadata
    added: wire.Metadata
    """What the mesh has to say besides, the endpoint's part excepted."""
    deadline: float | None
    options: Mapping[str, Any]
    """What else the call was made with: credentials, compression."""


class Mirrors:
    """The copies of calls that one destination has under way."""

    def __init__(self) -> None:
        self._attempts: set[Attempt] = set()

    def __repr__(self) -> str:
        return f"<Mirrors active={len(self._attempts)}>"

    def __len__(self) -> int:
        return len(self._attempts)

    def offer(
        self, destination: Destination, to: MirrorTo, sent: Sent, hash_key: str | None
    ) -> None:
        """Send a copy, if chance and budget say so, once whatever runs now has run."""
        if destination.rng.random() < to.percent and len(self) < to.max_active:
            destination.loop.call_soon(self._send, destination, to, sent, hash_key)

    def _send(
        self, destination: Destination, to: MirrorTo, sent: Sent, hash_key: str | None
    ) -> None:
        now = destination.clock.now()
        remaining = LONGEST if sent.deadline is None else sent.deadline - now
        if destination.closed or remaining <= 0 or len(self) >= to.max_active:
            return
        endpoint = destination.pick(now, Aim(to.subset, hash_key))
        if endpoint is None:
            return
        attempt = Attempt(endpoint, self, destination.clock, sampled=True, bounded=False)
        try:
            inner = _launch(endpoint, sent, remaining)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is nothing to the call
            endpoint.spare(now)
            _log.debug("%s cannot be mirrored: %r", sent.method.path, error)
            return
        self._attempts.add(attempt)
        attempt.start(inner)
        destination.expire(attempt, remaining)

    def on_attempt_done(self, attempt: Attempt) -> None:
        """Count a copy out."""
        self._attempts.discard(attempt)


def _launch(endpoint: Endpoint, sent: Sent, timeout: float) -> Any:
    call = endpoint.multicallable("unary_unary", sent.method)
    if sent.method.intercepted:
        with adding(sent.added + endpoint.metadata):
            return call(sent.request, timeout=timeout, metadata=sent.metadata, **sent.options)
    metadata = sent.metadata + sent.added + endpoint.metadata
    return call(sent.request, timeout=timeout, metadata=metadata, **sent.options)

"""How long a client may keep a connection.

Its calls are spread when it connects: behind a shared port, or a load balancer of connections, it
never meets a process that was started later. gRPC tells such a client to connect anew (GOAWAY), adds
a jitter of a tenth, and lets calls that run end where they are. How long they may take for that has
a bound of its own (`grpc.max_connection_age_grace_ms`), which is left away: nothing would tell a
stream apart from one that is stuck, so it would end every long stream that nobody bounded.
"""

from __future__ import annotations

from typing import Any

from meshrpc.errors import SettingsError

MAX_CONNECTION_AGE = 1800.0
"""Seconds, by default. No connection outlives the identity that opened it by more."""
MOST_CONNECTION_AGE = 2**31 / 1000 - 1
"""gRPC counts milliseconds in 32 bits."""


def age_options(max_connection_age: float | None) -> tuple[tuple[str, Any], ...]:
    """Return the server's option for it, in seconds; None: no bound."""
    if max_connection_age is None:
        return ()
    is_number = isinstance(max_connection_age, (int, float))
    if not (is_number and 0 < max_connection_age <= MOST_CONNECTION_AGE):
        raise SettingsError(
            f"max_connection_age={max_connection_age!r}: seconds above 0 and up to "
            f"{MOST_CONNECTION_AGE:.0f}, or None for no bound"
        )
    return (("grpc.max_connection_age_ms", max(1, round(max_connection_age * 1000))),)

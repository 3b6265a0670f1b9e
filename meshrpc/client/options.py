"""Safe default options of the channels to endpoints, with the reason for each.

What the mesh sets differs from grpcio's defaults where those let a call hang or hide a dead
peer. A channel's own `options=` win over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ChannelOptions = Sequence[tuple[str, Any]]

MESH: ChannelOptions = (
    # A frozen or blackholed instance is noticed within two seconds of the first ping. The
    # option that ends the wait for an answer is the http2 one; keepalive_timeout_ms alone
    # leaves it at a minute, but also sets TCP_USER_TIMEOUT.
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 1_000),
    ("grpc.http2.ping_timeout_ms", 1_000),
    # Pings go on while a call waits without data; our servers allow them.
    ("grpc.http2.max_pings_without_data", 0),
)
"""Towards instances of the mesh, whose servers allow frequent pings."""

FOREIGN: ChannelOptions = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
"""Towards servers that are not ours and may answer frequent pings with GOAWAY."""

MESH_RECONNECT: ChannelOptions = (("grpc.max_reconnect_backoff_ms", 1_000),)
"""Towards instances of the mesh: one that is back is found within a second or so, and one that stays
away leaves the registry."""

FOREIGN_RECONNECT: ChannelOptions = (("grpc.max_reconnect_backoff_ms", 5_000),)
"""Towards servers that are not ours, which may stay away for good."""

ALWAYS: ChannelOptions = (
    # A connection that cannot be made is given up after a second, and tried again soon: inside a
    # mesh an instance that is back should be used within seconds, not minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    # Otherwise channels share subchannels by address across the whole process, and a new
    # instance on a known port would inherit the backoff of the one before it.
    ("grpc.use_local_subchannel_pool", 1),
    # An http_proxy in the environment is not meant for calls between services.
    ("grpc.enable_http_proxy", 0),
)


def merge(
    given: ChannelOptions, supervision: ChannelOptions, always: ChannelOptions
) -> ChannelOptions:
    """Return the options of a channel that was `given` some of its own.

    Supervision is one decision: where any of it is given, none of the mesh's is set, so that a
    keepalive means what it means in grpcio.
    """
    names = {key for key, _ in given}
    if any(key in names for key, _ in supervision):
        supervision = ()
    # Each name once: of two, C-core takes the first.
    return (*given, *((key, value) for key, value in (*always, *supervision) if key not in names))

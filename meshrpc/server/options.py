"""Options of every server in the mesh: one table, with the reason beside each.

They assume peers that the mesh configures too. A user's `options=` come after these and win.
"""

from __future__ import annotations

from typing import Final

Options = tuple[tuple[str, int | str], ...]

_MIB = 1024 * 1024
_KIB = 1024

SERVER_OPTIONS: Final[Options] = (
    # By default a second process may listen on the same port, unnoticed, and the kernel splits
    # connections between the two. A port in use has to be an error.
    ("grpc.so_reuseport", 0),
    # The mesh's clients ping every second to find frozen peers in time. grpcio's default calls
    # anything below five minutes abuse and closes the connection ("too_many_pings"). Half the
    # clients' interval leaves room for timers that fire early.
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    # Without this, pings on a connection that has no call are allowed every two hours, and a
    # client that keeps an idle connection checked would be cut off.
    ("grpc.keepalive_permit_without_calls", 1),
    # Idle clients that vanish without a word (power, cable) hold memory until somebody asks.
    # Once keepalive is on, it is the second of these timers that really fires.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Whoever connects and never finishes the handshake is cut off; grpcio's own is two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Above its soft limit of 8 KiB grpcio refuses metadata at random; one limit is predictable.
    ("grpc.max_metadata_size", 16 * _KIB),
    ("grpc.absolute_max_metadata_size", 16 * _KIB),
    # grpcio's own limit for receiving, also for sending: who sends more should hear it at once.
    ("grpc.max_receive_message_length", 4 * _MIB),
    ("grpc.max_send_message_length", 4 * _MIB),
    # One connection may not occupy the process; the mesh's callers have one each.
    ("grpc.max_concurrent_streams", 1_000),
)

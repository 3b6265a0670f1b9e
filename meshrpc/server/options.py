"""Options of every server in the mesh: one table, with the reason beside each.

They assume peers that the mesh configures too. A user's `options=` come after these and win.
tests/hostile/test_options.py has for each the fault or the attack that it stops, with and without.
"""

from __future__ import annotations

from typing import Final

Options = tuple[tuple[str, int | str], ...]

_MIB = 1024 * 1024
_KIB = 1024

_MOST_CONNECTIONS = 10_000
_MOST_STREAMS = 1_000


def most_connections(open_files: int | None) -> int:
    """Return how many connections a process may hold that may open so many files; None: any.

    A quarter of the files is left for what it does itself: without one to spare it could neither
    call another service nor open a file.
    """
    if open_files is None:
        return _MOST_CONNECTIONS
    return max(1, min(_MOST_CONNECTIONS, open_files * 3 // 4))


def _open_files() -> int | None:
    try:
        import resource  # noqa: PLC0415 - there is none on Windows
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


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
    # One connection may not occupy the process; the mesh's callers have one each. It also bounds
    # what a client costs that takes its calls back at once (rapid reset).
    ("grpc.max_concurrent_streams", _MOST_STREAMS),
    # Connections that have no call, and whose clients answer pings, would stay for ever.
    ("grpc.max_connection_idle_ms", 900_000),
    # Idle ones cost some 15 KiB and a file each: whoever opens them without end takes these.
    ("grpc.max_allowed_incoming_connections", most_connections(_open_files())),
    # Calls that wait inside of grpc, beyond those that the server has asked for: as many as one
    # connection may send at once, until it falls behind (`intake.py`). From then on what waits here
    # waits for nothing mostly, and to cancel it is all that a server can do for nothing. grpcio's own
    # limits cancel by chance from a thousand on and all beyond three thousand.
    ("grpc.server.max_pending_requests", 16),
    ("grpc.server.max_pending_requests_hard_limit", 16),
)

"""Options of every server in the mesh: one table, with the reason beside each, and what control's
server has instead.

They assume peers that the mesh configures too. A user's `options=` come after these and win.
tests/hostile/test_options.py and test_control.py have for each the fault or the attack that it
stops, with and without.
"""

from __future__ import annotations

import contextlib
from typing import Final

from meshrpc.server.request_arrival import OPTION as REQUEST_TIMEOUT_MS

Options = tuple[tuple[str, int | str], ...]

_MIB = 1024 * 1024
_KIB = 1024

_MOST_CONNECTIONS = 10_000
_MOST_STREAMS = 1_000
_MOST_PROCESSES = 20_000
"""That control has a connection of each: 10,000 instances, and as many that only call."""
_MOST_HTTP_CONNECTIONS = 1_000


def most_connections(open_files: int | None, most: int = _MOST_CONNECTIONS) -> int:
    """Return how many connections a process may hold that may open so many files; None: any.

    A quarter of the files is left for what it does itself: without one to spare it could neither
    call another service nor open a file.
    """
    if open_files is None:
        return most
    return max(1, min(most, open_files * 3 // 4))


def open_files(wanted: int = 0) -> int | None:
    """Return how many files this process may open, None: any; be allowed `wanted` if that can be.

    The usual limit of 1,024 is there for programs that use select(); it may be raised up to a
    second one, which is some hundred thousand.
    """
    try:
        import resource  # noqa: PLC0415 - there is none on Windows
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < wanted:
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # a system may have a bound of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    return soft


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
    ("grpc.max_allowed_incoming_connections", most_connections(open_files())),
    # Who calls a method and never sends the message would keep the call for ever. Long enough for
    # 4 MiB at 70 KB/s. This one is ours, not grpc's (`request_arrival.py`); 0: no bound.
    (REQUEST_TIMEOUT_MS, 60_000),
    # Calls that wait inside of grpc, beyond those that the server has asked for: as many as one
    # connection may send at once, until it falls behind (`intake.py`). From then on what waits here
    # waits for nothing mostly, and to cancel it is all that a server can do for nothing. grpcio's own
    # limits cancel by chance from a thousand on and all beyond three thousand.
    ("grpc.server.max_pending_requests", 16),
    ("grpc.server.max_pending_requests_hard_limit", 16),
)


def control_options() -> Options:
    """Return those of the control service: a stream for each process, and 10,000 instances.

    Lets this process open as many files as that takes.
    """
    files = open_files(_MOST_PROCESSES * 4 // 3)
    return tuple(
        {
            **dict(SERVER_OPTIONS),
            # A process that was cut off or stopped holds leases and shares: it has to go soon.
            "grpc.keepalive_time_ms": 10_000,
            # Each process of the mesh has one connection, for as long as it lives.
            "grpc.max_allowed_incoming_connections": most_connections(files, _MOST_PROCESSES),
            # They may come through a proxy, which has one for many.
            "grpc.max_concurrent_streams": 5_000,
            # By default the third ping that comes too soon ends a connection, and here all would
            # have to subscribe anew. This is more than any clock does by accident.
            "grpc.http2.max_ping_strikes": 100,
            # The instances of a service go out as one message: 64 MiB are 10,000 of 6 KiB each,
            # and as much as a process takes (`subscription.py`).
            "grpc.max_send_message_length": 64 * _MIB,
            # A fleet that comes back after an outage calls all at once, and should not have to try
            # again. With those that the server has asked for (`intake.py`), these are what it works
            # off in half of the 5 s for which their callers wait; more would be for nobody.
            "grpc.server.max_pending_requests": 4_000,
            "grpc.server.max_pending_requests_hard_limit": 4_000,
        }.items()
    )


def most_http_connections() -> int:
    """Return how many connections control's HTTP has: for supervisors, scrapes and commands."""
    files = open_files()
    return _MOST_HTTP_CONNECTIONS if files is None else min(_MOST_HTTP_CONNECTIONS, files // 8 or 1)

"""Each option of `SERVER_OPTIONS` stops something, and does not when it is taken out."""

import pytest

from meshrpc.client.options import MESH
from meshrpc.server.options import SERVER_OPTIONS, most_connections
from meshrpc.server.request_arrival import OPTION as REQUEST_TIMEOUT
from tests.hostile import claims, server
from tests.hostile.claims import Attempt, Pin

OPTIONS = dict(SERVER_OPTIONS)

PINGS = {"grpc.http2.min_ping_interval_without_data_ms": 10}
VANISHED = {"grpc.keepalive_time_ms": 100, "grpc.http2.ping_timeout_ms": 100}

PINS = {
    "grpc.so_reuseport": Pin(claims.a_second_server_fails),
    "grpc.http2.min_ping_interval_without_data_ms": Pin(claims.pings_are_borne, PINGS),
    "grpc.keepalive_permit_without_calls": Pin(claims.pings_are_borne, PINGS),
    "grpc.keepalive_time_ms": Pin(claims.who_vanishes_is_let_go, VANISHED),
    "grpc.http2.ping_timeout_ms": Pin(claims.who_vanishes_is_let_go, VANISHED),
    "grpc.server_handshake_timeout_ms": Pin(
        claims.who_says_nothing_is_let_go, {"grpc.server_handshake_timeout_ms": 100}
    ),
    "grpc.max_metadata_size": Pin(claims.metadata_within_the_limit_passes),
    "grpc.absolute_max_metadata_size": Pin(claims.metadata_above_the_limit_is_refused),
    "grpc.max_receive_message_length": Pin(claims.a_large_request_is_refused, instead=-1),
    "grpc.max_send_message_length": Pin(claims.a_large_response_is_refused),
    "grpc.max_concurrent_streams": Pin(
        claims.streams_are_bounded, {"grpc.max_concurrent_streams": 100}
    ),
    "grpc.max_connection_idle_ms": Pin(
        claims.idle_connections_are_closed, {"grpc.max_connection_idle_ms": 3_000}
    ),
    "grpc.max_allowed_incoming_connections": Pin(
        claims.connections_are_bounded,
        {
            "grpc.max_allowed_incoming_connections": OPTIONS[
                "grpc.max_allowed_incoming_connections"
            ]
            // 20
        },
    ),
    REQUEST_TIMEOUT: Pin(claims.requests_arrive_in_time, {REQUEST_TIMEOUT: 600}),
    "grpc.server.max_pending_requests": Pin(claims.waiting_calls_are_bounded, instead=0),
    "grpc.server.max_pending_requests_hard_limit": Pin(claims.waiting_calls_are_bounded),
}


def test_every_option_is_pinned():
    """An option without a reason that can be shown has no place in the table."""
    assert set(PINS) == set(OPTIONS)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "taken out"])
@pytest.mark.parametrize("name", OPTIONS)
async def test_an_option_stops_what_it_is_for(monkeypatch, name, kept):
    """It holds with the table as it is, and not without this one entry."""
    pin = PINS[name]
    table = pin.table(OPTIONS, name, kept=kept)
    monkeypatch.setattr("meshrpc.server.serving.SERVER_OPTIONS", tuple(table.items()))
    async with server.service() as serving:
        attempt = Attempt(serving.address, 10.0 if kept else 0.3, table)
        try:
            assert await pin.holds(attempt) is kept
        finally:
            serving._serving._hurry.set()  # nobody else knows of it


def test_the_mesh_pings_no_faster_than_the_mesh_bears():
    """Timers fire early: twice as fast as agreed is still no offence."""
    least = OPTIONS["grpc.http2.min_ping_interval_without_data_ms"]
    assert dict(MESH)["grpc.keepalive_time_ms"] >= 2 * least


@pytest.mark.parametrize(
    ("open_files", "most"), [(1024, 768), (20_000, 10_000), (4, 3), (1, 1), (None, 10_000)]
)
def test_connections_leave_files_for_the_process_itself(open_files, most):
    """A quarter of those that it may open, however few."""
    assert most_connections(open_files) == most

"""Claims about the port that the workers of one service share, and that nobody else gets."""

import socket

import pytest

from meshrpc.errors import SettingsError
from meshrpc.server.listening import require_free
from meshrpc.workers.shared_port import ReservedPort


@pytest.fixture
def address():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return f"127.0.0.1:{found.getsockname()[1]}"


def share(address):
    """Listen as grpc does when a port may be shared."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    host, _, port = address.rpartition(":")
    try:
        listening.bind((host, int(port)))
    except OSError:
        listening.close()
        raise
    listening.listen()
    return listening


def test_several_may_listen_on_a_reserved_port(address):
    """While one of them does, and when none does, nobody can reserve it again."""
    port = ReservedPort(address)
    with share(address), share(address), pytest.raises(SettingsError, match="cannot be shared"):
        ReservedPort(address)
    with pytest.raises(SettingsError, match=f"port {address.rpartition(':')[2]} on 127.0.0.1 is"):
        ReservedPort(address)
    port.close()
    ReservedPort(address).close()


def test_a_port_that_somebody_shares_already_cannot_be_reserved(address):
    """A server that lets others join in without anybody asking is not joined."""
    with share(address), pytest.raises(SettingsError, match="in use"):
        ReservedPort(address)


def test_nobody_else_gets_a_reserved_port(address):
    """Another service that wants it for itself hears so, although nobody listens yet."""
    port = ReservedPort(address)
    with pytest.raises(SettingsError, match="in use"):
        require_free(address, "choose another")
    port.close()
    require_free(address, "choose another")


def test_no_connection_comes_to_the_one_who_reserves(address):
    """Without listeners a client is refused at once, and not left waiting."""
    port = ReservedPort(address)
    host, _, number = address.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(number)), timeout=5)
    port.close()


def test_an_address_of_another_machine_is_told():
    """With the setting it stands in."""
    with pytest.raises(SettingsError, match=r"cannot listen on shared_listen=192\.0\.2\.1:5000"):
        ReservedPort("192.0.2.1:5000")


def test_a_reload_cannot_change_the_port(address):
    """Clients know the old one."""
    port = ReservedPort(address)
    port.must_be(address)
    with pytest.raises(SettingsError, match=r"a reload cannot make that 127\.0\.0\.1:1"):
        port.must_be("127.0.0.1:1")
    port.close()

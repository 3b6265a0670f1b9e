"""A port that several processes listen on, kept for one service by the supervisor of its workers.

The kernel lets any process of the same user join in (SO_REUSEPORT), so two services that are given
the same port would share its clients unnoticed. The supervisor is the owner that the kernel does
not know: it binds the port as nobody else may have it, and only then lets others share it. It
never listens there, so no connection ever comes to it.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from meshrpc.errors import SettingsError
from meshrpc.settings import parse_address


class ReservedPort:
    """Holds the port of `address` for the workers of this process until it is closed.

    Raises:
        SettingsError: it cannot be had, or this system cannot share ports; says why.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._sockets = contextlib.ExitStack()
        if not hasattr(socket, "SO_REUSEPORT"):
            raise SettingsError(f"shared_listen={address}: processes cannot share a port here")
        host, port = parse_address(address)
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, socket_address in found:
                reserved = self._sockets.enter_context(socket.socket(family, kind, protocol))
                if family == socket.AF_INET6:
                    reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # What remains of earlier connections must not keep it from being bound.
                reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                reserved.bind(socket_address)
                # From here on the port is ours: nobody binds it as we just did, and who asks to
                # share it may.
                reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as error:
            self.close()
            if error.errno == errno.EADDRINUSE:
                raise SettingsError(
                    f"port {port} on {host} is in use, so it cannot be shared by the workers of "
                    "this service; stop what uses it, or choose another with shared_listen= or "
                    "MESHRPC_SHARED_LISTEN"
                ) from error
            raise SettingsError(
                f"cannot listen on shared_listen={address}: {error.strerror or error}"
            ) from error

    def __repr__(self) -> str:
        return f"<ReservedPort {self.address}>"

    def must_be(self, address: str) -> None:
        """Raise `SettingsError` if another one is wanted: a reload cannot change it."""
        if address != self.address:
            raise SettingsError(
                f"the workers share {self.address}, and a reload cannot make that {address}: stop "
                "the service and start it again"
            )

    def close(self) -> None:
        """Let go of the port; workers that listen there keep it."""
        self._sockets.close()

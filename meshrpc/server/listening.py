"""The address a server listens on, for how long, and the one it tells its callers."""

from __future__ import annotations

import asyncio
import errno
import socket

import grpc.aio

from meshrpc.errors import SettingsError
from meshrpc.settings import parse_address

# Documentation addresses (RFC 5737, RFC 3849): asking for a route to them sends nothing.
_ANYWHERE = {socket.AF_INET: ("192.0.2.1", 9), socket.AF_INET6: ("2001:db8::1", 9)}
_A_DAY = 86_400.0
_EVERY_ADDRESS = {"0.0.0.0": socket.AF_INET, "[::]": socket.AF_INET6}  # noqa: S104 - not bound here


def bind(server: grpc.aio.Server, address: str) -> str:
    """Bind `address` and return it with the port really taken.

    Raises:
        SettingsError: the address cannot be listened on; says why.
    """
    require_free(
        address, "choose another with listen= or MESHRPC_LISTEN (port 0 takes any free one)"
    )
    return _bound(server, address)


def bind_shared(server: grpc.aio.Server, address: str, *, is_reserved: bool) -> None:
    """Bind an address for clients outside the mesh.

    `is_reserved`: a supervisor keeps it for several processes, and `server` is one that shares.

    Raises:
        SettingsError: as `bind`.
    """
    if not is_reserved:
        require_free(address, "choose another with shared_listen= or MESHRPC_SHARED_LISTEN")
    _bound(server, address)


def _bound(server: grpc.aio.Server, address: str) -> str:
    host, _ = parse_address(address)
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise SettingsError(f"cannot listen on {address}: {error}") from error
    return f"{host}:{bound}"


async def until_ended(server: grpc.aio.Server) -> None:
    """Return when the server has ended, by whomever; who stops waiting does it no harm."""
    # Without a timeout that would cancel what the server's own end waits for.
    while await server.wait_for_termination(_A_DAY):
        pass


class Together:
    """Servers of one process that stop as one."""

    def __init__(self, *servers: grpc.aio.Server) -> None:
        self._servers = servers

    def __repr__(self) -> str:
        return f"<Together servers={len(self._servers)}>"

    async def stop(self, grace: float | None) -> None:
        """Have all refuse new calls at once, wait for running ones, then end them."""
        await asyncio.gather(*(server.stop(grace) for server in self._servers))


def advertised(listening: str, advertise: str | None) -> str:
    """Return the address for callers: as set, else the one listened on, made reachable.

    Raises:
        SettingsError: the server listens on every address and none of them leads anywhere.
    """
    host, port = parse_address(listening)
    if advertise is not None:
        given, given_port = parse_address(advertise)
        return f"{given}:{given_port or port}"
    family = _EVERY_ADDRESS.get(host)
    if family is None:
        return listening
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ANYWHERE[family])
        except OSError as error:
            raise SettingsError(
                f"listen={listening} names no address that callers could use, and this machine "
                "has no route outwards to tell one: set advertise= or MESHRPC_ADVERTISE"
            ) from error
        outward = probe.getsockname()[0]
    return f"[{outward}]:{port}" if family == socket.AF_INET6 else f"{outward}:{port}"


def require_free(address: str, remedy: str) -> None:
    """Raise `SettingsError` if `address` cannot be listened on: why, and the remedy for it.

    grpc itself would say only that it could not, and write the reason to stderr.
    """
    host, port = parse_address(address)
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, socket_address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(socket_address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} on {host} is in use; stop what uses it, or {remedy}"
            ) from error
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; {remedy}"
        ) from error

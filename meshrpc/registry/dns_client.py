"""Asking DNS servers: UDP, TCP where that is cut short, several servers, and names searched for.

A stub resolver on asyncio: each question goes to a server that resolves it to the end. The
servers and search domains are those of `resolv.conf`, which is read anew for each lookup, and
`/etc/hosts` comes first, as everywhere; other sources of `nsswitch.conf` (mDNS, LDAP) are not
asked. A server named in a URL is asked over TCP: Consul's leaves records out of its UDP
answers without saying so.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import RegistryError
from meshrpc.registry.dns_answer import Answer, UnclearError, read
from meshrpc.registry.dns_url import DNS_PORT

ANSWER_WITHIN = 5.0
"""Seconds for a whole lookup, whatever it takes."""
FIRST_WAIT = 1.0
"""Seconds until the next server, or the same one again, is asked; doubles with each round."""
PAYLOAD = 1232
"""Bytes a UDP answer may have: what passes every network unfragmented (DNS flag day 2020)."""
ALIASES = 8
"""How many aliases in a row are followed."""

_NO_EDNS = (dns.rcode.FORMERR, dns.rcode.NOTIMP)
"""What servers say that do not know the extension which allows long UDP answers."""

Server = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Configuration:
    """Whom to ask, and what is appended to names that do not end with a dot."""

    servers: Sequence[Server]
    search: Sequence[dns.name.Name] = ()
    ndots: int = 1
    """A name with as many dots is asked as it is before anything is appended."""

    def candidates(self, name: str) -> list[dns.name.Name]:
        """Return the names to ask for, in order; the first that exists is meant.

        Raises:
            RegistryError: this cannot be a name.
        """
        try:
            given = dns.name.from_text(name, None)
            if given.is_absolute():
                return [given]
            found = [given + suffix for suffix in self.search]
            found.insert(0 if len(given) > self.ndots else len(found), given + dns.name.root)
        except (dns.exception.DNSException, UnicodeError) as error:
            raise RegistryError(f"{name!r} cannot be a name in DNS: {error}") from error
        return found


class DnsClient:
    """Asks the system's DNS servers, or one server of its own.

    Args:
        server: who is asked, over TCP; None: those in `resolv_conf`, over UDP.
        clock: the time that waiting takes.
        resolv_conf: the servers, `search` and `ndots` of the system.
        hosts: names that need no server; not used with a server of its own.
        port: where the system's servers listen.
    """

    def __init__(
        self,
        server: Server | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        resolv_conf: Path = Path("/etc/resolv.conf"),
        hosts: Path = Path("/etc/hosts"),
        port: int = DNS_PORT,
    ) -> None:
        self.clock = clock
        self._server = server
        self._resolv_conf = resolv_conf
        self._hosts = hosts
        self._port = port
        self._answered: Server | None = None

    def __repr__(self) -> str:
        return f"<DnsClient {'system' if self._server is None else '{}:{}'.format(*self._server)}>"

    def configuration(self) -> Configuration:
        """Return whom to ask now.

        Raises:
            RegistryError: the system's configuration cannot be used.
        """
        if self._server is not None:
            return Configuration([self._server])
        system = dns.resolver.Resolver(configure=False)
        try:
            system.read_resolv_conf(str(self._resolv_conf))
        except dns.resolver.NoResolverConfiguration:
            system.nameservers = ["127.0.0.1"]  # as resolv.conf(5) has it
        except (OSError, ValueError, dns.exception.DNSException) as error:
            raise RegistryError(f"{self._resolv_conf} cannot be used: {error}") from error
        domain = [system.domain] if len(system.domain) > 1 else []
        return Configuration(
            [(str(server), self._port) for server in system.nameservers],
            system.search or domain,
            1 if system.ndots is None else system.ndots,
        )

    def local_addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses that a name has without DNS: an IP literal, or one in `hosts`."""
        name = host.strip("[]").rstrip(".").lower()
        try:
            return (str(ipaddress.ip_address(name)),)
        except ValueError:
            pass
        if self._server is not None:
            return ()
        found = []
        try:
            lines = self._hosts.read_text("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            address, *names = line.partition("#")[0].split() or [""]
            if name in map(str.lower, names) and _is_address(address):
                found.append(str(ipaddress.ip_address(address)))
        if not found and (name == "localhost" or name.endswith(".localhost")):
            return ("127.0.0.1", "::1")  # RFC 6761: it never goes to a server
        return tuple(found)

    async def ask(
        self,
        servers: Sequence[Server],
        name: dns.name.Name,
        kind: dns.rdatatype.RdataType,
        until: float,
    ) -> Answer:
        """Return the records of a name, following its aliases; `until` on the clock at the latest.

        Raises:
            RegistryError: no server answered; says why, for each of them.
        """
        ttl = float("inf")
        for _ in range(ALIASES):
            answer = await self._ask(servers, name, kind, until)
            ttl = min(ttl, answer.ttl)
            if answer.alias is None:
                return Answer(answer.addresses, answer.targets, answer.additional, ttl)
            name = answer.alias
        raise RegistryError(f"{name} is one alias too many")

    async def _ask(
        self,
        servers: Sequence[Server],
        name: dns.name.Name,
        kind: dns.rdatatype.RdataType,
        until: float,
    ) -> Answer:
        # Who answered last comes first, so that a dead server costs its wait once only.
        left = sorted(servers, key=lambda server: server != self._answered)
        troubles: dict[Server, str] = {}
        wait = FIRST_WAIT
        while left and self.clock.now() < until:
            for server in tuple(left):
                within = min(wait, until - self.clock.now())
                if within <= 0:
                    break
                try:
                    async with self.clock.timeout(within):
                        answer = read(await self._exchange(server, name, kind))
                except TimeoutError:
                    troubles.setdefault(server, "no answer")
                    continue
                except UnclearError as error:
                    troubles[server] = str(error)
                except (OSError, EOFError, dns.exception.DNSException) as error:
                    troubles[server] = _what(error)
                else:
                    self._answered = server
                    return answer
                left.remove(server)
            wait *= 2
        said = "; ".join(f"{host}:{port}: {why}" for (host, port), why in troubles.items())
        raise RegistryError(
            f"{name} {dns.rdatatype.to_text(kind)} cannot be resolved: {said or 'no answer'}"
        )

    async def _exchange(
        self, server: Server, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> dns.message.Message:
        query = dns.message.make_query(name, kind, use_edns=0, payload=PAYLOAD)
        reply = await self._send(server, query)
        if reply.rcode() in _NO_EDNS:
            reply = await self._send(server, dns.message.make_query(name, kind, use_edns=False))
        return reply

    async def _send(self, server: Server, query: dns.message.Message) -> dns.message.Message:
        reply = None if self._server is not None else await _by_udp(server, query)
        return await _by_tcp(server, query) if reply is None else reply


async def _by_udp(server: Server, query: dns.message.Message) -> dns.message.Message | None:
    """Return the reply; None: it was too long for UDP."""
    loop = asyncio.get_running_loop()
    transport, receiver = await loop.create_datagram_endpoint(
        lambda: _Receiver(query), remote_addr=server
    )
    try:
        transport.sendto(query.to_wire())
        return await receiver.reply
    finally:
        transport.close()


class _Receiver(asyncio.DatagramProtocol):
    """Waits for the reply; what is none is passed over: anybody may send something here."""

    def __init__(self, query: dns.message.Message) -> None:
        self.reply: asyncio.Future[dns.message.Message | None]
        self.reply = asyncio.get_running_loop().create_future()
        self._query = query

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002
        try:
            reply = dns.message.from_wire(data, raise_on_truncation=True)
            is_cut = False
        except dns.message.Truncated as cut:
            reply, is_cut = cut.message(), True  # type: ignore[no-untyped-call]
        except Exception:  # noqa: BLE001 - whatever a parser makes of garbage
            return
        if not self.reply.done() and self._query.is_response(reply):
            self.reply.set_result(None if is_cut else reply)

    def error_received(self, exc: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(exc)


async def _by_tcp(server: Server, query: dns.message.Message) -> dns.message.Message:
    reader, writer = await asyncio.open_connection(*server)
    try:
        wire = query.to_wire()
        writer.write(struct.pack("!H", len(wire)) + wire)
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        data = await reader.readexactly(length)
    finally:
        writer.close()
    try:
        reply = dns.message.from_wire(data)
    except Exception as error:
        raise UnclearError(f"not a DNS message: {_what(error)}") from error
    if not query.is_response(reply):
        raise UnclearError("the reply to another question")
    return reply


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _what(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        # asyncio puts words of its own there; those of a name's resolution have other numbers.
        is_systems = (error.errno or 0) > 0 and not isinstance(error, socket.gaierror)
        return os.strerror(error.errno or 0).lower() if is_systems else error.strerror
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

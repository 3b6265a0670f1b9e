"""A small DNS server: a zone that tests fill, on a real UDP and TCP port of loopback."""

import asyncio
import struct

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset


class Zone:
    """The records there are; every other name does not exist."""

    def __init__(self, negative_ttl=5):
        self.negative_ttl = negative_ttl
        self.records = {}
        self.along = {}
        self.codes = {}
        """Codes with which names are answered, instead of records."""
        self.asked = []
        """What was asked, such as `payment. A`."""

    def put(self, name, kind, *values, ttl=30, along=()):
        """Set the records of a name; `along` are names whose addresses are sent with them."""
        name = dns.name.from_text(name)
        self.records[name, kind] = dns.rrset.from_text(name, ttl, "IN", kind, *values)
        self.along[name, kind] = along

    def drop(self, name):
        """Let a name not exist any more."""
        gone = dns.name.from_text(name)
        self.records = {key: each for key, each in self.records.items() if key[0] != gone}

    def reply(self, query):
        """Return what a server that knows everything says."""
        question = query.question[0]
        name, kind = question.name, dns.rdatatype.to_text(question.rdtype)
        self.asked.append(f"{name} {kind}")
        reply = dns.message.make_response(query, recursion_available=True)
        if str(name) in self.codes:
            reply.set_rcode(dns.rcode.from_text(self.codes[str(name)]))
            return reply
        for _ in range(3):
            if (name, "CNAME") not in self.records or (name, kind) in self.records:
                break
            reply.answer.append(self.records[name, "CNAME"])
            name = self.records[name, "CNAME"][0].target
        if (name, kind) in self.records:
            reply.answer.append(self.records[name, kind])
            for other in self.along.get((name, kind), ()):
                for address in ("A", "AAAA"):
                    if found := self.records.get((dns.name.from_text(other), address)):
                        reply.additional.append(found)
            return reply
        if not any(known == name for known, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        soa = f"ns. admin. 1 3600 600 86400 {self.negative_ttl}"
        reply.authority.append(dns.rrset.from_text("example.", 3600, "IN", "SOA", soa))
        return reply


class DnsServer:
    """`async with DnsServer(zone) as server:` answers at `server.address`.

    `manner` is how: `well`; `cut` says over UDP that the answer is too long; `garbage`; `silent`;
    `strange` answers another question; `old` knows no extensions; `no-ipv6` hears nothing of it.
    """

    def __init__(self, zone, manner="well"):
        self.zone = zone
        self.manner = manner
        self.by_udp = self.by_tcp = 0
        self.heard = asyncio.Semaphore(0)
        """Released with each question."""

    @property
    def address(self):
        return "127.0.0.1", self.port

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        while True:
            self._tcp = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = self._tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self), local_addr=self.address
                )
            except OSError:  # the port is free for TCP only
                self._tcp.close()
                continue
            return self

    async def __aexit__(self, *error):
        self._udp.close()
        self._tcp.close()
        await asyncio.sleep(0)

    def answer(self, wire, *, is_udp):
        """Return the bytes to send; None: nothing."""
        query = dns.message.from_wire(wire)
        reply = self.zone.reply(query)
        self.heard.release()
        match self.manner:
            case "silent":
                return None
            case "no-ipv6" if query.question[0].rdtype == dns.rdatatype.AAAA:
                return None
            case "garbage":
                return b"no DNS message"
            case "strange":
                reply.id ^= 1
            case "cut" if is_udp:
                reply.answer.clear()
                reply.flags |= dns.flags.TC
            case "old" if query.edns >= 0:
                reply = dns.message.make_response(query)
                reply.use_edns(False)
                reply.set_rcode(dns.rcode.FORMERR)
        return reply.to_wire(max_size=65535)

    async def _serve(self, reader, writer):
        self.by_tcp += 1
        try:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            answer = self.answer(await reader.readexactly(length), is_udp=False)
            if answer is not None:
                writer.write(struct.pack("!H", len(answer)) + answer)
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server):
        self.server = server

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.server.by_udp += 1
        answer = self.server.answer(data, is_udp=True)
        if answer is not None:
            self.transport.sendto(answer, addr)

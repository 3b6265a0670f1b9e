"""Asking real DNS servers on loopback."""

import asyncio

import dns.flags
import dns.message
import dns.rrset
import pytest

from meshrpc.errors import RegistryError
from meshrpc.registry.dns_answer import LONGEST, LONGEST_NONE, SHORTEST, UnclearError, read
from meshrpc.registry.dns_client import ANSWER_WITHIN, Configuration, DnsClient
from meshrpc.registry.dns_lookup import Found, Lookup
from meshrpc.registry.dns_url import Question
from tests.dns_server import DnsServer, Zone


@pytest.fixture
def zone():
    """`a.example` has two IPv4 addresses and an IPv6 one."""
    zone = Zone()
    zone.put("a.example", "A", "10.0.0.2", "10.0.0.1", ttl=20)
    zone.put("a.example", "AAAA", "2001:db8::1", ttl=10)
    return zone


@pytest.fixture
def resolv_conf(tmp_path):
    """Write the system's configuration, with loopback as the server."""

    def write(text="", servers=("127.0.0.1",)):
        lines = [f"nameserver {server}" for server in servers]
        path = tmp_path / "resolv.conf"
        path.write_text("\n".join([*lines, text, ""]))
        return path

    return write


@pytest.fixture
def system(resolv_conf, tmp_path):
    """Make a client of a server as if it was the system's."""

    def make(server, text="", *, hosts="", clock=None, servers=("127.0.0.1",)):
        (tmp_path / "hosts").write_text(hosts)
        extra = {} if clock is None else {"clock": clock}
        return DnsClient(
            resolv_conf=resolv_conf(text, servers),
            hosts=tmp_path / "hosts",
            port=server.port,
            **extra,
        )

    return make


def look_up(client, host="a.example", port=443, srv=None):
    return Lookup(Question(host, port, srv), client).run()


EVERY_ADDRESS = {"10.0.0.1:443": 1, "10.0.0.2:443": 1, "[2001:db8::1]:443": 1}


@pytest.mark.parametrize("manner", ["well", "cut", "old"])
async def test_both_kinds_of_address_are_asked_for_by_udp(zone, system, manner):
    """The shorter life counts; a long answer comes by TCP; old servers are asked in their words."""
    async with DnsServer(zone, manner) as server:
        assert await look_up(system(server)) == Found(EVERY_ADDRESS, 10.0)
        assert server.by_tcp == (2 if manner == "cut" else 0)
        assert server.by_udp == (4 if manner == "old" else 2)


async def test_a_server_of_ones_own_is_asked_over_tcp(zone):
    """Consul's leaves records out of its UDP answers."""
    async with DnsServer(zone) as server:
        assert (await look_up(DnsClient(server.address))).weights == EVERY_ADDRESS
        assert (server.by_udp, server.by_tcp) == (0, 2)


async def test_a_name_without_addresses_is_an_answer(zone, system):
    """It does not exist, or has records of other kinds: asked again after the zone's time for it."""
    zone.put("mail.example", "MX", "1 a.example.")
    zone.negative_ttl = 3
    async with DnsServer(zone) as server:
        for host in ("b.example", "mail.example"):
            assert await look_up(system(server), host) == Found({}, 3.0)
        zone.negative_ttl = 3600
        assert await look_up(system(server), "b.example") == Found({}, LONGEST_NONE)


@pytest.mark.parametrize("code", ["SERVFAIL", "REFUSED", "NOTAUTH"])
async def test_a_server_that_cannot_say_gives_no_answer(zone, system, code):
    """The error names the server, the name and the code, and comes at once."""
    zone.codes["a.example."] = code
    async with DnsServer(zone) as server:
        with pytest.raises(RegistryError, match=rf"a\.example\..*:{server.port}: {code}"):
            await look_up(system(server))
        assert server.by_udp == 2


async def test_one_kind_of_address_is_enough(zone, system):
    """Servers that fail for IPv6 only are common."""
    async with DnsServer(zone) as server:
        client = system(server)
        zone.reply, whole = _failing("AAAA", zone.reply), zone.reply
        assert (await look_up(client)).weights == {"10.0.0.1:443": 1, "10.0.0.2:443": 1}
        zone.drop("a.example")
        zone.put("a.example", "MX", "1 a.example.")
        with pytest.raises(RegistryError, match=r"AAAA cannot be resolved.*SERVFAIL"):
            await look_up(client)
        zone.reply = whole


def _failing(kind, reply):
    def answer(query):
        message = reply(query)
        if dns.rdatatype.to_text(query.question[0].rdtype) == kind:
            message.answer.clear()
            message.set_rcode(dns.rcode.SERVFAIL)
        return message

    return answer


async def test_a_network_that_swallows_questions_for_ipv6_costs_a_second(
    zone, system, virtual_clock
):
    """Then the other addresses are enough; a name without any is not known to have none."""
    async with DnsServer(zone, "no-ipv6") as server:
        tasks = asyncio.all_tasks()
        client = system(server, clock=virtual_clock)
        before = virtual_clock.now()
        found = await virtual_clock.run(look_up(client))
        assert found.weights == {"10.0.0.1:443": 1, "10.0.0.2:443": 1}
        assert virtual_clock.now() - before == pytest.approx(1.0)
        assert asyncio.all_tasks() == tasks
        with pytest.raises(RegistryError, match="AAAA cannot be resolved"):
            await virtual_clock.run(look_up(client, "b.example"))
        assert virtual_clock.now() - before <= 1.0 + ANSWER_WITHIN


@pytest.mark.parametrize("manner", ["silent", "garbage", "strange"])
async def test_what_is_no_reply_is_waited_out_and_no_longer_than_five_seconds(
    zone, system, virtual_clock, manner
):
    """Over UDP anybody may send anything, so it is passed over; the server is asked again."""
    async with DnsServer(zone, manner) as server:
        client = system(server, clock=virtual_clock)
        before = virtual_clock.now()
        with pytest.raises(RegistryError, match=rf"127\.0\.0\.1:{server.port}: no answer"):
            await virtual_clock.run(look_up(client))
        assert virtual_clock.now() - before <= ANSWER_WITHIN


@pytest.mark.parametrize(
    ("manner", "words"), [("garbage", "not a DNS message"), ("strange", "another question")]
)
async def test_what_is_no_reply_over_tcp_ends_the_waiting(zone, manner, words):
    """Nothing else will come."""
    async with DnsServer(zone, manner) as server:
        with pytest.raises(RegistryError, match=words):
            await look_up(DnsClient(server.address))


async def test_a_server_that_is_not_there_is_noticed_at_once(zone, system):
    """By UDP as by TCP: the port refuses."""
    async with DnsServer(zone) as server:
        pass
    for client in (system(server), DnsClient(server.address)):
        with pytest.raises(RegistryError, match=rf"127.0.0.1:{server.port}: connection refused"):
            await look_up(client)


async def test_another_server_answers_where_one_fails(zone, system):
    """And is the first to be asked from then on."""
    async with DnsServer(zone) as server:
        client = system(server, servers=("127.0.0.2", "127.0.0.1"))  # nobody is at the first
        for _ in range(2):
            assert (await look_up(client)).weights == EVERY_ADDRESS
        assert client._answered == ("127.0.0.1", server.port)


async def test_a_server_is_asked_again_when_an_answer_got_lost(zone, system, virtual_clock):
    """After a second."""
    async with DnsServer(zone, "silent") as server:
        client = system(server, clock=virtual_clock)

        looking = asyncio.ensure_future(look_up(client))
        async with asyncio.timeout(5):
            for _ in range(2):  # both kinds of address
                await server.heard.acquire()
        server.manner = "well"
        await virtual_clock.advance(1.0)
        async with asyncio.timeout(5):
            assert (await looking).weights == EVERY_ADDRESS
        assert server.by_udp == 4


async def test_an_alias_is_followed_and_lives_no_longer_than_its_parts(zone, system):
    """Within one reply, and with another question when the server does not."""
    zone.put("alias.example", "CNAME", "a.example.", ttl=4)
    async with DnsServer(zone) as server:
        assert await look_up(system(server), "alias.example") == Found(EVERY_ADDRESS, 4.0)
        zone.reply = _first_alias_only(zone.reply)
        assert await look_up(system(server), "alias.example") == Found(EVERY_ADDRESS, 4.0)
        zone.put("loop.example", "CNAME", "loop.example.")
        with pytest.raises(RegistryError, match=r"loop\.example"):
            await look_up(system(server), "loop.example")


def _first_alias_only(reply):
    def answer(query):
        message = reply(query)
        if message.answer and message.answer[0].rdtype == dns.rdatatype.CNAME:
            del message.answer[1:]
            message.authority.clear()
        return message

    return answer


@pytest.mark.parametrize(("ttl", "held"), [(0, SHORTEST), (7, 7.0), (86400, LONGEST)])
async def test_a_lifetime_is_honoured_between_a_second_and_thirty(zone, system, ttl, held):
    """Consul says 0; others a day."""
    zone.put("b.example", "A", "10.0.0.1", ttl=ttl)
    async with DnsServer(zone) as server:
        assert await look_up(system(server), "b.example") == Found({"10.0.0.1:443": 1}, held)


async def test_srv_records_say_ports_and_weights(zone, system):
    """The lowest priority number only; 0 weighs 1; addresses sent along are not asked for."""
    zone.put(
        "_grpc._tcp.pay.example",
        "SRV",
        "1 5 50051 a.example.",
        "1 0 50052 b.example.",
        "1 2 50053 c.example.",
        "2 9 50054 spare.example.",
        along=["a.example"],
    )
    zone.put("b.example", "A", "10.0.0.3", ttl=15)
    async with DnsServer(zone) as server:
        client = system(server)
        assert await look_up(client, None, None, "_grpc._tcp.pay.example") == Found(
            {
                "10.0.0.1:50051": 5,
                "10.0.0.2:50051": 5,
                "[2001:db8::1]:50051": 5,
                "10.0.0.3:50052": 1,
            },
            LONGEST_NONE,
            ("SRV c.example.:50053: the target has no address",),
        )
        assert "a.example. A" not in zone.asked
        assert "spare.example. A" not in zone.asked


async def test_a_target_that_cannot_be_resolved_just_now_keeps_its_addresses(zone, system):
    """One that never could is left out, with the reason; so is one without a port."""
    zone.put("pay.example", "SRV", "1 1 1 a.example.", "1 1 2 b.example.", "1 1 0 a.example.")
    zone.codes["b.example."] = "SERVFAIL"
    async with DnsServer(zone) as server:
        lookup = Lookup(Question(None, None, "pay.example"), system(server))
        first = await lookup.run()
        assert len(first.weights) == 3
        assert "a.example.:0: the port is 1 to 65535" in first.skipped[0]
        assert "b.example" in first.skipped[1]
        assert "SERVFAIL" in first.skipped[1]
        zone.codes["a.example."] = "SERVFAIL"
        assert (await lookup.run()).weights == first.weights


async def test_where_there_are_no_srv_records_the_names_own_addresses_are_used(zone, system):
    """If the port is known; a target of "." says that there is nobody."""
    async with DnsServer(zone) as server:
        client = system(server)
        found = await look_up(client, "a.example", 443, "_grpc._tcp.a.example")
        assert found.weights == EVERY_ADDRESS
        assert (await look_up(client, None, None, "_x._tcp.a.example")).weights == {}
        zone.put("none.example", "SRV", "0 0 0 .")
        assert (await look_up(client, None, None, "none.example")).weights == {}
        zone.codes["_grpc._tcp.a.example."] = "SERVFAIL"
        with pytest.raises(RegistryError, match="SERVFAIL"):
            await look_up(client, "a.example", 443, "_grpc._tcp.a.example")


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("pay", ["pay.ns.svc.", "pay.svc.", "pay."]),
        ("pay.other", ["pay.other.ns.svc.", "pay.other.svc.", "pay.other."]),
        ("a.b.c", ["a.b.c.", "a.b.c.ns.svc.", "a.b.c.svc."]),
        ("pay.", ["pay."]),
    ],
)
def test_search_domains_are_appended_as_resolv_conf_says(resolv_conf, name, asked):
    """A name with `ndots` dots is tried as it is first, one with a final dot is tried no other way."""
    path = resolv_conf("search ns.svc svc\noptions ndots:2")
    found = DnsClient(resolv_conf=path).configuration().candidates(name)
    assert [str(each) for each in found] == asked


async def test_the_first_name_that_exists_is_meant(zone, system):
    """But one of which nothing is known ends the search: the next might be a stranger's."""
    zone.put("pay.near", "A", "10.0.0.8")
    zone.put("pay", "A", "10.0.0.9")
    async with DnsServer(zone) as server:
        client = system(server, "search far near")
        assert (await look_up(client, "pay")).weights == {"10.0.0.8:443": 1}
        zone.codes["pay.far."] = "SERVFAIL"
        with pytest.raises(RegistryError, match=r"pay\.far"):
            await look_up(client, "pay")


async def test_names_of_the_hosts_file_and_literals_need_no_server(zone, system):
    """`localhost` never does; the hosts file says nothing of a server of one's own."""
    hosts = "# none\n10.9.9.9 Pay pay.example # ours\n::9 pay\nnonsense pay\n\n"
    async with DnsServer(zone) as server:
        client = system(server, hosts=hosts)
        assert (await look_up(client, "PAY")).weights == {"10.9.9.9:443": 1, "[::9]:443": 1}
        assert (await look_up(client, "pay.example.")).weights == {"10.9.9.9:443": 1}
        assert (await look_up(client, "10.1.2.3")).weights == {"10.1.2.3:443": 1}
        assert (await look_up(client, "[::1]")).weights == {"[::1]:443": 1}
        assert "127.0.0.1:443" in (await look_up(client, "localhost")).weights
        assert "127.0.0.1:443" in (await look_up(client, "x.localhost")).weights
        assert zone.asked == []


def test_a_system_without_a_configuration_asks_loopback(tmp_path):
    """As resolv.conf(5) has it; one that cannot be read by anybody is an error."""
    client = DnsClient(resolv_conf=tmp_path / "none")
    assert client.configuration() == Configuration(
        [("127.0.0.1", 53)], client.configuration().search
    )
    (tmp_path / "bad").write_text("nameserver not-an-address\n")
    with pytest.raises(RegistryError, match="bad cannot be used"):
        DnsClient(resolv_conf=tmp_path / "bad").configuration()


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".example"])
async def test_what_cannot_be_a_name_is_an_error_in_words(zone, system, name):
    """Before anybody is asked."""
    async with DnsServer(zone) as server:
        with pytest.raises(RegistryError, match="cannot be a name in DNS"):
            await look_up(system(server), name)
        assert zone.asked == []


def test_a_referral_is_no_answer():
    """A server that sends us elsewhere knows nothing of the name."""
    query = dns.message.make_query("a.example", "A")
    reply = dns.message.make_response(query)
    reply.authority.append(dns.rrset.from_text("example.", 60, "IN", "NS", "ns.example."))
    with pytest.raises(UnclearError, match="referral"):
        read(reply)
    reply.flags |= dns.flags.AA
    assert read(reply).is_empty

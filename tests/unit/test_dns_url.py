"""What `dns:` URLs ask of DNS."""

import pytest

from meshrpc.errors import RegistryError, SettingsError
from meshrpc.registry.dns_url import Domain, Question, Target


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("dns://payments.example:443", "payments.example", 443),
        ("dns:payments.example:443", "payments.example", 443),
        ("dns:///payments.example:443", "payments.example", 443),
        (" dns:///localhost:1 ", "localhost", 1),
        ("dns://[::1]:65535", "[::1]", 65535),
        ("dns://_odd.example:443", "_odd.example", 443),
    ],
)
def test_a_target_is_written_as_ours_or_as_grpcs(url, host, port):
    """Two slashes, none, or three; its one service is the URL."""
    target = Target.parse(url)
    assert target.services() == (url,)
    assert target.question(url, "default") == Question(host, port, None)
    assert target.question("other", "default") is None
    assert target.authority == f"{host}:{port}"


def test_a_target_without_a_port_may_name_srv_records():
    """The certificate is that of the name they belong to."""
    url = "dns://_grpc._tcp.payment.example.com"
    target = Target.parse(url)
    assert target.question(url, "default") == Question(None, None, "_grpc._tcp.payment.example.com")
    assert target.authority == "payment.example.com"


@pytest.mark.parametrize(
    "url",
    [
        "dns:",
        "dns://",
        "dns:///",
        "dns://host",
        "dns://host:0",
        "dns://host:65536",
        "dns://host:http",
        "dns://:443",
        "dns://::1:443",
        "dns://8.8.8.8/host:443",
        "dns://host:443/path",
        "dns:////host:443",
        "dns://_grpc._tcp",
        "dns://_grpc.host",
        "static:host:443",
    ],
)
def test_a_target_that_names_no_host_and_port_is_refused(url):
    """With the URL and an example, and before anything is asked."""
    with pytest.raises(SettingsError, match=r"expected.* as in dns://payments.example.com"):
        Target.parse(url)


@pytest.mark.parametrize(
    ("url", "server", "question"),
    [
        (
            "dns://127.0.0.1:8600",
            ("127.0.0.1", 8600),
            Question(None, None, "payment.service.consul."),
        ),
        ("dns://[::1]/", ("::1", 53), Question(None, None, "payment.service.consul.")),
        ("dns://ns.example/corp.", ("ns.example", 53), Question(None, None, "payment.corp.")),
        (
            "dns:///{namespace}.svc.cluster.local?port=50051",
            None,
            Question("payment.staging.svc.cluster.local.", 50051, None),
        ),
        (
            "dns:///%7Bnamespace%7D.svc.cluster.local?srv=_grpc._tcp",
            None,
            Question(
                "payment.staging.svc.cluster.local.",
                None,
                "_grpc._tcp.payment.staging.svc.cluster.local.",
            ),
        ),
        ("DNS:///?port=1&srv=_g._tcp", None, Question("payment", 1, "_g._tcp.payment")),
        ("dns:///?port=50051", None, Question("payment", 50051, None)),
    ],
)
def test_a_registrys_url_says_where_and_how_services_are_looked_up(url, server, question):
    """A port means addresses, `srv=` means a named port; nothing means the name's SRV records."""
    domain = Domain.parse(url)
    assert domain.server == server
    assert domain.question("payment", "staging") == question
    assert domain.authority is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("dns:payment", "no URL of a DNS registry"),
        ("dns:///", "neither where services are looked up nor their port"),
        ("dns://:8600", "the server is HOST or HOST:PORT"),
        ("dns://h:", "the server is HOST or HOST:PORT"),
        ("dns://h:0", "a port is 1 to 65535"),
        ("dns://h:99999", "out of range"),
        ("dns://me@h", "no URL of a DNS registry"),
        ("dns://h#x", "no URL of a DNS registry"),
        ("dns:///a//b", "'a//b' is no domain"),
        ("dns:///{service}.corp", "is no domain"),
        ("dns:///corp?port=http", "a port is 1 to 65535"),
        ("dns:///corp?port=", "without a value"),
        ("dns:///corp?port=1&port=2", "twice"),
        ("dns:///corp?srv=grpc", "srv=grpc is not written as _SERVICE._PROTO"),
        ("dns:///corp?srv=_grpc._tcp.x", "is not written as _SERVICE._PROTO"),
        ("dns:///corp?ttl=5", "unknown option ttl, known are port, srv"),
    ],
)
def test_a_registrys_url_that_cannot_be_used_is_an_error_with_its_remedy(url, words):
    """It names the URL, what is wrong, and how it is written."""
    with pytest.raises(SettingsError) as raised:
        Domain.parse(url)
    assert words in str(raised.value)
    assert repr(url) in str(raised.value)
    assert "{namespace}.svc.cluster.local?port=50051" in str(raised.value)


def test_nobody_can_list_the_services_of_a_domain():
    """The error says what to ask instead."""
    with pytest.raises(RegistryError, match=r"DNS cannot list services.*registry instances NAME"):
        Domain.parse("dns://127.0.0.1:8600").services()

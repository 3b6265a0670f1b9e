"""What a consul:// URL says."""

from __future__ import annotations

import pytest

from meshrpc.errors import SettingsError
from meshrpc.registry.consul_url import DEFAULT_PORT, ConsulUrl, parse

TOKEN = "5ecre7-70ken"  # noqa: S105 - of no server


def test_an_address_alone_is_enough():
    """Everything else has a default, and IPv6 hosts keep their brackets."""
    assert parse("consul://10.0.0.5", {}) == ConsulUrl("10.0.0.5", DEFAULT_PORT)
    assert parse("consul://[::1]:8600/", {}).address == "[::1]:8600"


def test_every_option_is_read():
    """Values are decoded, and only `tag` may be repeated."""
    options = "dc=east&token=a%2Bb&tls=true&ca=/ca.pem&cert=/c.pem&key=/k.pem&stale=true"
    url = parse(f"consul://c:1?{options}&tag=blue&tag=eu&tags=blue,%20eu,", {})
    assert url == ConsulUrl(
        "c",
        1,
        dc="east",
        token="a+b",  # noqa: S106 - of no server
        tls=True,
        ca="/ca.pem",
        cert="/c.pem",
        key="/k.pem",
        stale=True,
        tag=("blue", "eu"),
        tags=("blue", "eu"),
    )
    assert url.certificate == ("/c.pem", "/k.pem")
    assert parse("consul://c?tls=true&cert=/both.pem", {}).certificate == "/both.pem"


def test_the_environment_counts_where_the_url_does_not_say():
    """As it does for Consul's own tools."""
    environ = {"CONSUL_HTTP_SSL": "true", "CONSUL_HTTP_SSL_VERIFY": "false"}
    assert parse("consul://c", environ).tls
    assert not parse("consul://c", environ).verify
    assert parse("consul://c?verify=true", environ).verify
    assert not parse("consul://c?tls=false", environ).tls


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("c/path?token=TOKEN", "expected consul://HOST:PORT"),
        ("?token=TOKEN", "expected consul://HOST:PORT"),
        ("TOKEN@c?dc=a", "expected consul://HOST:PORT"),
        ("x:TOKEN@c", "expected consul://HOST:PORT"),
        ("c#token=TOKEN", "expected consul://HOST:PORT"),
        ("c:99999?token=TOKEN", "[Pp]ort"),
        ("c:x?token=TOKEN", "[Pp]ort"),
        ("c?token=TOKEN&colour=TOKEN", "unknown option colour; there are dc, token, tls"),
        ("c?token=TOKEN&token=TOKEN", "option token is given more than once"),
        ("c?token=TOKEN&dc=", "option dc has no value"),
        ("c?token=TOKEN&stale", "option stale has no value"),
        ("c?token=TOKEN&stale=yes", "option stale is true or false"),
        ("c?token=TOKEN&ca=/ca.pem", "option ca needs tls=true"),
        ("c?token=TOKEN&tls=true&key=/k.pem", "option key needs cert"),
        ("c?token=TOKEN&tls=true&ca=/ca.pem&verify=false", "option ca has no effect"),
    ],
)
def test_a_url_that_cannot_be_used_is_one_clear_error_without_the_token(rest, why):
    """The reason is named, the secret is not."""
    with pytest.raises(SettingsError, match=why) as caught:
        parse(f"consul://{rest.replace('TOKEN', TOKEN)}", {})
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None  # urllib's errors may quote the URL


def test_the_token_is_not_shown():
    """Neither here nor by what holds the URL."""
    assert TOKEN not in repr(parse(f"consul://c?token={TOKEN}", {}))

"""Settings come from arguments, then the environment, then defaults; bad ones are told apart."""

from pathlib import Path

import pytest

from meshrpc.errors import SettingsError
from meshrpc.settings import Settings, control_http_urls, parse_address


def test_without_anything_said_the_defaults_hold():
    """They are the documented ones."""
    settings = Settings.resolve({})
    assert settings.control == ("127.0.0.1:7700",)
    assert settings.registry == "mesh:"
    assert settings.namespace == "default"
    assert settings.listen == "127.0.0.1:0"
    assert (settings.advertise, settings.zone, settings.version) == (None, None, None)
    assert (settings.weight, settings.labels) == (1, {})


def test_the_environment_wins_over_defaults_and_an_argument_over_both():
    """An empty variable counts as not set."""
    environ = {"MESHRPC_NAMESPACE": "staging", "MESHRPC_WEIGHT": "3", "MESHRPC_ZONE": ""}
    settings = Settings.resolve(environ, weight=5)
    assert (settings.namespace, settings.weight, settings.zone) == ("staging", 5, None)


def test_every_setting_is_read_from_its_variable():
    """In the types that the arguments have."""
    settings = Settings.resolve(
        {
            "MESHRPC_CONTROL": "10.0.0.1:7700, control.example:7700",
            "MESHRPC_LABELS": "tier=gold, team=blue",
            "MESHRPC_STATE_DIR": "/srv/shop",
            "MESHRPC_LISTEN": "[::1]:5001",
        }
    )
    assert settings.control == ("10.0.0.1:7700", "control.example:7700")
    assert settings.labels == {"tier": "gold", "team": "blue"}
    assert settings.state_dir == Path("/srv/shop")
    assert settings.listen == "[::1]:5001"


def test_none_means_no_control_service():
    """Written out, so that an empty variable is not taken for it."""
    assert Settings.resolve({"MESHRPC_CONTROL": "none"}).control == ()


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"MESHRPC_LISTEN": "5001"}, "MESHRPC_LISTEN='5001': an address is host:port"),
        ({"MESHRPC_LISTEN": "127.0.0.1:70000"}, "an address is host:port"),
        ({"MESHRPC_LISTEN": "::1:5001"}, "an IPv6 host stands in brackets"),
        ({"MESHRPC_CONTROL_HTTP": "http://127.0.0.1:7780"}, "an address is host:port"),
        ({"MESHRPC_CONTROL": "here,there"}, "MESHRPC_CONTROL='here,there'"),
        ({"MESHRPC_NAMESPACE": "a b"}, "a name has letters, digits"),
        ({"MESHRPC_WEIGHT": "0"}, "a weight is 1 to 10000"),
        ({"MESHRPC_WEIGHT": "many"}, "MESHRPC_WEIGHT='many': a weight is 1 to 10000"),
        ({"MESHRPC_LISTEN": "my host:5001"}, "an address is host:port"),
        ({"MESHRPC_SHARED_LISTEN": "127.0.0.1:0"}, "a port that is shared is told by its number"),
        ({"MESHRPC_CONTROL_HTTP": "127.0.0.1:0"}, "the port is 1 to 65535"),
        ({"MESHRPC_LABELS": "tier"}, "labels are key=value"),
        ({"MESHRPC_LABELS": "version=v1"}, "'version' is a setting of its own"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_setting_and_rule(environ, told):
    """The message says which variable, what stands there, and what would be right."""
    with pytest.raises(SettingsError) as raised:
        Settings.resolve(environ)
    assert told in str(raised.value)


def test_a_bad_argument_is_named_as_an_argument():
    """Not by the variable it does not come from."""
    with pytest.raises(SettingsError, match="weight=0"):
        Settings.resolve({}, weight=0)
    with pytest.raises(SettingsError, match="zone=5: this is text, not int"):
        Settings.resolve({}, zone=5)
    with pytest.raises(SettingsError, match="unknown settings: colour"):
        Settings.resolve({}, colour="red")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:50051", ("[::1]", 50051)), ("a.b:1", ("a.b", 1))],
)
def test_addresses_are_host_and_port(text, expected):
    """An IPv6 host keeps its brackets."""
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    ("environ", "urls"),
    [
        ({}, ("http://127.0.0.1:7780",)),
        (
            {"MESHRPC_CONTROL": "a:7700,[::1]:7700"},
            ("http://a:7780", "http://[::1]:7780"),
        ),
        ({"MESHRPC_CONTROL": "a:7700,b:9000"}, ("http://a:7780",)),
        ({"MESHRPC_CONTROL": "b:9000"}, ()),
        ({"MESHRPC_CONTROL": "none"}, ()),
        ({"MESHRPC_CONTROL_HTTP": "none"}, ()),
        (
            {"MESHRPC_CONTROL": "none", "MESHRPC_CONTROL_HTTP": "c:80,d:81"},
            ("http://c:80", "http://d:81"),
        ),
    ],
)
def test_events_go_to_the_control_services_of_default_ports_unless_told(environ, urls):
    """What listens on 7780 beside a control service on a port of its own may be anybody."""
    assert control_http_urls(Settings.resolve(environ)) == urls

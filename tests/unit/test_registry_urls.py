"""Registries by URL."""

from __future__ import annotations

import sys

import pytest

from meshrpc.errors import SettingsError
from meshrpc.registry.consul import ConsulRegistry
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.static import StaticRegistry
from meshrpc.registry.urls import create_registry


def open_url(url: str):
    return create_registry(url, "staging", embedded=MemoryRegistry)


@pytest.mark.parametrize(
    ("url", "kind", "status"),
    [
        ("mesh:", MemoryRegistry, "<MemoryRegistry default <LeaseTable services=0 instances=0>>"),
        ("memory:", MemoryRegistry, "<MemoryRegistry staging <LeaseTable services=0 instances=0>>"),
        ("static:a=h:1,h:2;b=h:3", StaticRegistry, "<StaticRegistry a=2 b=1>"),
        ("consul://[::1]:85/?dc=x", ConsulRegistry, "<ConsulRegistry [::1]:85 staging closed>"),
        ("consul://agent", ConsulRegistry, "<ConsulRegistry agent:8500 staging closed>"),
    ],
)
def test_each_url_opens_its_kind(url, kind, status):
    """`mesh:` is what the caller says it is; the others are made in the namespace asked for."""
    registry = open_url(url)
    assert type(registry) is kind
    assert repr(registry) == status


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("zookeeper://h:1", "mesh:, consul://HOST:PORT, static:.*, memory:"),
        ("", "no such registry"),
        ("mesh://h", "no such registry"),
        ("static:", "expected services as in static:payment"),
        ("static:payment", "expected services"),
        ("static:payment=", "host:port"),
        ("static:payment=127.0.0.1", "host:port"),
        ("static:payment=127.0.0.1:0", "the port is 1 to 65535"),
        ("static:a=h:1;a=h:2", "'a' stands there twice"),
        ("consul://", "expected consul://HOST:PORT"),
        ("consul://h:70000", "consul://h:70000"),
        ("consul://h/kv", "expected consul://HOST:PORT"),
        ("consul://h/?tag=x", "unknown option tag"),
    ],
)
def test_a_url_that_cannot_be_used_is_an_error_with_its_remedy(url, words):
    """It names the URL and what was expected."""
    with pytest.raises(SettingsError, match=words):
        open_url(url)


def test_a_token_is_never_shown():
    """Neither in the error of a bad URL nor in the status of a good one."""
    with pytest.raises(SettingsError) as caught:
        open_url("consul://h/?token=secret&tag=x")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(open_url("consul://h/?token=secret"))


def test_a_missing_part_is_named_with_what_installs_it(monkeypatch):
    """Without py-consul, a consul:// URL says how to get it."""
    monkeypatch.delitem(sys.modules, "meshrpc.registry.consul", raising=False)
    monkeypatch.setitem(sys.modules, "consul", None)
    with pytest.raises(SettingsError, match=r"pip install 'meshrpc\[consul\]'"):
        open_url("consul://127.0.0.1:8500")

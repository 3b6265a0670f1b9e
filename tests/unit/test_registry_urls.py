"""Registries by URL."""

from __future__ import annotations

import subprocess
import sys

import pytest

from meshrpc.errors import SettingsError
from meshrpc.registry.consul import ConsulRegistry
from meshrpc.registry.dns import DnsRegistry
from meshrpc.registry.file import FileRegistry
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
        (
            "dns://127.0.0.1:8600",
            DnsRegistry,
            "<DnsRegistry 127.0.0.1:8600/service.consul staging watching=0>",
        ),
        (
            " dns:///{namespace}.svc.cluster.local?port=1",
            DnsRegistry,
            "<DnsRegistry /{namespace}.svc.cluster.local staging watching=0>",
        ),
        (
            "file:///etc/services.yaml",
            FileRegistry,
            "<FileRegistry /etc/services.yaml staging nothing yet>",
        ),
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
        (
            "zookeeper://h:1",
            "mesh:, consul://HOST:PORT, dns://SERVER:PORT, file:///path.yaml, static:.*, memory:",
        ),
        ("", "no such registry"),
        ("mesh://h", "no such registry"),
        ("dns:payment", "expected one as in dns://127.0.0.1:8600"),
        ("file:", "expected a file as in file:///etc/meshrpc/services.yaml"),
        ("static:", "expected services as in static:payment"),
        ("static:payment", "expected services"),
        ("static:payment=", "host:port"),
        ("static:payment=127.0.0.1", "host:port"),
        ("static:payment=127.0.0.1:0", "the port is 1 to 65535"),
        ("static:a=h:1;a=h:2", "'a' stands there twice"),
        ("consul://", "expected consul://HOST:PORT"),
        ("consul://h:70000", "consul://h:70000"),
        ("consul://h/kv", "expected consul://HOST:PORT"),
        ("consul://h/?colour=x", "unknown option colour"),
    ],
)
def test_a_url_that_cannot_be_used_is_an_error_with_its_remedy(url, words):
    """It names the URL and what was expected."""
    with pytest.raises(SettingsError, match=words):
        open_url(url)


def test_a_token_is_never_shown():
    """Neither in the error of a bad URL nor in the status of a good one."""
    with pytest.raises(SettingsError) as caught:
        open_url("consul://h/?token=secret&colour=x")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(open_url("consul://h/?token=secret"))


def test_a_missing_part_is_named_with_what_installs_it(monkeypatch):
    """Without py-consul, a consul:// URL says how to get it."""
    for name in [name for name in sys.modules if name.startswith("meshrpc.registry.consul")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "consul", None)
    with pytest.raises(SettingsError, match=r"pip install 'meshrpc\[consul\]'"):
        open_url("consul://127.0.0.1:8500")


def test_no_registry_but_a_dns_one_loads_what_reads_dns():
    """It takes longer than the rest of a command."""
    code = (
        "import sys, meshrpc.registry.urls as urls\n"
        "urls.create_registry('dns://127.0.0.1:8600', 'default', embedded=None)\n"
        "assert 'meshrpc.registry.dns' in sys.modules\n"
        "assert 'dns' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


async def test_a_watch_of_a_fixed_list_waits_for_nothing():
    """It has told all there is, and says so."""
    async with open_url("static:a=h:1") as registry:
        told = []
        watch = registry.watch("a", told.append)
        assert [len(each.instances) for each in told] == [1]
        assert watch.why_silent() is None
        watch.close()

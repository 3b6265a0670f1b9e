"""What several tests share; `virtual_clock` and `local_mesh` come from meshrpc's own plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests import consul


@pytest.fixture(scope="session")
def consul_binary() -> str:
    """The path of a real Consul, for tests that run their own with `ConsulServer`."""
    found = consul.find()
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(consul.MISSING)
        pytest.skip(consul.MISSING)
    return str(found)


@pytest.fixture(scope="session")
def consul_server(consul_binary: str) -> Iterator[consul.ConsulServer]:
    """A real Consul that all tests share: use names of your own, and leave it running."""
    with consul.ConsulServer() as server:
        yield server


@pytest.fixture(scope="session")
def consul_url(consul_server: consul.ConsulServer) -> str:
    """The registry URL of the shared Consul."""
    return consul_server.url

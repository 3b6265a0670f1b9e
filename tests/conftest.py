"""What several tests share; `virtual_clock` and `local_mesh` come from meshrpc's own plugin."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tests import consul


@pytest.fixture(scope="session", autouse=True)
def _without_grpcios_farewell() -> Iterator[None]:
    """Keep one line out of every test's log: grpcio's poller may find the last test's loop closed.

    It comes at any time after the end of a loop that had channels, and means nothing.
    """

    def is_news(record: logging.LogRecord) -> bool:
        return "PollerCompletionQueue._handle_events" not in record.getMessage()

    log = logging.getLogger("asyncio")
    log.addFilter(is_news)
    yield
    log.removeFilter(is_news)


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

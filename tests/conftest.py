"""What several tests share; `virtual_clock` and `local_mesh` come from meshrpc's own plugin."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

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


_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def _state_of_all_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(autouse=True)
def _state_dir(_state_of_all_tests: Path) -> Iterator[None]:
    """Give each test a state folder of its own, which is made when something is written there.

    Nothing is kept in the real one, nor passed from one test to the next, whose control service
    may have the same port by chance. By the platform's variable, which those processes heed too
    that tests start without any setting of meshrpc.
    """
    folder = str(_state_of_all_tests / str(next(_NUMBERS)))
    before = {name: os.environ.get(name) for name in ("XDG_STATE_HOME", "MESHRPC_STATE_DIR")}
    os.environ.update(XDG_STATE_HOME=folder, MESHRPC_STATE_DIR=f"{folder}/meshrpc")
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


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

"""Claims about telling a closed terminal from somebody who asks for a reload."""

import signal

import pytest

from meshrpc.workers import terminal
from meshrpc.workers.terminal import Terminal


@pytest.fixture
def there(monkeypatch):
    """Say whether the terminal is there."""
    state = {"is": True}
    monkeypatch.setattr(terminal, "_is_there", lambda: state["is"])
    return state


def test_a_terminal_that_is_gone_is_lost(there):
    """As long as it is there, whoever sends SIGHUP wants something else."""
    found = Terminal()
    assert not found.is_lost()
    there["is"] = False
    assert found.is_lost()


def test_who_never_had_one_cannot_lose_it(there):
    """A daemon, a container."""
    there["is"] = False
    assert not Terminal().is_lost()


def test_nohup_means_to_go_on_without(there):
    """It ignores the signal for the program it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        found = Terminal()
    finally:
        signal.signal(signal.SIGHUP, before)
    there["is"] = False
    assert not found.is_lost()

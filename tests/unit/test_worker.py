"""Claims about what one worker is told, and how its end is put in words."""

import signal

import pytest

from meshrpc.errors import SettingsError
from meshrpc.settings import Settings
from meshrpc.workers.process import describe_exit
from meshrpc.workers.worker import has_free_port, settings_of_worker


def test_a_fixed_port_moves_up_with_each_worker():
    """Worker 1 listens on the port itself, the third one two further; so with what is advertised."""
    settings = Settings.resolve({}, listen="127.0.0.1:5000", advertise="10.0.0.1:80")
    assert settings_of_worker(settings, 0) == settings
    third = settings_of_worker(settings, 2)
    assert third.listen == "127.0.0.1:5002"
    assert third.advertise == "10.0.0.1:82"


def test_any_free_port_stays_any_free_port():
    """Port 0 gives each worker its own, so there is nothing to move."""
    settings = Settings.resolve({}, listen="[::1]:0")
    assert settings_of_worker(settings, 3) == settings


def test_ports_end_at_65535():
    """A team that does not fit below the last port is told so."""
    settings = Settings.resolve({}, listen="127.0.0.1:65534")
    assert settings_of_worker(settings, 1).listen == "127.0.0.1:65535"
    with pytest.raises(SettingsError, match="worker 3 would have port 65536"):
        settings_of_worker(settings, 2)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-signal.SIGKILL, "killed by SIGKILL"),
        (-60, "killed by signal 60"),
    ],
)
def test_an_exit_is_put_in_words(code, words):
    """A signal is named where it has a name."""
    assert describe_exit(code) == words


@pytest.mark.parametrize(
    ("settings", "free"),
    [
        ({}, True),
        ({"listen": "0.0.0.0:5000"}, False),
        ({"advertise": "10.0.0.1:0"}, True),
        ({"advertise": "10.0.0.1:80"}, False),
    ],
)
def test_two_workers_in_one_place_need_a_free_port(settings, free):
    """Where callers are told a fixed port, one of the two would get the other one's calls."""
    assert has_free_port(Settings.resolve({}, **settings)) is free

"""Claims about what Ctrl-C does to a command, and when."""

import signal
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshrpc import interrupts
from meshrpc.cli import main


@pytest.fixture
def handle():
    """Set the handler of SIGINT; it is again what it was when the test is over."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def handler():
    return signal.getsignal(signal.SIGINT)


def test_it_ends_the_process_until_it_raises_again(handle, monkeypatch):
    """With the code that shells know."""
    codes = []
    monkeypatch.setattr(interrupts.os, "_exit", codes.append)
    handle(signal.default_int_handler)
    interrupts.end_process()
    handler()(signal.SIGINT, None)
    assert codes == [128 + signal.SIGINT]
    interrupts.raise_exception()
    assert handler() is signal.default_int_handler


def own(number, frame):
    """A handler of whoever runs a command inside its own program."""


@pytest.mark.parametrize("other", [signal.SIG_IGN, signal.SIG_DFL, own])
def test_who_ignores_it_or_handles_it_goes_on_doing_so(handle, other):
    """`nohup`, a job in a script's background, a program with a handler of its own."""
    handle(other)
    interrupts.end_process()
    assert handler() is other
    interrupts.raise_exception()
    assert handler() is other


def test_a_chosen_command_can_be_interrupted_in_order(handle):
    """asyncio looks for Python's own handler: a command that runs has it again."""
    handle(signal.default_int_handler)
    interrupts.end_process()
    assert CliRunner().invoke(main, ["events", "--help"]).exit_code == 0
    assert handler() is signal.default_int_handler


def test_the_script_begins_where_interrupts_are_thought_of():
    """Not in the commands, whose imports it has to come before."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"meshrpc": "meshrpc.__main__:main"}

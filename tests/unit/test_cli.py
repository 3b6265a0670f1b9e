"""Claims about the frame of the command line: its table, and how errors become exit codes."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from meshrpc.cli import SUBCOMMANDS, Subcommand, main
from meshrpc.errors import ControlError, PolicyError, Problem


@pytest.fixture
def invoke(monkeypatch):
    """Return a function that runs `meshrpc try`, a command that raises what it is given."""

    def invoke(error):
        @click.command("try")
        def attempt():
            raise error

        monkeypatch.setattr(sys.modules[__name__], "attempt", attempt, raising=False)
        monkeypatch.setitem(SUBCOMMANDS, "try", Subcommand(f"{__name__}:attempt", "Try."))
        return CliRunner().invoke(main, ["try"])

    return invoke


def test_a_mesh_error_is_one_line(invoke):
    """What meshrpc raises is exit code 1 and one line on stderr, however it was wrapped."""
    result = invoke(ControlError("control at 127.0.0.1:7700 is away:\nstart it"))
    assert result.exit_code == 1
    assert result.stderr == "error: control at 127.0.0.1:7700 is away: start it\n"
    assert result.stdout == ""


def test_a_policy_error_is_a_line_for_each_problem(invoke):
    """Every problem of a policy is told, not the first one alone."""
    problems = (Problem("timeout", "5", "needs a unit"), Problem("retry.codes", "", "is empty"))
    result = invoke(PolicyError(problems, source="payment.yaml"))
    assert result.exit_code == 1
    assert result.stderr == (
        "error: payment.yaml: timeout: 5: needs a unit\n"
        "error: payment.yaml: retry.codes: is empty\n"
    )


def test_an_interrupt_is_exit_code_130(invoke):
    """Ctrl-C ends a command quietly, with the code that shells know."""
    result = invoke(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == ""


def test_a_bug_keeps_its_traceback(invoke):
    """An error that is not meshrpc's own is not dressed up as one."""
    assert isinstance(invoke(ZeroDivisionError()).exception, ZeroDivisionError)


def test_wrong_usage_is_exit_code_2():
    """An unknown command is told as click tells it."""
    result = CliRunner().invoke(main, ["fly"])
    assert result.exit_code == 2
    assert "No such command 'fly'" in result.stderr


def test_help_lists_every_subcommand_and_imports_none():
    """`meshrpc --help` names the whole table without importing any of it."""
    program = (
        "import sys\n"
        "from meshrpc.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print('imported:', [name for name in sys.modules if name.startswith('meshrpc.cli.')])\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    for name, subcommand in SUBCOMMANDS.items():
        assert f"  {name} " in output
        assert subcommand.help in output
    assert "imported: []" in output


def test_a_reader_that_leaves_ends_the_command_quietly():
    """`meshrpc --help | true` writes no traceback and no complaint about a broken pipe."""
    process = subprocess.Popen(
        [sys.executable, "-m", "meshrpc", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    _, errors = process.communicate(timeout=30)
    assert errors == b""

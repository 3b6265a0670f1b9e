"""Claims about what `meshrpc run` understands on its command line."""

import pytest
from click.testing import CliRunner

from meshrpc.cli import run as command
from meshrpc.workers.rolling import READY_WITHIN
from meshrpc.workers.team import LIVENESS


@pytest.fixture
def supervised(monkeypatch):
    """Run the command without running anything; return what a supervisor would have been told."""
    made = []

    class Supervisor:
        def __init__(self, reference, **options):
            made.append((reference, options))

        def run(self):
            pass

    monkeypatch.setattr(command, "Supervisor", Supervisor)
    monkeypatch.setattr(command, "log_to_stderr", lambda *_, **__: None)

    def supervised(*arguments):
        made.clear()
        result = CliRunner().invoke(command.run, ["app:service", *arguments])
        return (result.exit_code, result.output) if not made else made[0][1]

    return supervised


@pytest.mark.parametrize(
    ("given", "count", "most"), [("4", 4, 4), ("2..8", 2, 8), ("3..3", 3, 3), ("1", 1, 1)]
)
def test_workers_are_a_number_or_a_range(supervised, given, count, most):
    """A number is the range of that one number."""
    told = supervised("--workers", given)
    assert (told["count"], told["most"]) == (count, most)


@pytest.mark.parametrize(
    "given",
    ["0", "0..4", "5..2", "two", "2..", "..2", "2...4", "-1", "²", "1001", "2..99999999999"],
)
def test_a_wrong_number_of_workers_is_wrong_usage(supervised, given):
    """Told by the command line itself, with its exit code 2."""
    code, said = supervised(f"--workers={given}")
    assert code == 2
    assert repr(given) in said


def test_a_new_worker_has_five_minutes_unless_told_otherwise(supervised):
    """`--ready-within` is in seconds, at least one and at most a day."""
    assert supervised()["ready_within"] == READY_WITHIN == 300
    assert supervised("--ready-within", "900")["ready_within"] == 900
    for given in ("0", "90000", "inf", "nan", "5m"):
        code, said = supervised(f"--ready-within={given}")
        assert code == 2
        assert given in said


def test_settings_reach_the_workers_as_environment(supervised):
    """The shared port and the log's format too."""
    told = supervised("--shared-listen", "127.0.0.1:5000", "--log-format", "json", "--zone", "a")
    environment = told["environment"]
    assert environment["MESHRPC_SHARED_LISTEN"] == "127.0.0.1:5000"
    assert environment["MESHRPC_LOG_FORMAT"] == "json"
    assert environment["MESHRPC_ZONE"] == "a"


def test_nobody_is_killed_for_a_breakpoint(supervised):
    """With --reload files are watched, and a blocked event loop is left alone."""
    told = supervised()
    assert (told["watch"], told["liveness"]) == (False, LIVENESS)
    told = supervised("--reload")
    assert (told["watch"], told["liveness"]) == (True, None)

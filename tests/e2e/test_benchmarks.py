"""The benchmarks run: what is said of speed can be measured by anybody."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        ["overhead.py", "--pairs", "2", "--seconds", "0.05", "--concurrency", "1"],
        ["pick.py", "--rounds", "1"],
        ["limiter.py", "--rounds", "1"],
        pytest.param(
            ["registered.py", "--instances", "200", "--turns", "1", "--rounds", "1"],
            marks=pytest.mark.soak,
        ),
        pytest.param(
            [
                *("registry.py", "--instances", "200", "--services", "20", "--watchers", "5"),
                *("--changes", "3", "--snapshots", "1", "--runs", "1", "--seconds", "0.5"),
            ],
            marks=pytest.mark.soak,
        ),
    ],
    ids=lambda command: command[0],
)
def test_a_benchmark_answers_in_json(command):
    """Each ends by itself and prints what it measured; how fast is no business of a test."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / command[0], *command[1:], "-o", "json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.soak
@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        ["overload", "--quick", "--only", "load", "--arms", "server"],
        ["workers", "--rounds", "1", "--seconds", "0.5"],
    ],
    ids=lambda command: command[0],
)
def test_a_benchmark_of_processes_under_load_answers_in_json(command):
    """As those above; these are modules of the package that their parts are in."""
    module, *arguments = command
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments, "-o", "json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)

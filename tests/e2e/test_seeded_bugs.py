"""The tests would notice: bugs made on purpose, one at a time, in a copy of the project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.seeded_bugs import BUGS

ROOT = Path(__file__).parents[2]
COPIED = (
    "meshrpc",
    "services",
    "tests",
    "docs",
    "policies",
    "protos",
    "pyproject.toml",
    "README.md",
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_what_a_bug_replaces_stands_once_in_its_file(bug):
    """Or the code has moved on and the bug with it."""
    assert (ROOT / bug.file).read_text().count(bug.right) == 1
    for test in bug.tests.split():
        assert (ROOT / test).is_file()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder, tests):
    """Run tests on the code in `folder`; return whether they pass, and what they said."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()],
        cwd=folder,
        # The copy wins over the project that is installed.
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: tests failed
    return done.returncode == 0, done.stdout


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_without_a_bug_all_of_these_tests_pass(copy):
    """So that a failure says something."""
    tests = sorted({test for bug in BUGS for test in bug.tests.split()})
    passed, said = run(copy, " ".join(tests))
    assert passed, said


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_found(copy, bug):
    """By the tests that are there for it."""
    file = copy / bug.file
    right = file.read_text()
    file.write_text(right.replace(bug.right, bug.wrong))
    try:
        passed, said = run(copy, bug.tests)
    finally:
        file.write_text(right)
    assert not passed, said

"""What a load leaves behind in a process of its own: nothing, and no more memory than grpcio does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MIB = 1 << 20

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read in /proc"),
]


def left_by(way, calls, streams, changes, parts):
    """Run the load over `mesh` or `bare` grpcio, and return its account of itself."""
    sizes = f"--calls {calls} --streams {streams} --changes {changes} --parts {parts}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.load", way, *sizes.split()],
        cwd=ROOT,
        env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def check(mesh):
    """No call failed, and all that is counted is as it was."""
    assert mesh["failed"] == {}
    assert mesh["before"]["pending"] == mesh["after"]["pending"] == 0
    for what, before in mesh["before"].items():
        assert mesh["after"][what] <= before, what


def test_thousands_of_calls_streams_and_changes_leave_nothing_behind():
    """3,000 calls, 1,000 streams, 40 servers coming or going: nothing fails and nothing stays."""
    mesh = left_by("mesh", 3000, 1000, 40, parts=2)
    check(mesh)
    assert mesh["calls"] == 4000
    assert mesh["grown"] < 8 * MIB


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_100_000_calls_10_000_streams_and_1_000_changes_leave_nothing_behind(capsys):
    """Every call answered, tasks and open files as before, and no more memory than bare grpcio.

    Both sides of every call are in the one process, so what servers keep counts on both.
    """
    mesh, bare = (left_by(way, 100_000, 10_000, 1_000, parts=10) for way in ("mesh", "bare"))
    with capsys.disabled():
        for way, left in (("mesh", mesh), ("bare", bare)):
            sys.stdout.write(f"\n{way}: {json.dumps(left)}\n")
    check(mesh)
    assert mesh["calls"] == 110_000
    assert mesh["grown"] < max(bare["grown"], 0) + 4 * MIB

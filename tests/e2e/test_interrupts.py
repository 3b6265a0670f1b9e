"""Claims about a signal that comes while a command still imports what it needs, or ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0

SITE = """
import atexit, os, signal, sys

# Whoever runs the tests may ignore it, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

def strike():
    os.kill(os.getpid(), int(os.environ["STRIKE_BY"]))

class Strikes:
    def find_spec(name, path=None, target=None):
        if name == os.environ["STRIKE_AT"]:
            strike()

sys.meta_path.insert(0, Strikes)
if os.environ["STRIKE_AT"] == "the end":
    atexit.register(strike)
"""

MODULE = ("-m", "meshrpc")
SCRIPT = ("-c", "import sys; from meshrpc.__main__ import main; sys.exit(main())")


@pytest.mark.parametrize(
    ("program", "moment", "number", "code"),
    [
        (MODULE, "meshrpc.cli", signal.SIGINT, 130),
        (SCRIPT, "meshrpc.cli", signal.SIGINT, 130),
        (MODULE, "grpc", signal.SIGINT, 130),
        (MODULE, "meshrpc.cli.events", signal.SIGINT, 130),
        (MODULE, "the end", signal.SIGINT, 130),
        (MODULE, "grpc", signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_a_signal_is_no_traceback_while_a_command_begins_or_ends(
    tmp_path, program, moment, number, code
):
    """It ends the command at once, and nothing is written."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    environment = {"STRIKE_AT": moment, "STRIKE_BY": str(int(number)), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *program, "events", "--help"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("Usage: meshrpc events") == (moment == "the end")

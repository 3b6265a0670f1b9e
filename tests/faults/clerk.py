"""An operator at the command line: `python -m tests.faults.clerk`.

It takes the arguments of a `meshrpc` command a line on stdin, runs it as the command line does, and
answers with a line of JSON: its exit code, what it wrote, and when it asked the registry for what.
It stays, so that a command takes no longer than what it does. When stdin ends it stops.
"""

import io
import json
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout

from meshrpc.cli import main
from tests.faults.asked import note_asked
from tests.faults.words import say


def run(arguments, asked):
    """Run one command and return what came of it."""
    asked.clear()
    written = io.StringIO()
    with redirect_stdout(written), redirect_stderr(written):
        try:
            main(arguments, prog_name="meshrpc")
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
    return {"code": code, "written": written.getvalue(), "asked": dict(asked)}


if __name__ == "__main__":
    asked = {}
    note_asked(lambda at, word, _: asked.setdefault(word, at))
    for line in sys.stdin:
        say(json.dumps(run(shlex.split(line), asked)))

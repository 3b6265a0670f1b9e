"""How the processes that meshrpc starts log: one line per record, to stderr.

The library itself configures no logging; these are its own processes, and the programs they load
keep whatever they configured first.
"""

from __future__ import annotations

import logging
import sys

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"
TIME_FORMAT = "%H:%M:%S"


def log_to_stderr(level: int) -> None:
    """Log records of `level` and above to stderr; a handler that is there already stays alone."""
    logging.basicConfig(stream=sys.stderr, format=FORMAT, datefmt=TIME_FORMAT)
    logging.getLogger().setLevel(level)
